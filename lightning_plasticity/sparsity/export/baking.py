"""Masked weights as plain dense weights with zeros."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn


def bake(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Copy a model into plain dense weights with zeros, without any trace of sparse training.

    Args:
        model: The trained model; left untouched.
        masks: Parameter name to bool mask of the parameter's shape, or of one that broadcasts to it.

    Returns:
        A copy: masked weights are exactly 0, gradients and this package's hooks are gone. Same class, names
        and mode.

    Raises:
        ValueError: If a mask has no parameter or does not fit it.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> (bake(net, {"weight": torch.tensor([[True, False]])}).weight != 0).tolist()
        [[True, False]]
    """
    baked = deepcopy(model)
    parameters = dict(baked.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(
                f"masks['{name}'] has no parameter in the model. It has {', '.join(list(parameters)[:6])} ..."
            )
        weight = parameters[name]
        try:
            wide = mask.to(device=weight.device, dtype=torch.bool).broadcast_to(weight.shape)
        except RuntimeError as error:
            raise ValueError(
                f"masks['{name}'] has shape {tuple(mask.shape)}, its parameter {tuple(weight.shape)}: "
                "give one entry per weight, or one per filter as [filters, 1, ...]."
            ) from error
        with torch.no_grad():
            weight.masked_fill_(~wide, 0.0)
    for parameter in parameters.values():
        parameter.grad = None
    _remove_own_hooks(baked)
    return baked


def _remove_own_hooks(model: nn.Module) -> None:
    for module in model.modules():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            for key, hook in list(hooks.items()):
                if getattr(hook, "__module__", "").split(".")[0] == __name__.split(".")[0]:
                    del hooks[key]
