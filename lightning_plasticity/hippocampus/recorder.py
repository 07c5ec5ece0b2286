"""A bounded record of a run: the error at each chunk, thinned as it grows, and the last seconds of rates."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_plasticity.hippocampus.dynamics import Trace

MOST = 1000  # points of the error's history; every other one is dropped when there are twice as many


class Recorder:
    """What figures are drawn from; its size does not grow with the run.

    Attributes:
        minutes: simulated, of each recorded error.
        errors: averaged prediction errors of HPC and MEC at these times `[M, 2]`.
        last: the last chunk: `p [T, n_p]`, `g [T, n_g]` of the first model and agent, and its data.
    """

    def __init__(self) -> None:
        self.minutes: list[float] = []
        self.errors: list[Tensor] = []
        self.last: dict[str, Tensor] = {}
        self._every, self._seen = 1, 0

    def record(self, chunk: Mapping[str, Tensor], trace: Trace, error: Tensor, minutes: float) -> None:
        """Adds a chunk."""
        self._seen += 1
        if self._seen % self._every == 0:
            self.minutes.append(minutes)
            self.errors.append(error.detach().cpu().clone())
        if len(self.minutes) >= 2 * MOST:
            self.minutes, self.errors = self.minutes[1::2], self.errors[1::2]
            self._every *= 2
        data = {name: part[:, 0, ..., 0].cpu() for name, part in chunk.items()}
        self.last = {"p": trace.p[:, 0, :, 0].cpu(), "g": trace.g[:, 0, :, 0].cpu(), **data}

    def history(self) -> tuple[list[float], Tensor]:
        """Simulated minutes `[N]` and errors `[N, M, 2]`."""
        return self.minutes, torch.stack(self.errors) if self.errors else torch.zeros(0, 0, 2)

    def state_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and tensors."""
        return {
            "minutes": list(self.minutes),
            "errors": list(self.errors),
            "last": dict(self.last),
            "every": self._every,
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.minutes, self.errors, self.last = (
            list(state["minutes"]),
            list(state["errors"]),
            dict(state["last"]),
        )
        self._every, self._seen = state["every"], state["seen"]
