"""LatentData: smooth independent signals, as a stream of chunks."""

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_plasticity.data.splits import generator_for
from lightning_plasticity.data.streams import Chunk, StreamData


def gaussian_process(
    steps: int, signals: int, dt: float, timescale: float, generator: torch.Generator, jitter: float = 1e-5
) -> Tensor:
    """Independent Gaussian processes of kernel `exp(-d^2 / 2)`, `d` in time scales: `[steps, signals]`.

    Exact, by circulant embedding: the spectrum of the kernel wrapped on a circle long enough for its ends not
    to meet, times white noise. `jitter` is added to the kernel's diagonal.

    Args:
        steps: of `dt`.
        signals: number of processes.
        dt: seconds.
        timescale: seconds.
        generator: of the noise.
        jitter: variance of the white part.

    Example:
        >>> signals = gaussian_process(40_000, 2, 0.025, 1.0, torch.Generator().manual_seed(0))
        >>> bool((signals.std(0) - 1).abs().max() < 0.1)
        True
    """
    length = steps + int(20 * timescale / dt) + 1
    lag = torch.arange(length, dtype=torch.float64)
    lag = torch.minimum(lag, length - lag) * (dt / timescale)
    kernel = torch.exp(-lag * lag / 2)
    kernel[0] += jitter
    spectrum = torch.fft.rfft(kernel).real.clamp_min(0.0)
    white = torch.randn(length, signals, generator=generator, dtype=torch.float64)
    shaped = torch.fft.rfft(white, dim=0) * spectrum.sqrt().unsqueeze(1)
    signals_over_time: Tensor = torch.fft.irfft(shaped, n=length, dim=0)
    return signals_over_time[:steps]


class Signals:
    """Latent signals of several models and agents; an epoch's are drawn at once, from seed and number.

    Args:
        seeds: of each model's signals.
        agents: of each model.
        latents: signals.
        steps: of an epoch.
        dt: seconds.
        timescale: seconds.
    """

    def __init__(
        self, seeds: list[int], agents: int, latents: int, steps: int, dt: float, timescale: float
    ) -> None:
        self.seeds, self.agents, self.latents, self.steps = seeds, agents, latents, steps
        self.dt, self.timescale = dt, timescale
        self.step = 0
        self._drawn: tuple[int, Tensor] | None = None

    def take(self, steps: int) -> Chunk:
        """Goes on: `latents [steps, M, latents, B]`, float32."""
        epoch, start = divmod(self.step, self.steps)
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self._draw(epoch)
        self.step += steps
        return {"latents": self._drawn[1][start : start + steps]}

    def _draw(self, epoch: int) -> Tensor:
        models = []
        for seed in self.seeds:
            generator = generator_for(seed, epoch, stream=4)
            signals = self.latents * self.agents
            drawn = gaussian_process(self.steps, signals, self.dt, self.timescale, generator)
            models.append(drawn.float().view(self.steps, self.latents, self.agents))
        return torch.stack(models, 1)

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {"step": self.step, "seeds": list(self.seeds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.step, self.seeds, self._drawn = state["step"], list(state["seeds"]), None


class LatentData(StreamData):
    """Smooth random signals: chunks of `latents [T, M, latents, B]`, Gaussian processes of variance 1.

    Every model and every process has signals of its own seed; the state is in checkpoints.

    Args:
        minutes: simulated, of an epoch.
        agents: `B`, streams that share a model.
        seed: of the signals; model `m` of process `r` has `seed + r * models + m`.
        models: `M`.
        chunk_seconds: of a chunk, which is one training step.
        dt: seconds of a step.
        latents: signals.
        timescale: seconds, of the kernel `exp(-d^2 / 2)`.

    Raises:
        MisconfigurationException: if an argument is out of range.

    Example:
        >>> chunk = next(iter(LatentData(minutes=1).train_dataloader()))
        >>> chunk["latents"].shape
        torch.Size([400, 1, 5, 1])
    """

    def __init__(
        self,
        minutes: float = 30,
        agents: int = 1,
        seed: int = 0,
        models: int = 1,
        chunk_seconds: float = 10.0,
        dt: float = 0.025,
        latents: int = 5,
        timescale: float = 1.0,
    ) -> None:
        super().__init__(minutes, agents, seed, models, chunk_seconds, dt)
        if latents < 1:
            raise MisconfigurationException(f"latents={latents} must be at least 1")
        if not timescale > 0:
            raise MisconfigurationException(f"timescale={timescale} must be positive")
        self.latents, self.timescale = latents, timescale

    def _source(self, rank: int) -> Signals:
        total = self.chunks * self.steps
        return Signals(self.seeds(rank), self.agents, self.latents, total, self.dt, self.timescale)
