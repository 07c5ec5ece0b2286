"""Activity: one step and a stretch of steps of the two layers, in the order of the authors' code.

Pure functions on tensors; the leading dimension is of independent models, the last one of agents that share a
model. Layers are updated one after the other, and each sees what is already new:

    HPC    pB = z + n              pA = W_pA [g;1] + n            p = k pA + (1 - k) pB
    MEC    gB = f(W_gB [p;1]) + n  gA = f(W_gg g + W_gc c) + n    g = k gA + (1 - k) gB
    conjunctive cells              c = max(0, g +- u - threshold)

with the g and c of the step before on the right-hand sides of pA and gA. `k` is the theta gate's: 1 in sleep,
where apical dendrites (`A`, generative) drive the somas, and 0 in wake, where basal ones (`B`, inference) do.
Noise `n` is an Ornstein-Uhlenbeck process of each dendrite. A map is learned only from the activities of its
own step, so all learning of a step can follow its activity.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_plasticity.hippocampus.settings import Settings

Weights = Mapping[str, Tensor]
Learn = Callable[[str, Tensor, Tensor], None]
"""`learn(name, delta [M, n, B], presynaptic [M, m, B])`."""


@dataclass
class State:
    """All that activity carries from step to step: `M` models, `B` agents.

    Attributes:
        p: hippocampal rates `[M, n_p, B]`.
        g: entorhinal rates `[M, n_g, B]`.
        c: conjunctive rates `[M, 2 n_g, B]`, of movement to the right, then to the left.
        u: rate of the velocity cells, velocity over `full_speed` `[M, B]`.
        noise: of pA, pB, gA, gB `[M, 2 n_p + 2 n_g, B]`.
        step: steps so far.
    """

    p: Tensor
    g: Tensor
    c: Tensor
    u: Tensor
    noise: Tensor
    step: int = 0

    @classmethod
    def zeros(
        cls,
        settings: Settings,
        models: int = 1,
        agents: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "State":
        """Gives the state at rest."""

        def zeros(*size: int) -> Tensor:
            return torch.zeros(models, *size, agents, dtype=dtype, device=device)

        n_p, n_g = settings.hpc, settings.mec
        return cls(zeros(n_p), zeros(n_g), zeros(settings.conjunctive), zeros(), zeros(2 * (n_p + n_g)))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "step"}

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """Gives a state of whose tensors each went through a function."""
        return State(**{name: function(value) for name, value in self.tensors().items()}, step=self.step)


class Inputs(NamedTuple):
    """What drives `T` steps.

    Attributes:
        features: sensory input z `[T, M, n_p, B]`.
        speed: new rates u of the velocity cells `[T, M, B]`, of the velocity of the coming step; None without
            them. They change last: with `lag` the conjunctive cells still feel the rate before, which is of
            the velocity that led into the step; without, the new one.
        sleep: fractions k of HPC and MEC `[T, 2]`, on the CPU.
        noise: standard normal numbers `[T, M, 2 n_p + 2 n_g, B]`; None: dendrites without noise.
    """

    features: Tensor
    speed: Tensor | None
    sleep: Tensor
    noise: Tensor | None


class Dendrites(NamedTuple):
    """Rates of all dendrites after a step, noise included, and the MEC's slopes.

    Attributes:
        hpc_apical: pA `[M, n_p, B]`.
        hpc_basal: pB `[M, n_p, B]`.
        mec_apical: gA `[M, n_g, B]`.
        mec_basal: gB `[M, n_g, B]`.
        slope_apical: f'(V_A) `[M, n_g, B]`, at the potential without noise.
        slope_basal: f'(V_B) `[M, n_g, B]`.
    """

    hpc_apical: Tensor
    hpc_basal: Tensor
    mec_apical: Tensor
    mec_basal: Tensor
    slope_apical: Tensor
    slope_basal: Tensor


class Trace(NamedTuple):
    """What `T` steps leave behind.

    Attributes:
        p: hippocampal rates `[T, M, n_p, B]`.
        g: entorhinal rates `[T, M, n_g, B]`.
        error: mean over cells and agents of |basal - apical| in HPC and MEC `[T, M, 2]`.
    """

    p: Tensor
    g: Tensor
    error: Tensor


def activate(potential: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Rate and slope of MEC dendrites: `max(0, tanh V)` and its derivative, or V and 1.

    Args:
        potential: V, any shape.
        settings: of the model.
    """
    if settings.activation == "linear":
        return potential, torch.ones_like(potential)
    rate = potential.tanh().clamp_min(0.0)
    return rate, (1 - rate * rate) * (potential > 0)


