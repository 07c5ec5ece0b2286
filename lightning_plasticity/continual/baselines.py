"""SAFE without one of its parts, and the methods it is compared with: settings of the same module."""

from typing import Any, NamedTuple

from lightning_plasticity.continual.settings import Losses, Prediction


class Run(NamedTuple):
    """One training, from which several variants can be read.

    Attributes:
        losses: fields of `Losses` that differ.
        adapt: as in `SAFE`.
        joint: all classes in one session.
        starts_as: run whose first session is the same, so that it needs to be trained once.
    """

    losses: dict[str, float]
    adapt: str = "all"
    joint: bool = False
    starts_as: str | None = None


class Variant(NamedTuple):
    """A method: whose training, which prediction, and which learner answers.

    Attributes:
        run: name of its run.
        prediction: fields of `Prediction` that differ.
        learner: `"aggregate"`, `"slow"` or `"fast"`.
    """

    run: str
    prediction: dict[str, Any]
    learner: str = "aggregate"


CROSSED = {"slow_to_fast": 1.0, "fast_to_slow": 1.0}

RUNS = {
    "SAFE": Run({}),
    "crossed": Run(CROSSED, starts_as="SAFE"),
    "not aligned": Run({"alignment": 0.0}, starts_as="SAFE"),
    "RanPAC": Run({"diagonal": 0.0, "redundancy": 0.0}, adapt="first"),
    "no transfer": Run({"diagonal": 0.0, "redundancy": 0.0}, starts_as="RanPAC"),
    "frozen": Run({}, adapt="none"),
    "joint": Run({}, joint=True),
}

VARIANTS = {
    "SAFE": Variant("SAFE", {}),
    "slow only": Variant("SAFE", {}, "slow"),
    "fast only": Variant("SAFE", {}, "fast"),
    "plain average": Variant("SAFE", {"gamma": 0.0}),
    "gamma 100": Variant("SAFE", {"gamma": 100.0}),
    "stale statistics": Variant("SAFE", {"statistics": "separate"}),
    "stale statistics, fast only": Variant("SAFE", {"statistics": "separate"}, "fast"),
    "pooled statistics": Variant("SAFE", {"statistics": "pooled"}),
    "with cross-classification": Variant("crossed", {}),
    "with cross-classification, stale": Variant("crossed", {"statistics": "separate"}),
    "no alignment": Variant("not aligned", {}),
    "no transfer loss": Variant("no transfer", {}),
    "RanPAC": Variant("RanPAC", {}, "slow"),
    "naive sequential": Variant("not aligned", {"statistics": "separate"}, "fast"),
    "frozen + ridge": Variant("frozen", {}, "slow"),
    "nearest class mean": Variant("frozen", {"head": "means"}, "slow"),
    "joint": Variant("joint", {}, "slow"),
}


def settings(run: str, losses: Losses) -> dict[str, Any]:
    """`SAFE`'s arguments for a run, from those of the default."""
    given = RUNS[run]
    return {"losses": losses.plain() | given.losses, "adapt": given.adapt}


def predictions(run: str, default: Prediction) -> dict[str, Prediction]:
    """How the variants of a run predict, each distinct one once, by a name."""
    found = {}
    for variant in VARIANTS.values():
        if variant.run == run:
            found[key(variant)] = Prediction.of(default.plain() | variant.prediction)
    return found


def key(variant: Variant) -> str:
    """Name of a variant's prediction."""
    return ", ".join(f"{name}={value}" for name, value in variant.prediction.items()) or "default"
