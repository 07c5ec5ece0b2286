"""How the Gamma shape of an intensity is learned: from moments, by Newton, by Minka, or along the gradient.

The energies of a class are negative binomial, `S ~ NB(mu, a)`, and the derivative of their mean
log-likelihood in `log a` is `a g(a)` with

    g(a) = < psi(S + a) - psi(a) >  +  log(a / (a + mu))  +  (mu - <S>) / (a + mu),

where `< >` is the mean of the class. Every rule below needs the energies through the averages alone that are
called `rise` and `rise_slope`, so that it can follow any pass over data or processes.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

BatchRule = Literal["newton", "minka"]
"""How EM learns shapes."""

OnlineRule = Literal["moments", "gradient"]
"""How the circuit learns shapes."""

MIN_SHAPE, MAX_SHAPE = 1e-3, 1e4
"""Range of a learned shape; the upper end means Poisson: no finite shape fits better."""


def check_online(rule: str) -> OnlineRule:
    """Returns `rule` if it is one of `moments`, `gradient`; raises ValueError otherwise."""
    known: tuple[OnlineRule, ...] = get_args(OnlineRule)
    for choice in known:
        if rule == choice:
            return choice
    raise ValueError(
        f"shape_update={rule!r} must be one of {', '.join(known)} for the circuit's online rules"
    )


def moment_shape(mean: Tensor, second_moment: Tensor, max_shape: float = MAX_SHAPE) -> Tensor:
    """Shape from moments, `mu^2 / (var - mu)`; `max_shape` where the spread is no more than Poisson's."""
    excess = second_moment - mean.square() - mean
    shape = mean.square() / excess.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(excess > 0, shape, max_shape).clamp(MIN_SHAPE, max_shape)


def second_moment(mean: Tensor, shape: Tensor) -> Tensor:
    """Second moment of the energies, `mu^2 (1 + 1 / a) + mu`: the inverse of `moment_shape`."""
    return mean.square() * (1 + 1 / shape) + mean


def log_gradient(shape: Tensor, mean: Tensor, energy: Tensor, rise: Tensor) -> Tensor:
    """`a g(a)`: derivative of the mean log-likelihood in `log a`.

    Args:
        shape: `a [C]`.
        mean: `mu [C]`.
        energy: mean energy `<S> [C]`.
        rise: `<psi(S + a) - psi(a)> [C]`.
    """
    return shape * (rise - torch.log1p(mean / shape) + (mean - energy) / (shape + mean))


def newton_step(
    shape: Tensor, mean: Tensor, rise: Tensor, rise_slope: Tensor, max_shape: float = MAX_SHAPE
) -> Tensor:
    """One ascent step of the shapes at `mu = <S>`: Newton's in `log a`, made safe by a minorant.

    The objective is `F(log a) - h(log a)` with `F = <log(Gamma(S + a) / Gamma(a))>` and
    `h = a log1p(mu / a) + mu log1p(a / mu)`. For counts `F` is a sum of `log(a + i)`, whose curvature in
    `log a` is `p (1 - p)` with a logistic `p` and so decays no faster than `exp(-|x|)` over a step `x`. Hence

        F(x) >= F(0) + F' x + F'' (exp(-|x|) - 1 + |x|),

    and the step goes to the maximum of that bound minus `h`, found by bisection.

    Args:
        shape: `a [C]`.
        mean: `mu [C]`, the mean energy.
        rise: `<psi(S + a) - psi(a)> [C]`.
        rise_slope: `<psi'(S + a) - psi'(a)> [C]`.
        max_shape: the shape that means Poisson.
    """
    slope = shape * rise
    curvature = (slope + shape.square() * rise_slope).clamp_min(0)

    def ascent(step: Tensor) -> Tensor:
        moved = shape * step.exp()
        bend = curvature * step.sign() * -torch.expm1(-step.abs())
        return slope + bend - moved * torch.log1p(mean / moved)

    low, high = (MIN_SHAPE / shape).log(), (max_shape / shape).log()
    up = ascent(torch.zeros_like(shape)) > 0
    low, high = torch.where(up, 0.0, low), torch.where(up, high, 0.0)
    for _ in range(50):
        middle = (low + high) / 2
        rising = ascent(middle) > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    return (shape * ((low + high) / 2).exp()).clamp(MIN_SHAPE, max_shape)


def minka_step(shape: Tensor, mean: Tensor, rise: Tensor, max_shape: float = MAX_SHAPE) -> Tensor:
    """One step of EM with the gain `z` as hidden variable, at `mu = <S>`; its M step is Minka's iteration.

    Given `S`, `z` is Gamma of shape `a + S` and rate `a / mu + 1`, whose mean averages to `mu`. The new shape
    `k` solves `log k - psi(k) = t` with `t = log <E z> - <E log z>` (Minka, "Estimating a Gamma
    distribution", 2002). It never goes down, and needs many more passes than Newton's step where Poisson
    noise hides the gain.

    Args:
        shape: `a [C]`.
        mean: `mu [C]`, the mean energy.
        rise: `<psi(S + a) - psi(a)> [C]`.
        max_shape: the shape that means Poisson.
    """
    mean_log = rise + torch.digamma(shape) - torch.log1p(shape / mean)
    # below this the shape lies beyond max_shape: log k - psi(k) is 1 / (2 k) there
    t = (mean.log() - mean_log).clamp_min(1 / (4 * max_shape))
    k = (3 - t + ((t - 3).square() + 24 * t).sqrt()) / (12 * t)
    for _ in range(5):
        miss = k.log() - torch.digamma(k) - t
        k = 1 / (1 / k + miss / (k.square() * (1 / k - torch.polygamma(1, k))))
    return k.clamp(MIN_SHAPE, max_shape)
