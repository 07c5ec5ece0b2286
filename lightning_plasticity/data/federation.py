"""What a federation's clients see: noisy views of hidden archetypes, round by round.

Knows nothing of Lightning, as clients elsewhere have no Trainer. Everything in a round follows from seed,
round and client alone, so that each client can draw its own part, wherever it runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_plasticity.data.patterns import corrupt, signs
from lightning_plasticity.data.splits import generator_for

Attack = Literal["noise", "fake", "ones", "replay", "nan"]

_PRESENT, _EXAMPLES, _CUES, _MOVES, _FAKES = range(1, 6)  # the random streams of a seed


@dataclass(frozen=True)
class Clients:
    """Who takes part, how much each brings, and how good it is.

    Attributes:
        number: honest clients.
        examples: `M_c`, examples a round, of all or of each honest client; attackers bring as many as the
            first.
        quality: `r_c` in [0, 1], of all or of each honest client; attackers have that of the first.
        supports: the archetypes that each honest client can see; None: all see all.
        attackers: what each further client does: ``noise`` sends coin flips, ``fake`` an archetype of its
            own, ``ones`` nothing but +1, ``replay`` its first honest batch again and again, ``nan`` honest
            examples with one entry that is not a number.
        absence: probability that a client misses a round.
        leaving: client -> round from which on it is gone.

    Example:
        >>> Clients(number=3, examples=[30, 60, 120]).size(2)
        120
    """

    number: int = 4
    examples: int | Sequence[int] = 60
    quality: float | Sequence[float] = 0.8
    supports: Sequence[Sequence[int]] | None = None
    attackers: Sequence[Attack] = field(default_factory=list)
    absence: float = 0.0
    leaving: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks what can be checked without the archetypes."""
        if self.number < 1:
            raise ValueError(f"clients.number={self.number} must be 1 or more")
        for name in ("examples", "quality", "supports"):
            values = getattr(self, name)
            if isinstance(values, Sequence) and len(values) != self.number:
                raise ValueError(
                    f"clients.{name}={values} must have one entry for each of {self.number} clients"
                )
        if min(_each(self.examples)) < 0:
            raise ValueError(f"clients.examples={self.examples} must not be negative")
        if not all(0 <= quality <= 1 for quality in _each(self.quality)):
            raise ValueError(f"clients.quality={self.quality} must lie in [0, 1]")
        unknown = sorted(set(self.attackers) - set(get_args(Attack)))
        if unknown:
            raise ValueError(f"clients.attackers={unknown} must be of {', '.join(get_args(Attack))}")
        if not 0 <= self.absence < 1:
            raise ValueError(f"clients.absence={self.absence} must be 0 or more and below 1")
        strangers = sorted(set(self.leaving) - set(range(self.number + len(self.attackers))))
        if strangers:
            raise ValueError(f"clients.leaving names clients that there are not: {strangers}")

    def check(self, num_archetypes: int) -> None:
        """Checks the supports against the archetypes.

        Raises:
            ValueError: if a support names an archetype that there is not.
        """
        for client, support in enumerate(self.supports or []):
            if not all(0 <= archetype < num_archetypes for archetype in support):
                raise ValueError(
                    f"clients.supports[{client}]={support} must name archetypes 0 to {num_archetypes - 1}"
                )

    def attack(self, client: int) -> Attack | None:
        """What a client does, None for an honest one."""
        return self.attackers[client - self.number] if client >= self.number else None

    def size(self, client: int) -> int:
        """Examples that a client brings to a round."""
        return self.examples[self._honest(client)] if isinstance(self.examples, Sequence) else self.examples

    def reliability(self, client: int) -> float:
        """Quality `r` of a client's examples."""
        return self.quality[self._honest(client)] if isinstance(self.quality, Sequence) else self.quality

    def _honest(self, client: int) -> int:
        return client if client < self.number else 0


