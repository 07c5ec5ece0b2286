"""Errors of places decoded on a circular track: by time in the dark, and how long they stay small."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def circular_distance(one: Tensor, other: Tensor, circumference: float = 1.0) -> Tensor:
    """Shortest way along the circle, in the unit of the circumference.

    Args:
        one: places, any shape.
        other: places, likewise.
        circumference: of the track.

    Example:
        >>> circular_distance(torch.tensor(0.9), torch.tensor(0.1))
        tensor(0.2000)
    """
    difference = (one - other) / circumference
    return (difference - difference.round()).abs() * circumference


def horizon(errors: Tensor, dt: float, threshold: float = 0.1) -> Tensor:
    """Seconds until the mean error is above a threshold for the first time; all of them if it never is.

    Args:
        errors: mean error at each step `[..., T]`, metres.
        dt: seconds of a step.
        threshold: metres.

    Example:
        >>> horizon(torch.tensor([0.0, 0.05, 0.2, 0.05]), dt=0.5)
        tensor(1.)
    """
    below = (errors <= threshold).to(torch.int64).cumprod(-1)
    return below.sum(-1) * dt


class CircularDecodingError(Metric):
    """Mean distance along the track between decoded and true places, by time in the dark.

    Args:
        circumference: metres, of the track.
        **kwargs: as of any Metric.

    Example:
        >>> error = CircularDecodingError()
        >>> error.update(torch.tensor([[0.1, 0.9]]), torch.tensor([[0.1, 0.1]]))  # a test of two steps
        >>> error.compute()
        tensor([0.0000, 0.2000])
    """

    full_state_update = False
    total: Tensor
    tests: Tensor

    def __init__(self, circumference: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not circumference > 0:
            raise ValueError(f"circumference={circumference} must be positive")
        self.circumference = circumference
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("tests", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, decoded: Tensor, true: Tensor) -> None:
        """Takes places of tests `[tests, T]` in metres; all updates are of one length."""
        if decoded.shape != true.shape or decoded.ndim != 2:
            raise ValueError(f"decoded {tuple(decoded.shape)}, true {tuple(true.shape)}: alike, [tests, T]")
        errors = circular_distance(decoded, true, self.circumference)
        if self.total.ndim and self.total.shape != errors.shape[1:]:
            raise ValueError(f"tests of {errors.shape[1]} steps after tests of {len(self.total)}")
        self.total = self.total + errors.sum(0)
        self.tests += len(errors)

    def compute(self) -> Tensor:
        """Mean error at each step `[T]`, metres."""
        return self.total / self.tests


class PathIntegrationHorizon(CircularDecodingError):
    """Seconds in the dark until the mean decoding error exceeds a threshold.

    Args:
        dt: seconds of a step.
        threshold: metres.
        circumference: metres, of the track.
        **kwargs: as of any Metric.

    Example:
        >>> lasting = PathIntegrationHorizon(dt=0.5)
        >>> lasting.update(torch.tensor([[0.1, 0.3, 0.9]]), torch.tensor([[0.1, 0.25, 0.3]]))
        >>> lasting.compute()
        tensor(1.)
    """

    def __init__(
        self, dt: float = 0.025, threshold: float = 0.1, circumference: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(circumference, **kwargs)
        if not dt > 0 or not threshold > 0:
            raise ValueError(f"dt={dt} and threshold={threshold} must be positive")
        self.dt, self.threshold = dt, threshold

    def compute(self) -> Tensor:
        """Seconds."""
        return horizon(super().compute(), self.dt, self.threshold)
