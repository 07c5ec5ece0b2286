"""Exact batch EM of the Product-Poisson-Gamma mixture: E step and M step.

An E step over any part of the data gives `Sums`, which add up over batches and processes; an M step needs
nothing else. Weights, means and priors have closed forms; the shapes take a step that never goes down
(`shapes.newton_step` or `shapes.minka_step`).
"""

import math
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from lightning_plasticity.intrinsic.distribution import (
    Intensity,
    Parameters,
    check_intensity,
    digamma_and_slope,
    energy_evidence,
    log_weights,
)
from lightning_plasticity.intrinsic.precision import full_precision
from lightning_plasticity.intrinsic.shapes import (
    MAX_SHAPE,
    MIN_SHAPE,
    BatchRule,
    minka_step,
    newton_step,
)

MIN_MEAN = 1e-8
"""Floor of a learned mean, which keeps `S log1p(a / mu)` finite."""


SPARSE_SHARE = 0.1
"""Share of responsibilities that matter below which a sparse product is the faster one."""


class Sums(NamedTuple):
    """What an M step needs, summed over stimuli (`R` responsibilities, `S` energies); float64."""

    stimuli: Tensor
    """`sum R y [C, D]`."""
    number: Tensor
    """`sum R [C]`."""
    energy: Tensor
    """`sum R S [C]`."""
    energy_square: Tensor
    """`sum R S^2 [C]`."""
    rise: Tensor
    """`sum R (psi(S + a) - psi(a)) [C]` at the shapes of the E step."""
    rise_slope: Tensor
    """`sum R (psi'(S + a) - psi'(a)) [C]`."""
    log_likelihood: Tensor
    """`sum log p(y)`, without `log_base`, `[]`."""
    weight: Tensor
    """Number of stimuli, or the sum of their weights, `[]`."""

    def plus(self, other: "Sums") -> "Sums":
        """Adds the sums of other stimuli."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


def responsibilities(joint: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Posterior `[n, C]` (in the joint's place) and log-likelihood `[n]`; a label >= 0 fixes the class."""
    if labels is not None:
        other = labels.unsqueeze(1) != torch.arange(joint.shape[1], device=joint.device)
        joint = joint.masked_fill_(other & (labels >= 0).unsqueeze(1), -torch.inf)
    peak = joint.amax(1, keepdim=True)
    # Below this every posterior is 0 to rounding; exp is many times slower where its result is denormal.
    lowest = math.log(torch.finfo(joint.dtype).tiny) + 1
    posterior = joint.sub_(peak).clamp_min_(lowest).exp_()
    total = posterior.sum(1, keepdim=True)
    return posterior.div_(total), (peak.double() + total.double().log()).squeeze(1)


