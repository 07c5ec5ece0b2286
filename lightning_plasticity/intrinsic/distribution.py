"""The Product-Poisson-Gamma mixture as a distribution: joint, posteriors, intensities, samples.

Monk, Savin and Luecke, "Neurons equipped with intrinsic plasticity learn stimulus intensity statistics", NIPS
2016. A class `c` is drawn from the prior `pi`, a gain `z` from a Gamma of mean `mu_c` and shape `a_c`, and
the stimulus from `y_d ~ Poisson(z W_cd)` with `sum_d W_cd = 1`. The total energy `S = sum_d y_d` is then
negative binomial and the direction multinomial, independent of each other given the class:

    log p(y, c) = log pi_c + sum_d y_d log W_cd - sum_d lgamma(y_d + 1)
                  + lgamma(S + a_c) - lgamma(a_c) - a_c log1p(mu_c / a_c) - S log1p(a_c / mu_c)

`a = inf` is allowed and means no spread beyond Poisson noise. Everything here is a pure function of tensors.
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_plasticity.intrinsic.precision import full_precision

Intensity = Literal["nb", "poisson", "none"]
"""What a class knows of intensity: `"nb"` mean and spread, `"poisson"` the mean alone, `"none"` nothing."""

TINY = 1e-30
"""Floor of a weight inside the logarithm: a count where a class has no weight costs 69 nats."""

NEARLY_POISSON = 1e9
"""Stands for an infinite shape where a Gamma density or sample is needed: its relative spread is 3e-5."""


class Parameters(NamedTuple):
    """Everything that a mixture of `C` classes over `D` inputs has learned."""

    weights: Tensor
    """`W [C, D]`: direction of each class; rows are non-negative and sum to 1."""
    mean: Tensor
    """`mu [C]`: mean intensity, in units of the total energy of a stimulus."""
    shape: Tensor
    """`a [C]`: Gamma shape of the intensity; variance of the energy is `mu + mu^2 / a`."""
    prior: Tensor
    """`pi [C]`: probability of each class."""


class IntensityPosterior(NamedTuple):
    """Point estimates of the gain `z`, `[n]` (averaged over classes) or `[n, C]` (given one)."""

    mean: Tensor
    """`E[z | y]`."""
    map: Tensor
    """`argmax_z p(z | y)`."""


def check_intensity(intensity: str) -> Intensity:
    """Returns `intensity` if it is one of `nb`, `poisson`, `none`; raises ValueError otherwise."""
    known: tuple[Intensity, ...] = get_args(Intensity)
    for choice in known:
        if intensity == choice:
            return choice
    raise ValueError(f"intensity={intensity!r} is unknown: choose one of {', '.join(get_args(Intensity))}")


def log_weights(weights: Tensor) -> Tensor:
    """`log W [C, D]`, with the floor that keeps `0 log 0 = 0` and everything else finite."""
    return weights.clamp_min(TINY).log()


def log_gamma(x: Tensor) -> Tensor:
    """`log Gamma(x)` for `x > 0` in float64; by Stirling's series, three times faster, where all `x >= 16`.

    The series is cut after `x^-7`; what is left out is below `1 / (1188 x^9) = 1.3e-14`.
    """
    if not bool((x >= 16).all()):
        return torch.lgamma(x)
    inverse = x.reciprocal()
    square = inverse * inverse
    series = (
        square.mul(-1 / 1680)
        .add_(1 / 1260)
        .mul_(square)
        .sub_(1 / 360)
        .mul_(square)
        .add_(1 / 12)
        .mul_(inverse)
    )
    return (x - 0.5).mul_(x.log()).sub_(x).add_(0.5 * math.log(2 * math.pi)).add_(series)


def digamma_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """`psi(x)` and `psi'(x)` for `x > 0` in float64; by their series, in half the time, where all `x >= 16`.

    The series are cut where what is left out is below `1 / (240 x^8)` and `1 / (30 x^9)`, both below 1e-12.
    """
    if not bool((x >= 16).all()):
        return torch.digamma(x), torch.polygamma(1, x)
    inverse = x.reciprocal()
    square = inverse * inverse
    psi = square.mul(-1 / 252).add_(1 / 120).mul_(square).sub_(1 / 12).mul_(square)
    psi = psi.sub_(inverse, alpha=0.5).add_(x.log())
    slope = square.mul(1 / 42).sub_(1 / 30).mul_(square).add_(1 / 6).mul_(inverse).add_(0.5).mul_(square)
    return psi, slope.add_(inverse)


def log_negative_binomial(energy: Tensor, mean: Tensor, shape: Tensor) -> Tensor:
    """`log NB(S; mean mu, shape a)` of each energy under each class, `[n, C]` in nats.

    Evaluated in float64, as `lgamma(S + a) - lgamma(a)` cancels for large `a`; the `log1p` form is stable
    from tiny means to the Poisson limit.

    Args:
        energy: `S [n]`, total energy of each stimulus.
        mean: `mu [C]`.
        shape: `a [C]`, `inf` for Poisson.
    """
    total, mu, a = energy.double().unsqueeze(-1), mean.double(), shape.double()
    rise = log_gamma(total + a) - torch.lgamma(a)
    log_p = rise - a * torch.log1p(mu / a) - total * torch.log1p(a / mu)
    if bool(a.isinf().any()):
        log_p = torch.where(a.isinf(), total * mu.log() - mu, log_p)
    return log_p - torch.lgamma(total + 1)


def energy_evidence(energy: Tensor, params: Parameters, intensity: Intensity) -> Tensor:
    """What the energy tells of the class, with the prior: `log pi_c + log p(S | c)`, `[n, C]`, float64."""
    log_prior = params.prior.double().clamp_min(TINY).log()
    if intensity == "none":
        return log_prior.expand(len(energy), -1)
    shape = params.shape if intensity == "nb" else torch.full_like(params.shape, torch.inf)
    return log_negative_binomial(energy, params.mean, shape) + log_prior


def evidence(stimuli: Tensor, params: Parameters, intensity: Intensity = "nb") -> Tensor:
    """The part of `log p(y, c)` that depends on the class, `[n, C]` in nats, in the dtype of `stimuli`.

    The matrix product runs in that dtype (float32 or float64), never in a lower one. Energies repeat in count
    data, so the special functions are evaluated once for each distinct energy.

    Args:
        stimuli: `y [n, D]`, non-negative.
        params: the mixture.
        intensity: see `Intensity`; `"none"` leaves the energy out, and with it all that intensity can tell.
    """
    energies, index = torch.unique(stimuli.sum(1).double(), return_inverse=True)
    table = energy_evidence(energies, params, intensity).to(stimuli.dtype)
    with full_precision(stimuli.device.type):
        direction = stimuli @ log_weights(params.weights).to(stimuli.dtype).T
    return direction.add_(table.index_select(0, index))


def log_base(stimuli: Tensor) -> Tensor:
    """What is the same for all classes: the log multinomial coefficient, `[n]`, float64."""
    counts = stimuli.double()
    return torch.lgamma(counts.sum(1) + 1) - torch.lgamma(counts + 1).sum(1)


def log_joint(stimuli: Tensor, params: Parameters, intensity: Intensity = "nb") -> Tensor:
    """Exact `log p(y, c) [n, C]` in nats with all constants, evaluated in float64.

    With `intensity="none"` it is the probability of the direction given the energy, `log p(y, c | S)`.

    Example:
        >>> params = Parameters(*(torch.tensor(v) for v in ([[0.5, 0.5]], [3.0], [2.0], [1.0])))
        >>> log_joint(torch.tensor([[1.0, 2.0]]), params).exp()      # nbinom(3; 3, 2) x multinomial
        tensor([[0.0518]], dtype=torch.float64)
    """
    return evidence(stimuli.double(), params, intensity) + log_base(stimuli).unsqueeze(1)


def class_intensity(energy: Tensor, params: Parameters) -> IntensityPosterior:
    """Posterior mean and mode of the gain given each class: `z | y, c ~ Gamma(a + S, rate a / mu + 1)`.

    Written with the overdispersion `1 / a`, which is 0 in the Poisson limit: both then equal the class mean.

    Args:
        energy: `S [n]`.
        params: the mixture.

    Returns:
        Two `[n, C]` tensors, float64.
    """
    total, overdispersion = energy.double().unsqueeze(1), 1 / params.shape.double()
    rate = 1 / params.mean.double() + overdispersion
    mean = (1 + total * overdispersion) / rate
    return IntensityPosterior(mean, (mean - overdispersion / rate).clamp_min(0))


def marginal_intensity(
    energy: Tensor, posterior: Tensor, params: Parameters, steps: int = 64
) -> IntensityPosterior:
    """Posterior mean and mode of the gain, averaged over classes.

    `p(z | y) = sum_c s_c Gamma(z; a_c + S, a_c / mu_c + 1)` is a mixture, whose mode is not the average of
    the modes: those of the three likeliest classes are climbed by mode-seeking EM (each step a weighted mean
    of the classes' modes, by which the density never falls), and the highest is taken.

    Args:
        energy: `S [n]`.
        posterior: `s [n, C]`.
        params: the mixture.
        steps: of the climb.

    Returns:
        Two `[n]` tensors, float64.
    """
    given = class_intensity(energy, params)
    shape = params.shape.double().clamp_max(NEARLY_POISSON)
    alpha, rate = shape + energy.double().unsqueeze(1), shape / params.mean.double() + 1
    log_scale = (
        posterior.double().clamp_min(TINY).log() + alpha * rate.log() - torch.lgamma(alpha)
    ).unsqueeze(1)

    def log_density(z: Tensor) -> Tensor:
        return (
            log_scale
            + (alpha - 1).unsqueeze(1) * z.unsqueeze(2).clamp_min(TINY).log()
            - rate * z.unsqueeze(2)
        )

    z = given.map.gather(1, posterior.topk(min(3, posterior.shape[1]), dim=1).indices)
    for _ in range(steps):
        share = log_density(z).softmax(2)
        z = (share * (alpha - 1).clamp_min(0).unsqueeze(1)).sum(2) / (share * rate).sum(2)
    best = log_density(z).logsumexp(2).argmax(1, keepdim=True)
    return IntensityPosterior((posterior.double() * given.mean).sum(1), z.gather(1, best).squeeze(1))


def relative_intensity(energy: Tensor, params: Parameters) -> Tensor:
    """How strong a stimulus is for a class ("stress"): `(S - mu) / sqrt(mu + mu^2 / a)`.

    Args:
        energy: `S [n]`.
        params: the mixture.

    Returns:
        `[n, C]`, float64.
    """
    mu = params.mean.double()
    return (energy.double().unsqueeze(1) - mu) / (mu + mu.square() / params.shape.double()).sqrt()


def sample(params: Parameters, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draws stimuli from the mixture.

    Args:
        params: the mixture, on the CPU.
        size: number of stimuli.
        generator: source of all randomness, on the CPU.

    Returns:
        stimuli `[size, D]` (counts in float64), classes `[size]` (int64) and gains `[size]` (float64).
    """
    classes = torch.multinomial(params.prior.double(), size, replacement=True, generator=generator)
    # torch has no public Gamma sampler that takes a generator: NumPy's, seeded from ours.
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    shape, mean = params.shape.double()[classes], params.mean.double()[classes]
    relative = torch.from_numpy(rng.gamma(shape.clamp_max(NEARLY_POISSON).numpy())) / shape.clamp_max(
        NEARLY_POISSON
    )
    gains = torch.where(shape.isinf(), mean, relative * mean)
    rates = gains.unsqueeze(1) * params.weights.double()[classes]
    return torch.poisson(rates, generator=generator), classes, gains
