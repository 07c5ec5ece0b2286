"""PredictionError: how far two dendrites of a layer differ, averaged over the last minute."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def low_pass(previous: Tensor, values: Tensor, rate: float) -> Tensor:
    """Runs `e <- e + rate (new - e)` over `T` values at once.

    Args:
        previous: e before them, any shape.
        values: new ones `[T, ...]`.
        rate: `dt / tau`.

    Example:
        >>> low_pass(torch.tensor(0.0), torch.tensor([1.0, 1.0]), 0.5)
        tensor(0.7500)
    """
    steps = len(values)
    powers = (1 - rate) ** torch.arange(steps, -1, -1, dtype=torch.float64, device=values.device)
    driven = torch.tensordot(powers[1:] * rate, values.double(), 1)
    smoothed: Tensor = powers[0] * previous.double() + driven
    return smoothed.to(values.dtype)


class PredictionError(Metric):
    """|basal - apical| of a layer, low-passed: `e <- e + dt / tau (new - e)` from its first value on.

    George et al. (NeurIPS 2023) report it with `tau` = 60 s, from two theta cycles on. It is no loss: nothing
    in the model follows its gradient.

    Args:
        dt: seconds of a step.
        tau: seconds.
        skip: seconds at the beginning that do not count.
        **kwargs: as of any Metric.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> error = PredictionError(dt=0.025, skip=0.0)
        >>> error.update(basal=torch.full((8, 3), 0.5), apical=torch.zeros(8, 3))        # 8 steps, 3 cells
        >>> error.compute()
        tensor(0.5000)
    """

    full_state_update = False
    value: Tensor
    steps: Tensor

    def __init__(self, dt: float = 0.025, tau: float = 60.0, skip: float = 0.4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < dt <= tau or skip < 0:
            raise ValueError(f"dt={dt} must be positive and at most tau={tau}, skip={skip} not negative")
        self.rate, self.skip = dt / tau, round(skip / dt)
        self.add_state("value", torch.tensor(torch.nan), dist_reduce_fx="mean")
        self.add_state("steps", torch.tensor(0), dist_reduce_fx="max")

    def update(self, basal: Tensor, apical: Tensor) -> None:
        """Takes rates of `T` steps `[T, ...]`; the error of a step is the mean over all cells."""
        if basal.shape != apical.shape or basal.ndim < 2:
            raise ValueError(f"basal {tuple(basal.shape)}, apical {tuple(apical.shape)}: alike, [steps, ...]")
        errors = (basal - apical).abs().flatten(1).mean(1)
        self.value = following(self.value, errors, self.rate, int(self.steps), self.skip)
        self.steps += len(errors)

    def compute(self) -> Tensor:
        """The averaged error; NaN before the first step that counts."""
        return self.value


def following(value: Tensor, errors: Tensor, rate: float, seen: int, skip: int) -> Tensor:
    """Low-passes errors that begin to count after `skip` steps, the first of them as it is.

    Args:
        value: so far, any shape; of no matter before the first that counts.
        errors: of new steps `[T, ...]`.
        rate: `dt / tau`.
        seen: steps before these.
        skip: steps that do not count.
    """
    if seen <= skip:
        errors = errors[skip - seen :]
        if not len(errors):
            return value
        value, errors = errors[0], errors[1:]
    return low_pass(value, errors, rate)