def apply_map(weight: Tensor, rates: Tensor) -> Tensor:
    """`W x`, or `W [x;1]` where the map has a column more than there are rates: `[M, n, B]`."""
    inputs = rates.shape[1]
    if weight.shape[2] == inputs:
        return weight @ rates
    return torch.baddbmm(weight[:, :, inputs:], weight[:, :, :inputs], rates)


def with_bias(weight: Tensor, rates: Tensor) -> Tensor:
    """What a map's columns see: the rates, and a 1 if it has a bias."""
    if weight.shape[2] == rates.shape[1]:
        return rates
    return torch.cat([rates, torch.ones_like(rates[:, :1])], 1)


def noise_step(noise: Tensor, normal: Tensor, settings: Settings) -> Tensor:
    """Ornstein-Uhlenbeck step of all dendrites: `n - n dt / 0.3 + s sqrt(2 dt / 0.3) N(0, 1)`."""
    rate = settings.dt / settings.noise_tau
    scale = math.sqrt(2 * rate)
    jump = normal * (settings.noise * scale)
    if settings.noise_mec_apical != settings.noise:
        rows = slice(2 * settings.hpc, 2 * settings.hpc + settings.mec)
        jump[:, rows] = normal[:, rows] * (settings.noise_mec_apical * scale)
    return noise * (1 - rate) + jump


def conjunctive_rates(g: Tensor, speed: Tensor, settings: Settings) -> Tensor:
    """`max(0, g + u - threshold)`, then `max(0, g - u - threshold)`: `[M, 2 n_g, B]`.

    Args:
        g: rates of the parents `[M, n_g, B]`.
        speed: u `[M, B]`.
        settings: of the model.
    """
    speed = speed.unsqueeze(1)
    return (torch.cat([g + speed, g - speed], 1) - settings.threshold).clamp_min(0.0)


def apical_potential(weights: Weights, g: Tensor, c: Tensor) -> Tensor:
    """`V_A = W_gg g + W_gc c [M, n_g, B]`."""
    potential = weights["mec_recurrent"] @ g
    if c.shape[1]:
        right, left = c.chunk(2, 1)
        potential = potential + weights["mec_right"] @ right + weights["mec_left"] @ left
    return potential


def step(
    settings: Settings,
    weights: Weights,
    state: State,
    features: Tensor,
    speed: Tensor | None,
    sleep: tuple[float, float],
    normal: Tensor | None,
) -> tuple[State, Dendrites]:
    """One step of activity, without learning.

    Args:
        settings: of the model.
        weights: the maps `[M, n, m]`.
        state: before the step.
        features: z `[M, n_p, B]`.
        speed: new rate u of the velocity cells `[M, B]`; None without them.
        sleep: k of HPC and MEC.
        normal: standard normal numbers `[M, 2 n_p + 2 n_g, B]`; None: no noise at all.

    Returns:
        The state after the step, and the dendrites' rates in it.
    """
    noise = state.noise if normal is None else noise_step(state.noise, normal, settings)
    pa, pb = apply_map(weights["hpc_apical"], state.g), features
    if normal is not None:
        n_p, n_g = settings.hpc, settings.mec
        n_pa, n_pb, n_ga, n_gb = torch.split(noise, [n_p, n_p, n_g, n_g], 1)
        pa, pb = pa + n_pa, pb + n_pb
    p = _soma(pa, pb, sleep[0])
    gb, slope_b = activate(apply_map(weights["mec_basal"], p), settings)
    ga, slope_a = activate(apical_potential(weights, state.g, state.c), settings)
    if normal is not None:
        ga, gb = ga + n_ga, gb + n_gb
    g = _soma(ga, gb, sleep[1])
    c, u = state.c, state.u
    if speed is not None:
        c, u = conjunctive_rates(g, state.u if settings.lag else speed, settings), speed
    return State(p, g, c, u, noise, state.step + 1), Dendrites(pa, pb, ga, gb, slope_a, slope_b)


