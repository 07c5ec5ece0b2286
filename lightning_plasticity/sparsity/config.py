"""SparsityConfig: every setting of a sparse training method, checked in one place."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pkgutil import resolve_name
from typing import Literal, TypeVar, get_args

from lightning_plasticity.sparsity import scores
from lightning_plasticity.sparsity.granularity import Granularity, Groups
from lightning_plasticity.sparsity.maskable import check_patterns, matches
from lightning_plasticity.sparsity.schedules import Schedule, as_schedule, check_fraction_or_schedule
from lightning_plasticity.sparsity.scores import Score

Scope = Literal["global", "layer"]
Distribution = Literal["erk", "uniform"]
Sparsity = float | Schedule | Mapping[str, float | Schedule]
T = TypeVar("T")

SCORES: dict[str, Score] = {
    "magnitude": scores.magnitude,
    "gradient": scores.gradient,
    "sensitivity": scores.sensitivity,
    "random": scores.random,
}


@dataclass(frozen=True)
class SparsityConfig:
    """What a sparse training method does, and when.

    Attributes:
        sparsity: Fraction of masked units, in [0, 1): a number (constant), a schedule over optimizer steps,
            or a mapping of name pattern to either, one per layer. A schedule must not fall.
        regrow_ratio: Fraction of the active connections exchanged at an update, in [0, 1]: a number
            (constant) or a schedule.
        update_every: Optimizer steps between updates.
        drop: Score of what is pruned and dropped: ``"magnitude"``, ``"sensitivity"``, ``"random"`` or a
            function ``(weight, gradient, generator) -> scores``.
        grow: Score of what grows: ``"gradient"``, ``"random"`` or such a function.
        scope: Pruning ranks weights over all layers (``"global"``) or in each (``"layer"``). Filters and N:M
            groups are always ranked in their layer.
        distribution: Densities of the layers where the method has to choose them (initial masks, layer
            scope): ``"erk"`` or ``"uniform"``. Filters and N:M groups have one density in all layers.
        granularity: ``"weight"``, ``"filter"`` or an N:M string.
        initial: Score that picks the initial masks where the run starts sparse: ``"random"`` or
            ``"magnitude"`` (for weights that are trained already).
        allow_readd: Whether a connection dropped in an update may grow back in the same update, as in the
            authors' code.
        track_exploration: Keep a second mask of all positions that were ever active, for the exploration rate
            of ITOP (Liu et al. 2021b); one more byte a weight.
        seed: Seed of initial masks, random growth and tie-breaks.

    Raises:
        ValueError: For any value out of its range; names the argument and the way out.
    """

    sparsity: Sparsity = 0.9
    regrow_ratio: float | Schedule = 0.0
    update_every: int = 100
    drop: str | Score = "magnitude"
    grow: str | Score = "gradient"
    scope: Scope = "global"
    distribution: Distribution = "erk"
    granularity: str = "weight"
    initial: Literal["random", "magnitude"] = "random"
    allow_readd: bool = True
    track_exploration: bool = False
    seed: int = 0
    pattern: Granularity = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check everything that can be checked without a model."""
        object.__setattr__(self, "pattern", Granularity.parse(self.granularity))
        if (
            isinstance(self.update_every, bool)
            or not isinstance(self.update_every, int)
            or self.update_every < 1
        ):
            raise ValueError(
                f"update_every={self.update_every!r} must be a positive number of optimizer steps"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed={self.seed!r} must be an int")
        _check_choice("scope", self.scope, get_args(Scope))
        _check_choice("distribution", self.distribution, get_args(Distribution))
        _check_choice("initial", self.initial, ("random", "magnitude"))
        for argument in ("drop", "grow"):
            _score(argument, getattr(self, argument))
        if self.drop == "gradient":
            raise ValueError(
                "drop='gradient' would drop what has converged; choose 'magnitude', 'sensitivity' or 'random'"
            )
        check_fraction_or_schedule("regrow_ratio", self.regrow_ratio, closed=True)
        for value in self.sparsity.values() if isinstance(self.sparsity, Mapping) else [self.sparsity]:
            check_fraction_or_schedule("sparsity", value)
        if isinstance(self.sparsity, Mapping) and not self.sparsity:
            raise ValueError(
                "sparsity={} names no layer; give a number or a mapping of name pattern to number"
            )

    @property
    def drop_score(self) -> Score:
        """The drop score as a function."""
        return _score("drop", self.drop)

    @property
    def grow_score(self) -> Score:
        """The grow score as a function."""
        return _score("grow", self.grow)

    @property
    def sparsity_schedules(self) -> dict[str, Schedule]:
        """Name pattern to schedule; one pattern ``"*"`` for a common sparsity."""
        values = self.sparsity if isinstance(self.sparsity, Mapping) else {"*": self.sparsity}
        return {pattern: as_schedule(value) for pattern, value in values.items()}

    @property
    def regrow_schedule(self) -> Schedule:
        """The regeneration ratio as a schedule."""
        return as_schedule(self.regrow_ratio)

    def named_layers(self, layers: Mapping[str, T]) -> dict[str, T]:
        """The layers that have a sparsity: all, or those that a mapping of sparsities names.

        Raises:
            ValueError: If a pattern of the mapping matches none.
        """
        if not isinstance(self.sparsity, Mapping):
            return dict(layers)
        check_patterns("sparsity", list(self.sparsity), layers)
        return {name: layer for name, layer in layers.items() if matches(name, list(self.sparsity))}

    def for_layers(self, names: Iterable[str]) -> "SparsityConfig":
        """The same settings for some layers: a mapping of sparsities keeps the patterns that match one."""
        if not isinstance(self.sparsity, Mapping):
            return self
        named = list(names)
        kept = {p: value for p, value in self.sparsity.items() if any(matches(name, [p]) for name in named)}
        return replace(self, sparsity=kept)

    def check_schedules(self, total: int) -> None:
        """Check schedules over a run of ``total`` optimizer steps.

        Raises:
            ValueError: If sparsity leaves [0, 1) or falls, or never reaches the N:M pattern asked for, or the
                regrowth ratio leaves [0, 1].
        """
        steps = sorted({*range(0, total + 1, max(1, total // 200)), total})
        if not all(0.0 <= self.regrow_schedule(step, total) <= 1.0 for step in steps):
            raise ValueError(f"regrow_ratio={self.regrow_ratio} leaves [0, 1] during the run")
        for name, schedule in self.sparsity_schedules.items():
            values = [schedule(step, total) for step in steps]
            if not all(0.0 <= value < 1.0 for value in values):
                raise ValueError(f"sparsity={schedule} leaves [0, 1) during the run for '{name}'")
            if any(later < earlier - 1e-12 for earlier, later in pairwise(values)):
                raise ValueError(
                    f"sparsity={schedule} falls during the run for '{name}'; connections cannot be added back"
                )
            if (
                isinstance(self.pattern, Groups)
                and self.pattern.per_group(1.0 - values[-1]) != self.pattern.n
            ):
                raise ValueError(
                    f"sparsity ends at {values[-1]} for '{name}', granularity='{self.pattern}' needs at "
                    f"least {1 - self.pattern.n / self.pattern.m:g}: raise sparsity"
                )


def _score(argument: str, value: str | Score) -> Score:
    """Look a score up by its name or import path."""
    if not isinstance(value, str):
        return value
    if "." not in value:
        _check_choice(argument, value, tuple(SCORES))
        return SCORES[value]
    try:
        found: Score = resolve_name(value)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{argument}={value!r} cannot be imported: {error}") from error
    return found


def _check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{argument}={value!r} must be one of {', '.join(map(repr, choices))}")
