"""What a stream of archetypes is made of: who takes part in a federation, and what there is to see when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

Attack = Literal["noise", "fake", "ones", "replay", "nan"]


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
    examples: int | list[int] = 60
    quality: float | list[float] = 0.8
    supports: list[list[int]] | None = None
    attackers: list[Attack] = field(default_factory=list)
    absence: float = 0.0
    leaving: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks what can be checked without the archetypes."""
        if self.number < 1:
            raise MisconfigurationException(f"clients.number={self.number} must be 1 or more")
        for name in ("examples", "quality", "supports"):
            values = getattr(self, name)
            if isinstance(values, Sequence) and len(values) != self.number:
                raise MisconfigurationException(
                    f"clients.{name}={values} must have one entry for each of {self.number} clients"
                )
        if min(_each(self.examples)) < 0:
            raise MisconfigurationException(f"clients.examples={self.examples} must not be negative")
        if not all(0 <= quality <= 1 for quality in _each(self.quality)):
            raise MisconfigurationException(f"clients.quality={self.quality} must lie in [0, 1]")
        unknown = sorted(set(self.attackers) - set(get_args(Attack)))
        if unknown:
            raise MisconfigurationException(
                f"clients.attackers={unknown} must be of {', '.join(get_args(Attack))}"
            )
        if not 0 <= self.absence < 1:
            raise MisconfigurationException(f"clients.absence={self.absence} must be 0 or more and below 1")
        strangers = sorted(set(self.leaving) - set(range(self.number + len(self.attackers))))
        if strangers:
            raise MisconfigurationException(f"clients.leaving names clients that there are not: {strangers}")

    def check(self, num_archetypes: int) -> None:
        """Checks the supports against the archetypes.

        Raises:
            MisconfigurationException: if a support names an archetype that there is not.
        """
        for client, support in enumerate(self.supports or []):
            if not all(0 <= archetype < num_archetypes for archetype in support):
                raise MisconfigurationException(
                    f"clients.supports[{client}]={support} must name archetypes 0 to {num_archetypes - 1}"
                )

    def attack(self, client: int) -> Attack | None:
        """What a client does, None for an honest one."""
        return self.attackers[client - self.number] if client >= self.number else None

    def size(self, client: int) -> int:
        """Examples that a client brings to a round."""
        return self.examples if isinstance(self.examples, int) else self.examples[self._honest(client)]

    def reliability(self, client: int) -> float:
        """Quality `r` of a client's examples."""
        return self.quality[self._honest(client)] if isinstance(self.quality, list) else self.quality

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
            MisconfigurationException: if a setting is out of range.
        """
        old = num_archetypes - self.novel
        limits: Mapping[str, tuple[float, float, float]] = {
            "novel": (self.novel, 0, num_archetypes - 1),
            "novel_from": (self.novel_from, 1, rounds - 1 if self.novel else torch.inf),
            "ramp": (self.ramp, 1, torch.inf),
            "novel_share": (self.novel_share, 0, 1),
            "minor": (self.minor, 0, 1 / max(old, 1)),
            "movement": (self.movement, 0, 0.5),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise MisconfigurationException(
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


def _each(values: float | list[int] | list[float]) -> Sequence[float]:
    return values if isinstance(values, list) else [values]