def _soma(apical: Tensor, basal: Tensor, sleep: float) -> Tensor:
    if sleep in (0.0, 1.0):  # exactly one dendrite's rate, so that its own difference is exactly 0
        return apical if sleep else basal
    return sleep * apical + (1 - sleep) * basal


def teach(weights: Weights, before: State, after: State, dendrites: Dendrites, learn: Learn) -> None:
    """Tells every map its postsynaptic difference and its presynaptic rates in one step.

    Basal maps see the new rates of the layer below, apical ones the rates of the step before.

    Args:
        weights: the maps.
        before: state before the step.
        after: state after it.
        dendrites: their rates in it.
        learn: called for each map with `delta = (soma - dendrite) f'(V)` and its inputs.
    """
    apical = (after.g - dendrites.mec_apical) * dendrites.slope_apical
    basal = (after.g - dendrites.mec_basal) * dendrites.slope_basal
    learn("hpc_apical", after.p - dendrites.hpc_apical, with_bias(weights["hpc_apical"], before.g))
    learn("mec_basal", basal, with_bias(weights["mec_basal"], after.p))
    learn("mec_recurrent", apical, before.g)
    if before.c.shape[1]:
        right, left = before.c.chunk(2, 1)
        learn("mec_right", apical, right)
        learn("mec_left", apical, left)


def unroll(
    settings: Settings,
    weights: Weights,
    state: State,
    inputs: Inputs,
    learn: Learn | None = None,
    watch: Callable[[Dendrites], None] | None = None,
) -> tuple[State, Trace]:
    """Runs `T` steps: the plain reference of every faster way.

    Args:
        settings: of the model.
        weights: the maps `[M, n, m]`; `learn` may change them in place.
        state: before the first step; it is left as it is.
        inputs: of the steps.
        learn: a local learning rule; None: the model does not learn.
        watch: called with the dendrites after each step.

    Returns:
        The state after the last step, and the rates of all steps.
    """
    rates_p, rates_g, errors = [], [], []
    for t, sleep in enumerate(inputs.sleep.tolist()):
        speed = None if inputs.speed is None else inputs.speed[t]
        normal = None if inputs.noise is None else inputs.noise[t]
        before = state
        state, dendrites = step(
            settings, weights, before, inputs.features[t], speed, (sleep[0], sleep[1]), normal
        )
        if learn is not None:
            teach(weights, before, state, dendrites, learn)
        if watch is not None:
            watch(dendrites)
        rates_p.append(state.p)
        rates_g.append(state.g)
        errors.append(prediction_errors(dendrites))
    return state, Trace(torch.stack(rates_p), torch.stack(rates_g), torch.stack(errors))


def prediction_errors(dendrites: Dendrites) -> Tensor:
    """Mean over cells and agents of |basal - apical| in HPC and in MEC: `[M, 2]`."""
    hpc = (dendrites.hpc_basal - dendrites.hpc_apical).abs().mean((1, 2))
    mec = (dendrites.mec_basal - dendrites.mec_apical).abs().mean((1, 2))
    return torch.stack([hpc, mec], 1)
