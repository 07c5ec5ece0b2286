"""Scores: how much a connection is worth. Every score is non-negative; larger is kept or grown first.

A score is a function ``(weight, gradient, generator) -> Tensor`` of the weight's shape. It is called on flat
pieces of a layer as well as on whole tensors, so it must be element-wise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def magnitude(weight: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    """``|w|``: Han et al. 2015, the drop score of SET, RigL and GraNet."""
    return weight.abs()


def gradient(weight: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    """``|dL/dw|``: the grow score of RigL (Evci et al. 2020) and GraNet."""
    return gradient.abs()


def sensitivity(weight: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    """``|w * dL/dw|``: first-order change of the loss when the connection goes (SNIP, Lee et al. 2019)."""
    return (weight * gradient).abs()


def random(weight: Tensor, gradient: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1), the same on every device: the grow score of SET (Mocanu et al. 2018)."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)
