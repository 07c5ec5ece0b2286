"""TrackData: an animal on a circular track, as a stream of chunks; and recorded walks on the same track."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from torch import Tensor

from lightning_plasticity.data.splits import generator_for
from lightning_plasticity.data.streams import Chunk, StreamData

Source = Literal["walk", "sargolini"]

_BLOCK = 400  # steps of a walk that are drawn at once: the cost of each grows with it


class Walker:
    """Animals whose velocity is an Ornstein-Uhlenbeck process, on a circle (ratinabox's 1-D motion).

    `x <- (x + dt v) mod L`, then `v <- v + dt (mean - v) / coherence + std sqrt(2 dt / coherence) N(0, 1)`.

    Args:
        seeds: of each model's animals.
        agents: animals of each model.
        dt: seconds.
        mean: m/s; may be changed on the way.
        std: m/s.
        coherence: seconds.
        circumference: metres.

    Example:
        >>> chunk = Walker([0], agents=2).take(8)
        >>> chunk["position"].shape, chunk["velocity"].shape                     # steps, models, agents
        (torch.Size([8, 1, 2]), torch.Size([8, 1, 2]))
    """

    def __init__(
        self,
        seeds: list[int],
        agents: int = 1,
        dt: float = 0.025,
        mean: float = 0.0,
        std: float = 0.5,
        coherence: float = 0.7,
        circumference: float = 1.0,
    ) -> None:
        self.agents, self.dt, self.mean, self.std = agents, dt, mean, std
        self.coherence, self.circumference = coherence, circumference
        self._generators = [generator_for(seed, stream=3) for seed in seeds]
        starts = [torch.rand(agents, generator=g, dtype=torch.float64) for g in self._generators]
        self.position = torch.stack(starts) * circumference  # [M, B]
        self.velocity = torch.full_like(self.position, mean)

    def take(self, steps: int) -> Chunk:
        """Walks on.

        Returns:
            `position` after each step, `velocity` that led there, and `coming` velocity of the step after,
            `[steps, M, B]` each, float32.
        """
        velocity = self.velocity.unsqueeze(0)
        for block in range(0, steps, _BLOCK):
            velocity = torch.cat([velocity, self._velocities(velocity[-1], min(_BLOCK, steps - block))])
        travelled = self.position + self.dt * velocity[:-1].cumsum(0)
        position = travelled % self.circumference
        self.position, self.velocity = position[-1].clone(), velocity[-1].clone()
        parts = {"position": position, "velocity": velocity[:-1], "coming": velocity[1:]}
        return {name: part.float() for name, part in parts.items()}

    def _velocities(self, velocity: Tensor, steps: int) -> Tensor:
        """Velocities of the `steps` after one `[steps, M, B]`, all at once."""
        rate = self.dt / self.coherence
        size = (steps, self.agents)
        drawn = [torch.randn(size, generator=g, dtype=torch.float64) for g in self._generators]
        jumps = torch.stack(drawn, 1) * (self.std * math.sqrt(2 * rate))
        # v_t - mean = (1 - rate)^t (v_0 - mean) + sum_{s < t} (1 - rate)^(t - 1 - s) jump_s
        powers, kernel = _decay(rate, steps)
        after: Tensor = self.mean + powers.view(-1, 1, 1) * (velocity - self.mean)
        after += torch.tensordot(kernel, jumps, 1)
        return after

    def state_dict(self) -> dict[str, Any]:
        """Everything that a walk goes on from."""
        return {
            "position": self.position,
            "velocity": self.velocity,
            "mean": self.mean,
            "generators": [generator.get_state() for generator in self._generators],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if state["position"].shape != self.position.shape:
            raise ValueError(
                f"the state is of {tuple(state['position'].shape)} models and agents, "
                f"not {tuple(self.position.shape)}"
            )
        self.position, self.velocity, self.mean = state["position"], state["velocity"], state["mean"]
        for generator, value in zip(self._generators, state["generators"], strict=True):
            generator.set_state(value)


@lru_cache(maxsize=4)
def _decay(rate: float, steps: int) -> tuple[Tensor, Tensor]:
    """`(1 - rate)^t [steps]` from t = 1 on; what is left of each step's jump at each `[steps, steps]`."""
    powers = (1 - rate) ** torch.arange(steps + 1, dtype=torch.float64)
    lag = torch.arange(steps).unsqueeze(1) - torch.arange(steps)
    return powers[1:], torch.where(lag >= 0, powers[lag.clamp_min(0)], 0.0)


class Playback:
    """A recorded walk on the circle, to and fro: at its end it runs backwards in time, so that nothing jumps.

    Args:
        position: unwrapped, metres `[N]`, one for each step of `dt`.
        models: that see it.
        agents: of each; they start at different times, evenly spread.
        dt: seconds.
        circumference: metres.
    """

    mean = 0.0

    def __init__(
        self,
        position: Tensor,
        models: int = 1,
        agents: int = 1,
        dt: float = 0.025,
        circumference: float = 1.0,
    ) -> None:
        self.track, self.dt, self.circumference = position.double(), dt, circumference
        spread = torch.arange(models * agents) * len(position) // (models * agents)
        self.start = spread.view(models, agents)
        self.step = 0

    def take(self, steps: int) -> Chunk:
        """Plays on; as `Walker.take`."""
        turn = len(self.track) - 1
        time = self.start + torch.arange(self.step, self.step + steps + 2).view(-1, 1, 1)
        phase = time % (2 * turn)
        path = self.track[torch.where(phase > turn, 2 * turn - phase, phase)]
        velocity = path.diff(dim=0) / self.dt
        self.step += steps
        position = path[1:-1] % self.circumference
        parts = {"position": position, "velocity": velocity[:-1], "coming": velocity[1:]}
        return {name: part.float() for name, part in parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Where the playback is."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.step = state["step"]


class TrackData(StreamData):
    """A walk on a circular track: chunks of `position`, `velocity` and `coming` velocity `[T, M, B]`.

    `position [T, M, B]` in metres follows from `velocity` in m/s at the same step; `coming` is the velocity
    of the next step. An epoch is the whole walk. Every model and every process has walks of its own seed. The
    state is in checkpoints: a run that resumes inside the walk goes on exactly.

    Args:
        minutes: simulated, of an epoch.
        agents: `B`, animals that share a model.
        seed: of the walks; model `m` of process `r` walks by `seed + r * models + m`.
        models: `M`.
        chunk_seconds: of a chunk, which is one training step.
        dt: seconds of a step.
        speed_mean: m/s.
        speed_std: m/s.
        source: `walk`; `sargolini`: ten minutes of a rat foraging in a box (Sargolini et al. 2006, from
            ratinabox), whose angle around the middle of the box is taken as its place on the track, which is
            our projection, not the authors'; or a `.npz` file with `t [N]` in seconds and `position [N]` in
            metres along the track.
        circumference: metres, of the track.

    Raises:
        MisconfigurationException: if an argument is out of range or a file has no such arrays.
        ModuleNotFoundError: if ratinabox is needed and missing.

    Example:
        >>> chunk = next(iter(TrackData(minutes=1).train_dataloader()))
        >>> sorted(chunk), chunk["position"].shape
        (['coming', 'position', 'velocity'], torch.Size([400, 1, 1]))
    """

    def __init__(
        self,
        minutes: float = 60,
        agents: int = 1,
        seed: int = 0,
        models: int = 1,
        chunk_seconds: float = 10.0,
        dt: float = 0.025,
        speed_mean: float = 0.0,
        speed_std: float = 0.5,
        source: Source | str = "walk",
        circumference: float = 1.0,
    ) -> None:
        super().__init__(minutes, agents, seed, models, chunk_seconds, dt)
        if not circumference > 0:
            raise MisconfigurationException(f"circumference={circumference} must be positive")
        if not speed_std >= 0:
            raise MisconfigurationException(f"speed_std={speed_std} must not be negative")
        self.speed_mean, self.speed_std, self.circumference = speed_mean, speed_std, circumference
        self.origin = source
        self._recorded = None if source == "walk" else self._read(source)

    def _read(self, source: str) -> Tensor:
        time, place = sargolini(self.circumference) if source == "sargolini" else _read_file(Path(source))
        grid = np.arange(time[0], time[-1], self.dt)
        if len(grid) < 3:
            raise MisconfigurationException(f"source={source!r} is shorter than three steps of {self.dt} s")
        turns = np.unwrap(place, period=self.circumference)
        return torch.from_numpy(np.interp(grid, time, turns))

    def _source(self, rank: int) -> Walker | Playback:
        if self._recorded is not None:
            return Playback(self._recorded, self.models, self.agents, self.dt, self.circumference)
        return Walker(
            self.seeds(rank),
            self.agents,
            self.dt,
            self.speed_mean,
            self.speed_std,
            circumference=self.circumference,
        )

    def set_speed_mean(self, value: float) -> None:
        """Changes the mean velocity, in m/s, from the next chunk on.

        Raises:
            MisconfigurationException: if the walk is recorded.
        """
        if self._recorded is not None:
            raise MisconfigurationException(
                f"source={self.origin!r} is a recording: its speed_mean can't be {value}"
            )
        self.stream.source.mean = value


def sargolini(circumference: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A foraging rat's angle around the middle of its box, as a place on a circular track.

    Recorded by Sargolini et al. (2006), rat 11084-03020501_t2c1; it comes with ratinabox.

    Args:
        circumference: metres, of the track that the angle is laid on.

    Returns:
        Times `[N]` in seconds and places `[N]` in metres.

    Raises:
        ModuleNotFoundError: if ratinabox is missing.
    """
    from importlib.util import find_spec

    found = find_spec("ratinabox")  # reading its file needs no import of it, which would take seconds
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "the rat's walk comes with ratinabox: pip install 'lightning-plasticity[trajectories]'"
        )
    with np.load(Path(found.origin).parent / "data" / "sargolini.npz") as recording:
        time, position = recording["t"].astype(np.float64), recording["pos"].astype(np.float64)
    middle = (position.min(0) + position.max(0)) / 2
    angle = np.arctan2(position[:, 1] - middle[1], position[:, 0] - middle[0])
    return time, angle / (2 * np.pi) % 1 * circumference


def _read_file(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not path.is_file():
        raise MisconfigurationException(f"source={str(path)!r} is neither walk, sargolini nor a file")
    with np.load(path) as recording:
        if not {"t", "position"} <= set(recording.files):
            raise MisconfigurationException(f"source={str(path)!r} must hold arrays t and position")
        time, place = recording["t"].astype(np.float64), recording["position"].astype(np.float64)
    if time.ndim != 1 or time.shape != place.shape or not (np.diff(time) > 0).all():
        raise MisconfigurationException(
            f"source={str(path)!r}: t must rise and have the shape of position, [N]"
        )
    return time, place
