"""What was learned when: intensities after every pass, weights after passes 0, 1, 2, 4, 8 ..."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_plasticity.intrinsic.distribution import Parameters


@dataclass
class Trace:
    """Snapshots of a mixture over learning time, on the CPU.

    Attributes:
        seen: stimuli seen at each pass, with the start.
        mean: `mu [C]` at each pass.
        shape: `a [C]` at each pass.
        weights: `W [C, D]` at some passes.
        weights_seen: stimuli seen at these.
    """

    seen: list[float] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    shape: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    weights_seen: list[float] = field(default_factory=list)

    def record(self, seen: float, params: Parameters) -> None:
        """Adds the state after a pass; passes 0 and powers of two keep the weights."""
        number = len(self.seen)
        self.seen.append(seen)
        self.mean.append(params.mean.detach().cpu().clone())
        self.shape.append(params.shape.detach().cpu().clone())
        if number & (number - 1) == 0:
            self.weights.append(params.weights.detach().float().cpu().clone())
            self.weights_seen.append(seen)

    def state_dict(self) -> dict[str, Any]:
        """Plain lists of numbers and tensors."""
        return {name: list(value) for name, value in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for name, value in state.items():
            setattr(self, name, list(value))
