"""The neural circuit: Hebbian weights with synaptic scaling, and intrinsic plasticity of excitability.

Monk, Savin and Luecke, NIPS 2016. Neuron `c` receives `I_c = sum_d y_d log W_cd + S log lambda_c - lambda_c`
(or the negative binomial input, which also knows the spread of its intensities), a softmax over the inputs
makes the neurons compete, and every change is local to the neuron's activity `s_c`, its inputs and its own
state:

    W_cd += eps_W s_c (y_d - S W_cd)     Hebb minus scaling; keeps sum_d W_cd = 1; its fixed point is EM's
    mu_c += eps s_c (S - mu_c)           intrinsic plasticity of the mean intensity (lambda of the circuit)
    q_c  += eps s_c (S^2 - q_c)          and of its second moment, which gives the shape a_c
    pi_c += eps (s_c - pi_c)             class prior

Instead of following the moments, the shape may climb the likelihood, `log a_c += eps s_c a_c g(a_c)`
(`shapes.log_gradient`); `q_c` is then the second moment that goes with it.
`eps_W = eps / <S>` puts all rates on one scale.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_plasticity.intrinsic.distribution import TINY, Intensity, Parameters, evidence
from lightning_plasticity.intrinsic.em import MIN_MEAN, responsibilities
from lightning_plasticity.intrinsic.precision import full_precision
from lightning_plasticity.intrinsic.shapes import (
    MAX_SHAPE,
    MIN_SHAPE,
    OnlineRule,
    log_gradient,
    moment_shape,
    second_moment,
)

RATE = 0.02
"""Learning rate at the start."""

DECAY_PER_CLASS = 1000.0
"""Stimuli for each class after which the rate has halved."""

WARMUP = 8000
"""Stimuli for which neurons learn directions and means alone."""

MAX_GAIN = 0.5
"""Most that one stimulus may move a weight vector towards itself, which keeps weights positive; and most that
the logarithm of a shape may move along its gradient at once."""


class Circuit(NamedTuple):
    """State of the neurons."""

    weights: Tensor
    """`W [C, D]`, rows sum to 1."""
    mean: Tensor
    """`mu [C]`."""
    second_moment: Tensor
    """`q [C]`, mean of `S^2`."""
    prior: Tensor
    """`pi [C]`."""

    def parameters(self, max_shape: float = MAX_SHAPE) -> Parameters:
        """The mixture that the circuit stands for."""
        return Parameters(
            self.weights, self.mean, moment_shape(self.mean, self.second_moment, max_shape), self.prior
        )

    @classmethod
    def of(cls, params: Parameters) -> "Circuit":
        """The circuit that stands for a mixture."""
        return cls(params.weights, params.mean, second_moment(params.mean, params.shape), params.prior)


class Drive(NamedTuple):
    """What a mini-batch does to the neurons, summed over its stimuli; adds up over processes; float64."""

    stimuli: Tensor
    """`sum s y [C, D]`."""
    energy: Tensor
    """`sum s S [C]`."""
    energy_square: Tensor
    """`sum s S^2 [C]`."""
    rise: Tensor
    """`sum s (psi(S + a) - psi(a)) [C]`; 0 if shapes follow the moments."""
    activity: Tensor
    """`sum s [C]`."""
    log_keep_weights: Tensor
    """`sum log(1 - eps_W s S) [C]`: how much of the old weights is kept."""
    log_keep_moments: Tensor
    """`sum log(1 - eps s) [C]`."""
    weight: Tensor
    """Number of stimuli `[]`."""
    log_likelihood: Tensor
    """`sum log p(y)`, without `log_base`, `[]`."""


def stage(intensity: Intensity, warm: bool) -> Intensity:
    """What the neurons' input knows of intensity while they warm up: no spread.

    A spread or a prior learnt before the classes have parted lets one neuron swallow its neighbours: it
    becomes broad, answers for all, and they die.
    """
    return "poisson" if intensity == "nb" and not warm else intensity


def learning_rate(seen: float, rate: float, decay: float) -> float:
    """`rate / (1 + seen / decay)` with `seen` stimuli shown so far."""
    return rate / (1 + seen / decay)


def present(
    stimulus: Tensor,
    circuit: Circuit,
    rate: float,
    intensity: Intensity = "nb",
    learn_prior: bool = True,
    shape_update: OnlineRule = "moments",
) -> Circuit:
    """Shows one stimulus `y [D]` and changes the circuit by the rules above, to the letter.

    Args:
        stimulus: `y [D]`, non-negative.
        circuit: the neurons.
        rate: `eps`.
        intensity: `"nb"`, or `"poisson"` for the simplest neuron, whose input knows no spread.
        learn_prior: False holds the prior.
        shape_update: `"moments"` or `"gradient"`.

    Example:
        >>> circuit = Circuit(torch.tensor([[0.5, 0.5]]), *(torch.tensor([v]) for v in (4.0, 20.0, 1.0)))
        >>> present(torch.tensor([3.0, 1.0]), circuit, rate=0.1).weights
        tensor([[0.5250, 0.4750]])
    """
    energy = stimulus.sum()
    activity = (
        evidence(stimulus.unsqueeze(0), circuit.parameters(), intensity)[0].softmax(0).to(stimulus.dtype)
    )
    weight_rate = (rate / (circuit.prior @ circuit.mean)).clamp_max(MAX_GAIN / energy.clamp_min(MIN_MEAN))
    hebb = stimulus - energy * circuit.weights
    weights = circuit.weights + weight_rate * activity.unsqueeze(1) * hebb
    mean = (circuit.mean + rate * activity * (energy - circuit.mean)).clamp_min(MIN_MEAN)
    if shape_update == "moments":
        second = circuit.second_moment + rate * activity * (energy.square() - circuit.second_moment)
    else:
        rise = _rise(energy, circuit.parameters().shape)
        second = _climbed(circuit, mean, rate * activity, energy, rise).to(mean.dtype)
    prior = circuit.prior + rate * (activity - circuit.prior) if learn_prior else circuit.prior
    return Circuit(weights, mean, second, prior)


def _rise(energy: Tensor, shape: Tensor) -> Tensor:
    """`psi(S + a) - psi(a)`, float64."""
    a = shape.double()
    return torch.digamma(energy.double() + a) - torch.digamma(a)


def _climbed(circuit: Circuit, mean: Tensor, gain: Tensor, energy: Tensor, rise: Tensor) -> Tensor:
    """Second moment `[C]` of the new mean and of a shape that went up its gradient by `gain`, float64."""
    shape, old = circuit.parameters().shape.double(), circuit.mean.double()
    step = (gain * log_gradient(shape, old, energy.double(), rise)).clamp(-MAX_GAIN, MAX_GAIN)
    return second_moment(mean.double(), (shape * step.exp()).clamp(MIN_SHAPE, MAX_SHAPE))


def drive(
    stimuli: Tensor,
    circuit: Circuit,
    rate: float,
    intensity: Intensity = "nb",
    labels: Tensor | None = None,
    sample_weight: Tensor | None = None,
    shape_update: OnlineRule = "moments",
) -> Drive:
    """Activities of a mini-batch `y [n, D]` at frozen parameters, summed up for `apply_drive`.

    Args:
        stimuli: `y [n, D]`; its dtype is that of the matrix products.
        circuit: the neurons.
        rate: `eps`.
        intensity: see `Intensity`.
        labels: `[n]` classes that are known, -1 where not.
        sample_weight: `[n]`, how often each stimulus is shown; 0 for padding.
        shape_update: as will be applied.
    """
    energy = stimuli.sum(1).double()
    activity, log_likelihood = responsibilities(evidence(stimuli, circuit.parameters(), intensity), labels)
    activity = activity.double()
    weight = torch.ones_like(energy) if sample_weight is None else sample_weight.double()
    shown = activity * weight.unsqueeze(1)
    gain = (rate / (circuit.prior.double() @ circuit.mean.double()) * energy).clamp_max(MAX_GAIN)
    with full_precision(stimuli.device.type):
        by_class = (shown.to(stimuli.dtype).T @ stimuli).double()
        energy_sum, square_sum = torch.stack([energy, energy.square()]) @ shown
        keep_weights = weight @ torch.log1p(-activity * gain.unsqueeze(1))
        keep_moments = weight @ torch.log1p(-activity * rate)
    number, log_sum = shown.sum(0), (log_likelihood * weight).sum()
    rise = torch.zeros_like(number)
    if shape_update == "gradient":
        rise = (shown * _rise(energy.unsqueeze(1), circuit.parameters().shape)).sum(0)
    return Drive(
        by_class, energy_sum, square_sum, rise, number, keep_weights, keep_moments, weight.sum(), log_sum
    )


def apply_drive(
    circuit: Circuit,
    total: Drive,
    rate: float,
    learn_prior: bool = True,
    shape_update: OnlineRule = "moments",
) -> Circuit:
    """Changes the circuit by a mini-batch, as if its stimuli came one by one with activities frozen.

    Of the old state a share `prod (1 - eps s)` is kept, the rest goes to the batch's mean: for one stimulus
    this is `present` exactly, for many it agrees to first order in the rate, and no batch is too large for
    it.
    """
    tiny = torch.finfo(torch.float64).tiny

    def move(old: Tensor, target: Tensor, log_keep: Tensor) -> Tensor:
        return (old.double() - torch.expm1(log_keep) * (target - old.double())).to(old.dtype)

    directions = total.stimuli / total.energy.clamp_min(tiny).unsqueeze(1)
    activity = total.activity.clamp_min(tiny)
    weights = move(circuit.weights, directions, total.log_keep_weights.unsqueeze(1))
    weights = weights.clamp_min(TINY)  # a weight that nothing feeds decays into slow denormal numbers
    mean = move(circuit.mean, total.energy / activity, total.log_keep_moments)
    mean = mean.clamp_min(MIN_MEAN)
    if shape_update == "moments":
        second = move(circuit.second_moment, total.energy_square / activity, total.log_keep_moments)
    else:
        gain = -torch.expm1(total.log_keep_moments)
        second = _climbed(circuit, mean, gain, total.energy / activity, total.rise / activity).to(mean.dtype)
    if not learn_prior:
        return Circuit(weights, mean, second, circuit.prior)
    log_keep = total.weight * torch.log1p(torch.tensor(-rate, dtype=torch.float64))
    return Circuit(
        weights, mean, second, move(circuit.prior, total.activity / total.weight.clamp_min(tiny), log_keep)
    )
