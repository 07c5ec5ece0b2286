"""The theta gate: which dendrite drives the somas of each layer, step by step."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_plasticity.data.splits import generator_for

LAYERS = ("hpc", "mec")
MODES = ("theta", "shuffled", "wake", "sleep")

Mode = str | float


@dataclass(frozen=True)
class Gate:
    """How far apical dendrites drive each layer's somas: `s = k * apical + (1 - k) * basal`.

    A mode is `"theta"` (`sleep_steps` with `k = 1`, then `wake_steps` with `k = 0`), `"shuffled"` (the steps
    of every cycle in an order of its own), `"wake"`, `"sleep"`, or a number, `k` itself.

    Attributes:
        sleep_steps: first steps of a cycle.
        wake_steps: the others.
        hpc: mode of the hippocampal layer.
        mec: mode of the entorhinal layer.
        seed: of the shuffled order.

    Raises:
        ValueError: if a mode is none of these.

    Example:
        >>> Gate(2, 1, mec="sleep").fractions(start=0, steps=4)
        tensor([[1., 1.],
                [1., 1.],
                [0., 1.],
                [1., 1.]])
    """

    sleep_steps: int = 4
    wake_steps: int = 4
    hpc: Mode = "theta"
    mec: Mode = "theta"
    seed: int = 0

    def __post_init__(self) -> None:
        for layer in LAYERS:
            mode = getattr(self, layer)
            if not (mode in MODES if isinstance(mode, str) else 0 <= mode <= 1):
                raise ValueError(
                    f"mode {layer}={mode!r} must be one of {', '.join(MODES)}, or a number from 0 to 1"
                )

    @property
    def cycle(self) -> int:
        """Steps of a theta cycle."""
        return self.sleep_steps + self.wake_steps

    def with_mode(self, mode: Mode) -> "Gate":
        """Gives the gate with both layers in one mode."""
        return replace(self, hpc=mode, mec=mode)

    def fractions(self, start: int, steps: int) -> Tensor:
        """Sleep fractions `k [steps, 2]` of both layers from step `start` on, float32."""
        return torch.stack([self._of(getattr(self, layer), start, steps) for layer in LAYERS], 1)

    def _of(self, mode: Mode, start: int, steps: int) -> Tensor:
        if not isinstance(mode, str):
            return torch.full((steps,), float(mode))
        if mode in ("wake", "sleep"):
            return torch.full((steps,), float(mode == "sleep"))
        if mode == "theta":
            return ((torch.arange(start, start + steps) % self.cycle) < self.sleep_steps).float()
        first, last = start // self.cycle, (start + steps - 1) // self.cycle
        orders = [self._shuffled_cycle(number) for number in range(first, last + 1)]
        skipped = start - first * self.cycle
        return torch.cat(orders)[skipped : skipped + steps]

    def _shuffled_cycle(self, number: int) -> Tensor:
        order = torch.randperm(self.cycle, generator=generator_for(self.seed, number, stream=9))
        return (order < self.sleep_steps).float()
