"""Settings of the model, and the presets: the paper's two experiments and ours, which tracks for a minute."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

Task = Literal["track", "latents"]
Activation = Literal["retanh", "linear"]
Preset = Literal["track_tuned", "track", "latents", "remap", "remap_anchored"]

MAPS = {
    "track": ("hpc_apical", "mec_basal", "mec_recurrent", "mec_right", "mec_left"),
    "latents": ("hpc_apical", "mec_basal", "mec_recurrent"),
}
"""Plastic maps of each task, by the dendrite they end on; from the third on it is the MEC's apical one."""


@dataclass(frozen=True)
class Settings:
    """Everything that is fixed while a model runs (George et al., NeurIPS 2023). SI units.

    The presets are the authors' code (`track`, `latents`, `remap`) and ours (`track_tuned`,
    `remap_anchored`).

    Attributes:
        task: `track` (place fields, ring of MEC cells, conjunctive cells) or `latents`.
        dt: seconds of a step. The learning rates are **per step**: a smaller `dt` learns faster.
        hpc: `n_p`, hippocampal cells and features.
        mec: `n_g`, entorhinal cells; the track has as many conjunctive cells for either direction.
        latents: signals that the features of `latents` mix.
        activation: of the MEC's dendrites, `max(0, tanh V)` or linear; the hippocampal ones are linear.
        bias: whether the maps between the layers have one.
        tau: seconds, time constant of the plasticity induction.
        sleep_steps: first steps of a theta cycle, in which apical dendrites drive the somas.
        wake_steps: the others, in which basal dendrites do.
        eta: learning rate per step of each plastic map; 0 freezes it.
        l1: decay of each map towards 0 by a constant.
        l2: decay of each map towards 0 in proportion.
        initial: standard deviation of each map's initial weights, times the root of its inputs.
        basal_gain: `W_gB = basal_gain * I` without bias at the start; None: random, as the others.
        noise: standard deviation of the dendrites' noise.
        noise_mec_apical: of the MEC's apical dendrites.
        noise_tau: seconds, its correlation time.
        threshold: of the conjunctive cells.
        full_speed: m/s at which a velocity cell has rate 1.
        lag: whether conjunctive cells feel the velocity of the step before, as in the authors' code, or the
            one of the coming step.
        field_width: metres, standard deviation of a place field.
        field_jitter: of the fields' centres, in units of their distance.
        circumference: metres, of the track.
        anneal_from: part of the run after which the learning rates fall, by a cosine.
        anneal_to: part of the learning rates at the end.
        anchor_seconds: what `Remap` does after the switch: so long MEC stays apical.
        speed_mean_after: m/s, mean velocity after the switch.
    """

    task: Task = "track"
    dt: float = 0.025
    hpc: int = 100
    mec: int = 100
    latents: int = 5
    activation: Activation = "retanh"
    bias: bool = True
    tau: float = 0.1
    sleep_steps: int = 4
    wake_steps: int = 4
    eta: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(MAPS["track"], 0.01))
    l1: Mapping[str, float] = field(default_factory=dict)
    l2: Mapping[str, float] = field(default_factory=dict)
    initial: Mapping[str, float] = field(
        default_factory=lambda: {
            "hpc_apical": 1.0,
            "mec_basal": 1.0,
            "mec_recurrent": 0.2,
            "mec_right": 0.2,
            "mec_left": 0.2,
        }
    )
    basal_gain: float | None = None
    noise: float = 0.01
    noise_mec_apical: float = 0.01
    noise_tau: float = 0.3
    threshold: float = 1.0
    full_speed: float = 0.5
    lag: bool = True
    field_width: float = 0.06
    field_jitter: float = 0.45
    circumference: float = 1.0
    anneal_from: float = 1.0
    anneal_to: float = 1.0
    anchor_seconds: float = 0.0
    speed_mean_after: float = 0.2

    def __post_init__(self) -> None:
        for name, choices in {"task": Task, "activation": Activation}.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(get_args(choices))}"
                )
        positive = ("dt", "hpc", "mec", "latents", "noise_tau", "full_speed", "field_width", "circumference")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("tau", "noise", "noise_mec_apical", "sleep_steps", "wake_steps", "anchor_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.steps_per_cycle != self.sleep_steps + self.wake_steps or self.steps_per_cycle < 1:
            raise ValueError(
                f"sleep_steps={self.sleep_steps}, wake_steps={self.wake_steps}: whole steps, at least one"
            )
        for name in ("eta", "l1", "l2", "initial"):
            self._check_maps(name)

    def _check_maps(self, name: str) -> None:
        given: Mapping[str, float] = getattr(self, name)
        unknown = sorted(set(given) - set(self.maps))
        if unknown:
            raise ValueError(f"{name} names {', '.join(unknown)}; the maps are {', '.join(self.maps)}")
        wrong = {key: value for key, value in given.items() if not value >= 0}
        if wrong:
            raise ValueError(f"{name}={wrong} must not be negative")

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the plastic maps."""
        return MAPS[self.task]

    @property
    def conjunctive(self) -> int:
        """Conjunctive cells of both directions."""
        return 2 * self.mec if self.task == "track" else 0

    @property
    def steps_per_cycle(self) -> int:
        """Steps of a theta cycle."""
        return int(self.sleep_steps + self.wake_steps)

    @property
    def trace_rate(self) -> float:
        """`a = dt / tau` of the plasticity induction; 1 where it has no memory."""
        return min(1.0, self.dt / self.tau) if self.tau else 1.0

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Rows (cells) and columns (inputs, then the bias if there is one) of every map."""
        bias = int(self.bias)
        shapes = {"hpc_apical": (self.hpc, self.mec + bias), "mec_basal": (self.mec, self.hpc + bias)}
        return {name: shapes.get(name, (self.mec, self.mec)) for name in self.maps}

    def replace(self, **changes: Any) -> "Settings":
        """Gives other settings; changes of `eta`, `l1`, `l2` and `initial` are merged.

        Raises:
            ValueError: if there is no such setting.
        """
        known = {item.name for item in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ValueError(f"overrides={unknown}: no such setting; there are {', '.join(sorted(known))}")
        for name in ("eta", "l1", "l2", "initial"):
            if name in changes:
                if not isinstance(changes[name], Mapping):
                    raise ValueError(f"overrides: {name}={changes[name]!r} must be a mapping by weights")
                changes[name] = {**getattr(self, name), **changes[name]}
        return replace(self, **changes)


_IDENTITY = Settings(basal_gain=1.0, eta={**dict.fromkeys(MAPS["track"], 0.01), "mec_basal": 0.0})
_TUNED = _IDENTITY.replace(
    basal_gain=3.0,
    sleep_steps=6,
    wake_steps=2,
    threshold=0.5,
    full_speed=3.0,
    lag=False,
    anneal_from=0.5,
    anneal_to=0.02,
    speed_mean_after=0.0,
)

PRESETS: Mapping[str, Settings] = {
    "track": Settings(),
    "remap": _IDENTITY,
    "track_tuned": _TUNED,
    "remap_anchored": _TUNED.replace(anchor_seconds=60.0),
    "latents": Settings(
        task="latents",
        hpc=50,
        mec=5,
        activation="linear",
        bias=False,
        eta=dict.fromkeys(MAPS["latents"], 0.001),
        l2={"mec_recurrent": 0.005},
        initial={"hpc_apical": 1.0, "mec_basal": 1.0, "mec_recurrent": 0.1},
        noise_mec_apical=0.05,
    ),
}


def preset(name: str) -> Settings:
    """Gives the settings of a preset.

    Raises:
        ValueError: if there is no such preset.

    Example:
        >>> preset("track_tuned").sleep_steps, preset("track").sleep_steps
        (6, 4)
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r} must be one of {', '.join(PRESETS)}")
    return PRESETS[name]
