"""2:4 masks to the semi-structured kernels of NVIDIA GPUs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from lightning_plasticity.sparsity.export.baking import bake

_DTYPES = (torch.float16, torch.bfloat16)


def to_semi_structured(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Compress 2:4 sparse linear layers for torch's semi-structured kernels (Mishra et al. 2021).

    Every linear layer that has a mask is converted; everything else, convolutions included (torch has no such
    kernel for them), becomes plain dense weights with zeros. For inference.

    Args:
        model: The trained model, in float16 or bfloat16, on a CUDA device of compute capability 8.0 or more;
            left untouched.
        masks: Parameter name to bool mask; along the inputs of a linear layer at most 2 of every 4 are
            active.

    Returns:
        A copy in evaluation mode.

    Raises:
        ValueError: If no linear layer has a mask, a mask is not 2:4, or the dtype, a shape or the device does
            not fit the kernels. The message says what to do.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.weight".lstrip(".") in masks
    }
    if not layers:
        raise ValueError(
            "masks: none belongs to a linear layer, and torch has semi-structured kernels for linear layers "
            "only. Use bake() for plain dense weights with zeros."
        )
    for name, layer in layers.items():
        _check_two_of_four(f"{name}.weight".lstrip("."), masks)
        _check_dtype(name, layer)
    device = next(iter(layers.values())).weight.device
    backend = _backend(device)
    for name, layer in layers.items():
        _check_shape(name, layer, backend)
    fast = bake(model, masks).eval()
    for name in layers:
        linear = fast.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        linear.weight = nn.Parameter(
            backend.from_dense(linear.weight.detach().contiguous()), requires_grad=False
        )
    return fast


def _check_two_of_four(name: str, masks: Mapping[str, Tensor]) -> None:
    mask = masks[name]
    if mask.dim() != 2 or mask.shape[1] % 4:
        raise ValueError(
            f"masks['{name}'] of shape {tuple(mask.shape)} has no groups of 4 along its inputs: "
            "train with granularity='2:4', or leave the layer out of masks."
        )
    active = mask.bool().view(len(mask), -1, 4).sum(-1)
    if int(active.max()) > 2:
        raise ValueError(
            f"masks['{name}'] is not 2:4: {int((active > 2).sum())} of {active.numel()} groups have more "
            "than 2 active weights. Train with granularity='2:4', or use shrink() or bake()."
        )


def _check_dtype(name: str, layer: nn.Linear) -> None:
    if layer.weight.dtype not in _DTYPES:
        raise ValueError(
            f"model: layer '{name}' is {layer.weight.dtype}; semi-structured kernels take float16 or "
            "bfloat16. Pass model.to(torch.bfloat16)."
        )


def _backend(
    device: torch.device,
) -> type[SparseSemiStructuredTensorCUSPARSELT | SparseSemiStructuredTensorCUTLASS]:
    """Choose the kernels: cuSPARSELt where torch has it, else CUTLASS, which knows SM 8.x only."""
    if device.type != "cuda":
        raise ValueError(
            f"model: its weights are on '{device}'; semi-structured kernels need CUDA and compute "
            "capability 8.0 or more (Ampere). Move the model there with .cuda(), or use "
            "bake() for plain dense weights with zeros."
        )
    major, minor = torch.cuda.get_device_capability(device)
    cusparselt = torch.backends.cusparselt.is_available()
    if major < 8 or (major > 8 and not cusparselt):
        need = "8.0 or more" if major < 8 else "8.x without cuSPARSELt, which this torch lacks"
        raise ValueError(
            f"model: '{device}' has compute capability {major}.{minor}; semi-structured kernels need {need}. "
            "Use bake() for plain dense weights with zeros."
        )
    return SparseSemiStructuredTensorCUSPARSELT if cusparselt else SparseSemiStructuredTensorCUTLASS


def _check_shape(
    name: str,
    layer: nn.Linear,
    backend: type[SparseSemiStructuredTensorCUSPARSELT | SparseSemiStructuredTensorCUTLASS],
) -> None:
    limits = backend._DTYPE_SHAPE_CONSTRAINTS[layer.weight.dtype]
    rows, columns = limits.sparse_min_rows, limits.sparse_min_cols
    if layer.out_features % rows or layer.in_features % columns:
        raise ValueError(
            f"model: layer '{name}' has {layer.out_features} outputs and {layer.in_features} inputs; the "
            f"{backend.BACKEND} kernels need multiples of {rows} and {columns}. Leave its mask out of "
            "masks to keep it dense."
        )