@dataclass(frozen=True)
class Exposure:
    """What there is to see, and when.

    Attributes:
        drift: the old archetypes have their time one after another: one has all but `minor` of the examples
            for each of the others, for an equal part of the stream.
        minor: share of each archetype whose time it is not.
        novel: archetypes, the last ones, that nobody sees before round `novel_from`.
        novel_from: first round with the novel ones.
        ramp: rounds over which their share grows, evenly.
        novel_share: what it grows to, all novel ones together.
        movement: probability that a pixel of an archetype flips between two rounds.

    Example:
        >>> Exposure(drift=True).mixture(round=0, num_archetypes=3, rounds=24)
        tensor([0.9600, 0.0200, 0.0200])
    """

    drift: bool = False
    minor: float = 0.02
    novel: int = 0
    novel_from: int = 12
    ramp: int = 4
    novel_share: float = 0.5
    movement: float = 0.0

    def check(self, num_archetypes: int, rounds: int) -> None:
        """Checks the settings against the archetypes and the stream's length.

        Raises:
            ValueError: if a setting is out of range.
        """
        old = num_archetypes - self.novel
        limits: Mapping[str, tuple[float, float, float]] = {
            "novel": (self.novel, 0, num_archetypes - 1),
            "novel_from": (self.novel_from, 1, torch.inf),
            "ramp": (self.ramp, 1, torch.inf),
            "novel_share": (self.novel_share, 0, 1),
            "minor": (self.minor, 0, 1 / max(old, 1)),
            "movement": (self.movement, 0, 0.5),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise ValueError(
                    f"exposure.{name}={value} must lie between {low} and {high:g} "
                    f"({num_archetypes} archetypes, {rounds} rounds)"
                )

    def mixture(self, round: int, num_archetypes: int, rounds: int) -> Tensor:
        """Shares `[K]` of the archetypes in a round, float32."""
        old = num_archetypes - self.novel
        shares = torch.full((old,), 1 / old)
        if self.drift:
            shares = torch.full((old,), self.minor)
            shares[min(round * old // rounds, old - 1)] = 1 - (old - 1) * self.minor
        grown = min(max((round - self.novel_from + 1) / self.ramp, 0.0), 1.0)
        fresh = self.novel_share * grown if self.novel else 0.0
        return torch.cat([(1 - fresh) * shares, torch.full((self.novel,), fresh / max(self.novel, 1))])


def _each(values: float | Sequence[float]) -> Sequence[float]:
    return values if isinstance(values, Sequence) else [values]


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


class Federation:
    """The examples of every client in every round, from hidden archetypes that only the caller knows.

    An example of archetype `xi` keeps each pixel of it with probability `(1 + r)/2` and has it flipped
    otherwise; `r` is the client's quality.

    Args:
        start: archetypes of round 0, +-1 `[K, N]`.
        clients: who takes part.
        exposure: what there is to see.
        rounds: length of the stream, over which drift is spread.
        seed: of everything random.

    Raises:
        ValueError: if settings do not fit each other.

    Example:
        >>> federation = Federation(torch.ones(2, 50), Clients(number=2, examples=[30, 40]))
        >>> federation.examples(round=7, client=1).shape
        torch.Size([40, 50])
    """

    def __init__(
        self,
        start: Tensor,
        clients: Clients,
        exposure: Exposure | None = None,
        rounds: int = 24,
        seed: int = 0,
    ) -> None:
        self.start, self.clients, self.exposure = start, clients, exposure or Exposure()
        self.rounds, self.seed = rounds, seed
        self.clients.check(len(start))
        self.exposure.check(len(start), rounds)
        self.num_features = start.shape[1]
        self.num_clients = clients.number + len(clients.attackers)
        self._moved = [start]

    def archetypes(self, round: int = 0) -> Tensor:
        """The hidden truth of a round, +-1 float32 `[K, N]`; other rounds differ only with `movement`."""
        if not self.exposure.movement:
            return self.start
        while len(self._moved) <= round:
            draw = torch.rand(self.start.shape, generator=generator_for(self.seed, len(self._moved), _MOVES))
            self._moved.append(torch.where(draw < self.exposure.movement, -1.0, 1.0) * self._moved[-1])
        return self._moved[round]

    def mixture(self, round: int, client: int) -> Tensor:
        """Shares `[K]` of the archetypes in what an honest client sees; zeros if it sees nothing."""
        shares = self.exposure.mixture(round, len(self.start), self.rounds)
        support = self.clients.supports[client] if self.clients.supports is not None else None
        if support is not None:
            kept = torch.zeros_like(shares)
            kept[list(support)] = shares[list(support)]
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
        return torch.stack(shares).sum(0) > 0 if shares else torch.zeros(len(self.start), dtype=torch.bool)

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
            noise = signs((size, self.num_features), generator)
            return noise if attack == "noise" else torch.ones_like(noise)
        if attack == "fake":
            fake = signs((1, self.num_features), generator_for(self.seed + client, stream=_FAKES))
            return corrupt(fake.expand(size, -1), (1 - quality) / 2, generator)
        shares = self.mixture(drawn_in, client if attack is None else 0)
        if not bool(shares.any()) or size == 0:
            return torch.zeros(0, self.num_features)
        chosen = torch.multinomial(shares, size, replacement=True, generator=generator)
        examples = corrupt(self.archetypes(drawn_in)[chosen], (1 - quality) / 2, generator)
        if attack == "nan":
            examples[0, 0] = torch.nan
        return examples

    def cues(self, round: int, corruption: float = 0.2, copies: int = 10) -> Cues:
        """Corrupted copies of every archetype seen by the end of a round.

        Args:
            round: from 0.
            corruption: probability that a pixel is flipped.
            copies: of each archetype.
        """
        labels = self.seen(round).nonzero().flatten().repeat_interleave(copies)
        originals = self.archetypes(round)[labels]
        return Cues(corrupt(originals, corruption, generator_for(self.seed, round, _CUES)), originals, labels)
