"""SAFE's optimizer and its learning rates, which start anew with each session."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lightning_plasticity.continual.learners import SlowFast
from lightning_plasticity.continual.sessions import rate
from lightning_plasticity.continual.settings import Optimization


def make_optimizer(learners: SlowFast, given: Optimization) -> torch.optim.SGD:
    """SGD with three groups: `adapter`, `head`, and `scale` without weight decay."""
    head, head_lr = learners.fast_head, given.head_lr or given.lr
    groups: list[dict[str, Any]] = [
        {
            "name": "adapter",
            "params": [parameter for _, parameter in learners.adapters.adapter_parameters()],
            "lr": given.lr,
        },
        {"name": "head", "params": [head.weight], "lr": head_lr},
        {"name": "scale", "params": [head.scale], "lr": head_lr, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, given.lr, momentum=given.momentum, weight_decay=given.weight_decay)


def make_schedule(
    optimizer: torch.optim.Optimizer, given: Optimization, epochs: Sequence[int], tunes: Callable[[int], bool]
) -> LambdaLR:
    """A cosine for each session and group.

    Args:
        optimizer: of `make_optimizer`.
        given: learning rates, and how long a cosine is.
        epochs: of each session.
        tunes: whether a session tunes anything; the rates are 0 where not.
    """
    later = 1.0 if given.later_lr is None else given.later_lr / given.lr
    head_later = later if given.head_lr is None else 1.0

    def factor(later: float) -> Callable[[int], float]:
        return lambda epoch: rate(epoch, epochs, later, given.schedule_epochs, tunes)

    return LambdaLR(optimizer, [factor(later), factor(head_later), factor(head_later)])


def restart(optimizer: torch.optim.Optimizer, schedule: LambdaLR, epoch: int) -> None:
    """Empties the momentum, and puts the schedule to an epoch whatever a resumed run has counted."""
    optimizer.state.clear()
    schedule.last_epoch = epoch
    for group, base, factor in zip(
        optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(epoch)


def no_loss(optimizer: torch.optim.Optimizer) -> Tensor:
    """A loss without a gradient, for sessions that tune nothing; their learning rate is 0 too."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return torch.stack([parameter.sum() for parameter in parameters]).sum() * 0.0
