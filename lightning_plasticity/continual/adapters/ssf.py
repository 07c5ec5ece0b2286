"""SSF: scale and shift the output channels of a network's layers (Lian et al., NeurIPS 2022).

``y = scale * f(x) + shift``, one scale and one shift per channel, after linear, convolution and normalisation
layers. Both fold into the layer, ``weight' = scale * weight``, ``bias' = scale * bias + shift``, so that a
merged network costs nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_plasticity.continual.adapters.tuner import Tuner, TunerConfig, TunerLayer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass
class SSFConfig(TunerConfig):
    """Scale and shift of a network's channels.

    Args:
        target_modules: see ``TunerConfig``; None: the normalisation layers of a network with BatchNorm,
            and all linear, convolution and normalisation layers of any other.
        exclude_modules: see ``TunerConfig``.
        init: ``"identity"``: scale 1, shift 0; ``"noise"``: scale N(1, 0.02^2), shift N(0, 0.02^2), as the
            authors have it, so that the untrained adapter already changes the features.

    Raises:
        ValueError: for another ``init``.
    """

    method: ClassVar[str] = "PLASTICITY_SSF"
    init: Literal["identity", "noise"] = "identity"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self.require(self.init in ("identity", "noise"), "init", "'identity' or 'noise'")


class SSFLayer(TunerLayer):
    """A linear, convolution or normalisation layer with a scale and a shift per output channel."""

    adapter_layer_names = ("ssf_scale", "ssf_shift")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.ssf_scale, self.ssf_shift = nn.ParameterDict(), nn.ParameterDict()
        self._unmerged: dict[str, nn.Parameter | None] = {}

    def update_layer(self, adapter_name: str, config: SSFConfig) -> None:
        """Add an adapter."""
        channels = _channels(self.base_layer)
        scale, shift = torch.ones(channels), torch.zeros(channels)
        if config.init == "noise":
            scale, shift = torch.normal(scale, 0.02), torch.normal(shift, 0.02)
        self.ssf_scale[adapter_name], self.ssf_shift[adapter_name] = nn.Parameter(scale), nn.Parameter(shift)
        self.finish(adapter_name, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer, scaled and shifted by the active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.merged else self.acting()
        if isinstance(self.base_layer, _NORMS) and names:
            # Inside the layer: timm's norms carry their activation with them, which comes after the scale
            weights = self._folded(names)
            result: Tensor = functional_call(self.base_layer, weights, (x, *args), kwargs)
            return result
        y: Tensor = self.base_layer(x, *args, **kwargs)
        # Outside the layer: the gradient of the scale then needs no product of the size of the weights
        shape = (-1, *(1,) * (y.ndim - 2)) if isinstance(self.base_layer, _CONVOLUTIONS) else (-1,)
        for name in names:
            scale, shift = (value[name].to(y.dtype).view(shape) for value in (self.ssf_scale, self.ssf_shift))
            y = y * scale + shift
        return y

    def _folded(self, names: list[str]) -> dict[str, Tensor]:
        """The layer's weight and bias with scale and shift folded in."""
        base: Any = self.base_layer
        weight, bias = base.weight, base.bias
        for name in names:
            scale, shift = self.ssf_scale[name], self.ssf_shift[name]
            if weight is not None:  # under half precision, norms want weights of one type
                scale, shift = scale.to(weight.dtype), shift.to(weight.dtype)
            # the first dimension of a weight is the output channel, for all these layers
            weight = scale if weight is None else weight * scale.view(-1, *(1,) * (weight.ndim - 1))
            bias = shift if bias is None else bias * scale + shift
        return {"weight": weight, "bias": bias}

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the layer.

        Raises:
            ValueError: with ``safe_merge``, if the result isn't finite.
        """
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names if name in self.ssf_scale]
        if not names:
            return
        with torch.no_grad():
            folded = self._folded(names)
        if safe_merge and not all(value.isfinite().all() for value in folded.values()):
            raise ValueError(f"the adapters {names} hold values that aren't finite")
        self._unmerged = self._unmerged or {key: getattr(self.base_layer, key) for key in folded}
        for key, value in folded.items():
            setattr(self.base_layer, key, nn.Parameter(value.detach().clone(), requires_grad=False))
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the layer's own weights back, exactly."""
        for key, value in self._unmerged.items():
            setattr(self.base_layer, key, value)
        self._unmerged = {}
        self.merged_adapters.clear()


class SSFModel(Tuner):
    """Scales and shifts linear, convolution and normalisation layers."""

    prefix = "ssf_"
    tuner_layer_cls = SSFLayer
    fitting = "linear, convolution or normalisation layer with channels"

    def fits(self, module: nn.Module) -> bool:
        """Whether a module has output channels to scale."""
        return isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_NORMS)) and _channels(module) > 0

    def is_default(self, module: nn.Module) -> bool:
        """All such layers; of a network with BatchNorm its norms."""
        with_batch_norm = any(isinstance(other, _BatchNorm) for other in self.model.modules())
        return self.fits(module) and (not with_batch_norm or isinstance(module, _NORMS))


def _channels(layer: nn.Module) -> int:
    """Number of output channels; 0 for a norm over several dimensions."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, _CONVOLUTIONS):
        return layer.out_channels
    if isinstance(layer, _BatchNorm):
        return layer.num_features
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    shape: tuple[int, ...] = layer.normalized_shape  # type: ignore[assignment]
    return shape[0] if len(shape) == 1 else 0
