"""Very sparse linear layers on a CPU: compressed rows instead of a dense matrix with zeros."""

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_plasticity.sparsity.export.baking import bake


class CSRLinear(nn.Module):
    """A linear layer for inference that stores and multiplies active weights only (compressed sparse rows).

    Args:
        row_starts: ``[out_features + 1]`` int, where each row begins in the two tensors below.
        columns: ``[active]`` int, the input feature of each active weight.
        values: ``[active]`` the active weights, row by row.
        in_features: Number of input features.
        bias: ``[out_features]`` or None.
    """

    row_starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(
        self,
        row_starts: Tensor,
        columns: Tensor,
        values: Tensor,
        in_features: int,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, row_starts.numel() - 1
        self.register_buffer("row_starts", row_starts)
        self.register_buffer("columns", columns)
        self.register_buffer("values", values)
        self.register_buffer("bias", bias)
        self._weight: Tensor | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, mask: Tensor) -> "CSRLinear":
        """Keep the weights of a layer where ``mask`` is True (an active weight of exactly 0 stays active).

        Args:
            linear: The layer.
            mask: Bool ``[out_features, in_features]``.
        """
        _acknowledge_beta()
        rows = mask.sum(1, dtype=torch.int32)
        row_starts = nn.functional.pad(rows.cumsum(0, dtype=torch.int32), (1, 0))
        columns = mask.nonzero()[:, 1].to(torch.int32)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(row_starts, columns, linear.weight.detach()[mask], linear.in_features, bias).train(
            linear.training
        )

    @property
    def weight(self) -> Tensor:
        """The weight as a CSR tensor ``[out_features, in_features]``; it shares the buffers' memory.

        Made once and kept: the first product with a new CSR tensor costs several times what the next ones do.
        """
        if self._weight is None:
            _acknowledge_beta()
            size = (self.out_features, self.in_features)
            with torch.inference_mode(False):
                self._weight = torch.sparse_csr_tensor(
                    self.row_starts, self.columns, self.values, size, check_invariants=False
                )
        return self._weight

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x`` ``[..., in_features]`` to ``[..., out_features]``."""
        columns = x.reshape(-1, self.in_features).t().contiguous()
        y = torch.mm(self.weight, columns).t()
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._weight = None  # the buffers move to another device or dtype
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._weight = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_weight": None}

    def extra_repr(self) -> str:
        """Sizes and density, for ``print(model)``."""
        density = self.values.numel() / (self.in_features * self.out_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, density={density:.3g}"


def to_csr(
    model: nn.Module, masks: Mapping[str, Tensor], max_density: float = 0.1, min_weights: int = 500_000
) -> nn.Module:
    """Replace very sparse linear layers by :class:`CSRLinear`, for inference on a CPU.

    Measured to be worth it for large layers at low density only, which the defaults say (see
    tests/benchmarks/bench_export.py). Other layers become plain dense weights with zeros (:func:`bake`).

    Args:
        model: The trained model; left untouched. Its linear layers may be anywhere below it.
        masks: Parameter name to bool mask.
        max_density: Greatest density of a layer that is replaced, in (0, 1].
        min_weights: Fewest weights, zeros included, of a layer that is replaced.

    Returns:
        A copy in evaluation mode.

    Raises:
        ValueError: If ``max_density`` is out of range, a mask does not fit, no layer qualifies, or one that
            does is neither float32 nor float64.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 10))
        >>> mask = torch.zeros(10, 20, dtype=torch.bool)
        >>> mask[:, 3] = True
        >>> to_csr(net, {"0.weight": mask}, min_weights=200)
        Sequential(
          (0): CSRLinear(in_features=20, out_features=10, density=0.05)
        )
    """
    if not 0.0 < max_density <= 1.0:
        raise ValueError(f"max_density={max_density} must lie in (0, 1]")
    baked = bake(model, masks).eval()
    chosen: dict[str, tuple[nn.Linear, Tensor]] = {}
    for name, layer in baked.named_modules():
        mask = masks.get(f"{name}.weight")
        if type(layer) is nn.Linear and mask is not None and layer.weight.numel() >= min_weights:
            mask = mask.to(layer.weight.device).broadcast_to(layer.weight.shape)
            if mask.sum() <= max_density * mask.numel():
                chosen[name] = layer, mask
    if not chosen:
        raise ValueError(
            f"max_density={max_density}, min_weights={min_weights}: no linear layer inside the model has a "
            "mask that sparse and is that large. Change the limits, or use bake() for plain dense weights."
        )
    for name, (layer, mask) in chosen.items():
        if layer.weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"model: layer '{name}' is {layer.weight.dtype}; the CSR kernels take float32 or float64. "
                "Pass model.float()."
            )
        baked.set_submodule(name, CSRLinear.from_linear(layer, mask))
    return baked


@cache
def _acknowledge_beta() -> None:
    """Let torch say once, unheard, that CSR tensors are in beta: the call used here is covered by tests."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CSR tensor support is in beta.*", category=UserWarning)
        torch.zeros(1, 1).to_sparse_csr()
