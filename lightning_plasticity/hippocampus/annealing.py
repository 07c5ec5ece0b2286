"""How learning rates fall over a run, in a form that a checkpoint can hold."""

import math
from typing import Any, Literal


class Annealing:
    """Factor of the learning rates at each training step; a `LambdaLR` stores its attributes.

    Args:
        start: part of the run after which the factor falls.
        floor: factor at the end.
        shape: `cosine` or `linear`.

    Attributes:
        begin: training step that counts as the run's first.
        total: training steps of the run, from the very first.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> annealing = Annealing(start=0.5, floor=0.02)
        >>> annealing.total = 360.0
        >>> [round(annealing(step), 2) for step in (0, 180, 270, 360)]
        [1.0, 1.0, 0.51, 0.02]
    """

    def __init__(
        self, start: float = 1.0, floor: float = 1.0, shape: Literal["cosine", "linear"] = "cosine"
    ) -> None:
        if not 0 <= start <= 1 or not 0 <= floor <= 1:
            raise ValueError(f"anneal_from={start} and anneal_to={floor} must lie between 0 and 1")
        if shape not in ("cosine", "linear"):
            raise ValueError(f"shape={shape!r} must be cosine or linear")
        self.start, self.floor, self.shape = float(start), float(floor), shape
        self.begin, self.total = 0.0, math.inf

    def __call__(self, step: int) -> float:
        """Gives the factor of a training step."""
        length = self.total - self.begin
        if self.floor == 1 or not math.isfinite(length) or length <= 0:
            return 1.0
        progress = (step - self.begin) / length
        left = min(1.0, max(0.0, (1 - progress) / (1 - self.start) if self.start < 1 else 1.0))
        falling = 0.5 * (1 - math.cos(math.pi * left)) if self.shape == "cosine" else left
        return self.floor + (1 - self.floor) * falling

    def restart(self, step: int, start: float, floor: float, shape: Literal["cosine", "linear"]) -> None:
        """Begins anew at a training step, for the rest of the run."""
        fresh = Annealing(start, floor, shape)
        self.start, self.floor, self.shape = fresh.start, fresh.floor, fresh.shape
        self.begin = float(step)


def chunks_of(trainer: Any) -> float:
    """Training steps of the whole run; infinity where nobody knows."""
    total = float(trainer.estimated_stepping_batches)
    return total if total > 0 else math.inf
