"""Chunks of an endless stream as a LightningDataModule that resumes inside an epoch."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

Chunk = dict[str, Tensor]


class Stream(IterableDataset[Chunk]):
    """A number of chunks from a source of chunks; a loaded state goes on inside the epoch.

    Args:
        source: with `take(steps)`, `state_dict` and `load_state_dict`.
        chunks: of an epoch.
        steps: of a chunk.
    """

    def __init__(self, source: Any, chunks: int, steps: int) -> None:
        self.source, self.chunks, self.steps, self.next = source, chunks, steps, 0

    def __len__(self) -> int:
        """Gives the chunks of an epoch."""
        return self.chunks

    def __iter__(self) -> Iterator[Chunk]:
        """Yields the chunks that are left of this epoch."""
        self.next %= self.chunks
        while self.next < self.chunks:
            chunk = self.source.take(self.steps)
            self.next += 1
            yield chunk

    def loader(self) -> DataLoader[Chunk]:
        """Gives the chunks as they are, in this process: drawing one takes less than handing it over."""
        warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__` defined")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        return DataLoader(self, batch_size=None, num_workers=0)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is."""
        return {"next": self.next, "source": self.source.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.next = state["next"]
        self.source.load_state_dict(state["source"])


def check_stream(minutes: float, dt: float, chunk_seconds: float) -> tuple[int, int]:
    """Chunks of a stream and steps of a chunk.

    Raises:
        MisconfigurationException: if they are no whole numbers.
    """
    steps, chunks = chunk_seconds / dt, minutes * 60 / chunk_seconds
    for name, value, text in (
        ("chunk_seconds", steps, f"chunk_seconds={chunk_seconds} must be whole steps of dt={dt}"),
        ("minutes", chunks, f"minutes={minutes} must be whole chunks of chunk_seconds={chunk_seconds}"),
    ):
        if not (math.isfinite(value) and value >= 1 and abs(value - round(value)) < 1e-6):
            raise MisconfigurationException(f"{text}, at least one, got {value:g} ({name})")
    return round(chunks), round(steps)


class StreamData(LightningDataModule):
    """A stream of chunks, of another seed in every model and process; checkpoints know where it is.

    Args:
        minutes: simulated, of an epoch.
        agents: `B`, that share a model.
        seed: model `m` of process `r` has `seed + r * models + m`.
        models: `M`.
        chunk_seconds: of a chunk, which is one training step.
        dt: seconds of a step.

    Attributes:
        chunks: of an epoch.
        steps: of a chunk.

    Raises:
        MisconfigurationException: if an argument is out of range.
    """

    def __init__(
        self, minutes: float, agents: int, seed: int, models: int, chunk_seconds: float, dt: float
    ) -> None:
        super().__init__()
        for name, number in {"agents": agents, "models": models}.items():
            if number < 1:
                raise MisconfigurationException(f"{name}={number} must be at least 1")
        if not dt > 0:
            raise MisconfigurationException(f"dt={dt} must be positive")
        self.chunks, self.steps = check_stream(minutes, dt, chunk_seconds)
        self.agents, self.seed, self.models, self.dt = agents, seed, models, dt
        self._stream: Stream | None = None
        self._loaded: dict[str, Any] | None = None

    @abstractmethod
    def _source(self, rank: int) -> Any:
        """Gives what a process's chunks are taken from: see `Stream`."""

    def seeds(self, rank: int) -> list[int]:
        """Gives the seed of each model of a process."""
        return [self.seed + rank * self.models + model for model in range(self.models)]

    @property
    def stream(self) -> Stream:
        """The stream of this process, made when it is first asked for."""
        if self._stream is None:
            rank = self.trainer.global_rank if self.trainer is not None else 0
            self._stream = Stream(self._source(rank), self.chunks, self.steps)
            if self._loaded is not None:
                saved = self._loaded["ranks"]
                if rank >= len(saved):
                    raise MisconfigurationException(
                        f"the checkpoint has the streams of {len(saved)} processes, not of {rank + 1}: "
                        "resume with as many"
                    )
                self._stream.load_state_dict(saved[rank])
        return self._stream

    def train_dataloader(self) -> DataLoader[Chunk]:
        """Gives the chunks of this process."""
        return self.stream.loader()

    def state_dict(self) -> dict[str, Any]:
        """Where the streams of all processes are."""
        return {"ranks": gather_objects(self.stream.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._loaded, self._stream = state, None


def gather_objects(mine: Any) -> list[Any]:
    """What every process has, in the order of ranks; of one process alone, a list of one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, mine)
    return every
