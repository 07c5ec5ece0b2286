"""What can be set in SAFE, in three groups: its losses, its optimizer and its prediction."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from lightning_plasticity.continual.ridge import PENALTIES

_Group = TypeVar("_Group", bound="Group")


class Group:
    """A group of settings, which can also be given as a mapping, as YAML and checkpoints have it."""

    @classmethod
    def of(cls: type[_Group], given: "_Group | Mapping[str, Any] | None") -> _Group:
        """Makes the group of a group, of a mapping or of None, its defaults.

        Raises:
            ValueError: for a name that it does not have.
        """
        if isinstance(given, cls):
            return given
        values: dict[str, Any] = dict(given or {})  # type: ignore[arg-type]
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"{cls.__name__} has no {unknown}; it has {', '.join(known)}")
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """As a dictionary of plain types, which a checkpoint can hold."""
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    def _require(self, **rules: tuple[bool, str]) -> None:
        for name, (fine, rule) in rules.items():
            if not fine:
                raise ValueError(f"{type(self).__name__}: {name}={getattr(self, name)!r} {rule}")


@dataclass(frozen=True)
class Losses(Group):
    """Weights of the terms beside the cross-entropy, and how the authors' variants are had.

    Attributes:
        diagonal: `a_diag`, transfer loss in session 1.
        redundancy: `a_rdn`, likewise.
        alignment: `b_cos`, later sessions.
        slow_to_fast: `b_cc` of the slow learner's features in the fast head, later sessions.
        fast_to_slow: `b_cc` of the fast learner's features in the slow head, likewise.
        transfer_reduction: `"sum"` as the authors' code, `"mean"` as the paper.
        standardize: Barlow Twins' scaling in the transfer loss.
        alignment_reduction: `"mean"`, or `"sum"` over the batch as the authors' code.
    """

    diagonal: float = 1.0
    redundancy: float = 0.0
    alignment: float = 20.0
    slow_to_fast: float = 1.0
    fast_to_slow: float = 1.0
    transfer_reduction: Literal["sum", "mean"] = "sum"
    standardize: bool = False
    alignment_reduction: Literal["sum", "mean"] = "mean"

    def __post_init__(self) -> None:
        names = ("diagonal", "redundancy", "alignment", "slow_to_fast", "fast_to_slow")
        self._require(
            **{
                name: (0 <= getattr(self, name) < float("inf"), "must be 0 or more and finite")
                for name in names
            }
        )


@dataclass(frozen=True)
class Optimization(Group):
    """SGD with momentum, and a cosine schedule over epochs that restarts with each session.

    Attributes:
        lr: of the adapter in session 1.
        later_lr: of the adapter in later sessions; None: `lr`.
        head_lr: of the cosine head and its scale; None: as the adapter's.
        momentum: emptied at the start of each session.
        weight_decay: of adapter and head; the scale has none.
        schedule_epochs: epochs in which the rate falls to zero; None: those of the session. The authors'
            settings have 20 for sessions of 15.
    """

    lr: float = 0.05
    later_lr: float | None = 0.01
    head_lr: float | None = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule_epochs: int | None = None

    def __post_init__(self) -> None:
        rates = {name: getattr(self, name) for name in ("lr", "later_lr", "head_lr")}
        self._require(
            **{name: (rate is None or rate > 0, "must be above 0") for name, rate in rates.items()},
            momentum=(0 <= self.momentum < 1, "must be 0 or more and below 1"),
            weight_decay=(self.weight_decay >= 0, "must be 0 or more"),
            schedule_epochs=(self.schedule_epochs is None or self.schedule_epochs > 0, "must be above 0"),
        )


@dataclass(frozen=True)
class Prediction(Group):
    """Heads and their mixture.

    Attributes:
        head: `"ridge"`, or `"means"`: the class whose mean feature is nearest in angle, as the simplest
            baseline.
        random_features: `M` of the ridge heads.
        penalties: candidates of the ridge parameter; the authors' values are these times `M`.
        statistics: what the fast head knows of old sessions. `"mapped"`: the slow learner's exact sums,
            carried over by a map of the drift; `"separate"`: the fast learner's own sums, stale;
            `"pooled"`: one pair of sums for both learners, as the authors' code.
        views: random views of each current image that the map is fitted on, beside the image itself.
        map_penalty: pull of the map towards the identity, see `fit_map`.
        gamma: of the entropy weights; 0 is the plain average.
        new_rows: cosine rows of new classes: `"mean"` of their features, or `"zeros"` as the authors' code,
            which makes the first gradients explode.
    """

    head: Literal["ridge", "means"] = "ridge"
    random_features: int = 10_000
    penalties: tuple[float, ...] = PENALTIES
    statistics: Literal["mapped", "separate", "pooled"] = "mapped"
    views: int = 2
    map_penalty: float = 3e-3
    gamma: float = 1.0
    new_rows: Literal["mean", "zeros"] = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "penalties", tuple(float(value) for value in self.penalties))
        self._require(
            head=(self.head in ("ridge", "means"), "must be ridge or means"),
            random_features=(self.random_features >= 1, "must be at least 1"),
            penalties=(bool(self.penalties) and min(self.penalties) > 0, "must be positive numbers"),
            statistics=(
                self.statistics in ("mapped", "separate", "pooled"),
                "must be mapped, separate or pooled",
            ),
            views=(self.views >= 0, "must be 0 or more"),
            map_penalty=(self.map_penalty > 0, "must be positive"),
            gamma=(0 <= self.gamma < float("inf"), "must be 0 or more and finite"),
            new_rows=(self.new_rows in ("mean", "zeros"), "must be mean or zeros"),
        )
