"""Rebuilding a shrunk model from its tensors alone."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lightning_plasticity.sparsity.export.folding import bordered


def load_shrunk(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Rebuild a shrunk model from a fresh one of its class and the saved tensors, whose shapes say it all.

    Args:
        model: A model built like the one that was shrunk, at full size; left untouched.
        state: ``state_dict()`` of the shrunk model, from ``torch.load(path, weights_only=True)`` or
            safetensors.

    Returns:
        The shrunk model in evaluation mode.

    Raises:
        ValueError: If ``state`` does not belong to this model.

    Example:
        >>> fresh = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
        >>> state = {"0.weight": torch.ones(1, 3), "2.weight": torch.ones(2, 1)}
        >>> load_shrunk(fresh, state)
        Sequential(
          (0): Linear(in_features=3, out_features=1, bias=False)
          (1): ReLU()
          (2): Linear(in_features=1, out_features=2, bias=False)
        )
    """
    small = deepcopy(model).eval()
    for name, layer in list(small.named_modules()):
        prefix = f"{name}." if name else ""
        own = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if isinstance(layer, _BatchNorm) and not own:
            small.set_submodule(name, nn.Identity())
        elif isinstance(layer, nn.Linear | _ConvNd | _BatchNorm | nn.PReLU) and "weight" in own:
            layer = bordered(layer) if "taps" in own else layer
            _resize(layer, own)
            if name:
                small.set_submodule(name, layer)
    try:
        small.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(f"state does not fit a shrunk {type(model).__name__}: {error}") from error
    return small


def _resize(layer: nn.Module, own: Mapping[str, Tensor]) -> None:
    """Give a layer tensors of the saved shapes and the sizes that follow from them."""
    weight = own["weight"]
    if isinstance(layer, _ConvNd):
        if layer.groups == layer.in_channels and layer.groups > 1:
            layer.groups = weight.shape[0] * layer.groups // layer.out_channels
        layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, _BatchNorm):
        layer.num_features = weight.shape[0]
    for key, value in own.items():
        old = getattr(layer, key)
        if isinstance(old, nn.Parameter) or (old is None and key == "bias"):
            like = old if old is not None else layer.weight
            assert isinstance(like, nn.Parameter)
            fresh = torch.empty(value.shape, dtype=like.dtype, device=like.device)
            setattr(layer, key, nn.Parameter(fresh, requires_grad=like.requires_grad))
        elif isinstance(old, Tensor):
            setattr(layer, key, torch.empty(value.shape, dtype=old.dtype, device=old.device))