def e_step(
    stimuli: Tensor,
    params: Parameters,
    intensity: Intensity = "nb",
    labels: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Sums:
    """Sums over one batch, at the posterior of its stimuli.

    Args:
        stimuli: `y [n, D]`; its dtype (float32 or float64) is that of the two matrix products.
        params: the mixture.
        intensity: see `Intensity`.
        labels: `[n]` classes that are known, -1 where not.
        sample_weight: `[n]`, how many times each stimulus counts; 0 for padding.
    """
    levels, index = torch.unique(stimuli.sum(1).double(), return_inverse=True)
    part = EStep(levels, params, intensity, stimuli.dtype)
    part.add(stimuli, index, labels, sample_weight)
    return part.sums()


class EStep:
    """An E step over batches that share their energies, as counts do over a whole data set.

    What depends on a class and an energy alone, the special functions, is computed once for each energy and
    not for each stimulus.

    Args:
        levels: distinct energies `[u]`, float64.
        params: the mixture.
        intensity: see `Intensity`.
        dtype: float32 or float64, that of the two matrix products.
    """

    def __init__(self, levels: Tensor, params: Parameters, intensity: Intensity, dtype: torch.dtype) -> None:
        self.levels, self.params, self.intensity, self.dtype = levels, params, intensity, dtype
        self.table = energy_evidence(levels, params, intensity).to(dtype)
        self.log_weights = log_weights(params.weights).to(dtype).T
        self.by_level = levels.new_zeros(len(levels), len(params.mean))
        self.by_class = torch.zeros_like(params.weights, dtype=torch.float64)
        self.log_likelihood, self.weight = levels.new_zeros(()), levels.new_zeros(())

    def add(
        self,
        stimuli: Tensor,
        index: Tensor,
        labels: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Adds a batch `y [n, D]`; `index [n]` says which of the levels each stimulus has."""
        with full_precision(stimuli.device.type):
            joint = (stimuli @ self.log_weights).add_(self.table.index_select(0, index))
            posterior, log_likelihood = responsibilities(joint, labels)
            weight = torch.ones_like(log_likelihood) if sample_weight is None else sample_weight.double()
            if sample_weight is not None:
                posterior *= sample_weight.to(posterior).unsqueeze(1)
            self.by_class += _class_sums(posterior, stimuli)
        by_level = posterior.new_zeros(self.by_level.shape).index_add_(0, index, posterior)
        self.by_level += by_level
        self.log_likelihood += (log_likelihood * weight).sum()
        self.weight += weight.sum()

    def sums(self) -> Sums:
        """The sums over all that was added."""
        powers = torch.stack([torch.ones_like(self.levels), self.levels, self.levels.square()])
        with full_precision(powers.device.type):
            number, energy, energy_square = powers @ self.by_level
        rise = rise_slope = torch.zeros_like(number)
        if self.intensity == "nb":
            resolution = torch.finfo(self.dtype).eps
            rise, rise_slope = _shape_sums(self.by_level, self.levels, self.params.shape, resolution)
        return Sums(
            self.by_class, number, energy, energy_square, rise, rise_slope, self.log_likelihood, self.weight
        )


def _class_sums(posterior: Tensor, stimuli: Tensor) -> Tensor:
    """`sum R y [C, D]`, as a sparse product where that is faster: posteriors are nearly one-hot.

    Responsibilities below the resolution of the dtype cannot show in the sums and are left out there.
    """
    row, column = (posterior > torch.finfo(posterior.dtype).eps).nonzero(as_tuple=True)
    if len(row) > SPARSE_SHARE * posterior.numel():
        return posterior.T @ stimuli
    size = (posterior.shape[1], len(posterior))
    indices = torch.stack([column, row])
    sparse = torch.sparse_coo_tensor(indices, posterior[row, column], size, check_invariants=False)
    product: Tensor = torch.sparse.mm(sparse, stimuli)
    return product


def _shape_sums(by_level: Tensor, levels: Tensor, shape: Tensor, resolution: float) -> tuple[Tensor, Tensor]:
    """`sum R (psi(S + a) - psi(a))` and its derivative in `a`, `[C]`, from responsibilities by energy.

    Responsibilities below the resolution of the matrix products are left out: the special functions are dear.
    """
    a, active = shape.double(), by_level > resolution
    if int(active.sum()) > SPARSE_SHARE * active.numel():
        psi, psi_slope = digamma_and_slope(levels.unsqueeze(1) + a)
        sums = (by_level, psi.mul_(by_level), psi_slope.mul_(by_level))
        number, total, slope = (part.sum(0) for part in sums)
    else:
        row, column = active.nonzero(as_tuple=True)
        share = by_level[row, column]
        psi, psi_slope = digamma_and_slope(levels[row] + a[column])
        parts = (share, psi.mul_(share), psi_slope.mul_(share))
        number, total, slope = (torch.zeros_like(a).index_add_(0, column, part) for part in parts)
    return total - number * torch.digamma(a), slope - number * torch.polygamma(1, a)


class Learning(NamedTuple):
    """What an M step may change, and how."""

    intensity: Intensity = "nb"
    """`"nb"` learns means and shapes, `"poisson"` means alone; with `"none"` the means are only reported."""
    learn_prior: bool = True
    """False holds the prior."""
    smoothing: float = 1e-6
    """Pseudo-count added to each entry of `sum R y`."""
    max_shape: float = MAX_SHAPE
    """The shape that means Poisson."""
    shape_update: BatchRule = "newton"
    """How shapes are learned with `"nb"`; both rules reach the same optimum."""

    @classmethod
    def checked(
        cls,
        intensity: str,
        learn_prior: bool,
        smoothing: float,
        max_shape: float,
        shape_update: BatchRule = "newton",
    ) -> "Learning":
        """The same, from user settings; raises ValueError if one is out of range."""
        if not 0 <= smoothing < torch.inf:
            raise ValueError(f"smoothing={smoothing} must be a finite number of at least 0")
        if not MIN_SHAPE < max_shape < torch.inf:
            raise ValueError(f"max_shape={max_shape} must be finite and greater than {MIN_SHAPE}")
        if shape_update not in get_args(BatchRule):
            raise ValueError(f"shape_update={shape_update!r} must be one of {', '.join(get_args(BatchRule))}")
        return cls(check_intensity(intensity), learn_prior, smoothing, max_shape, shape_update)

    def limit(self, params: Parameters) -> Parameters:
        """The parameters that the model can have: without knowledge of spread, every shape is infinite."""
        if self.intensity != "poisson":
            return params
        return params._replace(shape=torch.full_like(params.shape, torch.inf))


EXACT = Learning()
"""Maximum likelihood of everything."""


def m_step(sums: Sums, params: Parameters, learning: Learning = EXACT) -> Parameters:
    """Parameters that maximise the expected log-likelihood; classes without any stimulus stay as they are.

    Args:
        sums: of an E step with `params` over all data.
        params: the mixture before the step.
        learning: what may change.
    """
    alive, count = sums.number > 0, sums.number.clamp_min(torch.finfo(torch.float64).tiny)
    weights = sums.stimuli + learning.smoothing
    energy = weights.sum(1, keepdim=True)
    seen = (alive & (energy.squeeze(1) > 0)).unsqueeze(1)
    weights = torch.where(
        seen, weights / energy.clamp_min(torch.finfo(torch.float64).tiny), params.weights.double()
    )
    mean = torch.where(alive, (sums.energy / count).clamp_min(MIN_MEAN), params.mean)
    shape = params.shape
    if learning.intensity == "nb":
        shape = torch.where(alive, shape_step(sums, params.shape, mean, learning), shape)
    prior = sums.number / sums.number.sum() if learning.learn_prior else params.prior
    return Parameters(weights.to(params.weights.dtype), mean, shape, prior)


def shape_step(sums: Sums, shape: Tensor, mean: Tensor, learning: Learning = EXACT) -> Tensor:
    """One ascent step of the Gamma shapes `[C]`, by the rule that `learning` names.

    If the spread of a class's energies is no more than Poisson's, no finite shape is optimal: the result is
    `learning.max_shape`.
    """
    count = sums.number.clamp_min(torch.finfo(torch.float64).tiny)
    if learning.shape_update == "newton":
        stepped = newton_step(shape, mean, sums.rise / count, sums.rise_slope / count, learning.max_shape)
    else:
        stepped = minka_step(shape, mean, sums.rise / count, learning.max_shape)
    excess = sums.energy_square / count - mean.square() - mean
    return torch.where(excess > 0, stepped, learning.max_shape)
