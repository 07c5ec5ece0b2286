"""Where classes begin: at a random start, at labelled stimuli, and again after they have died."""

import torch
from torch import Tensor

from lightning_plasticity.intrinsic.distribution import Intensity, Parameters, evidence, log_base, log_joint
from lightning_plasticity.intrinsic.em import EXACT, MIN_MEAN, Learning

START_SHAPE = 100.0
"""Shape to start from, a spread of 10 %: classes that start broad share every intensity and do not part."""


def start(stimuli: Tensor, num_classes: int, generator: torch.Generator, noise: float = 0.3) -> Parameters:
    """Parameters to start from: weights are the data's mean with noise, intensities its quantiles.

    Single stimuli as starting weights collapse to fewer classes; means are dealt out in random order.

    Args:
        stimuli: `y [n, D]`, a representative batch.
        num_classes: `C`.
        generator: source of randomness, on the CPU.
        noise: relative size of the noise: each weight is scaled by a uniform number in `1 - noise .. 1 +
            noise`.
    """
    average = stimuli.double().mean(0)
    scale = 1 + noise * (
        2 * torch.rand(num_classes, average.numel(), generator=generator, dtype=torch.float64) - 1
    )
    weights = (average + 1e-3 * average.mean() + MIN_MEAN) * scale.to(average.device)
    energy = stimuli.double().sum(1)
    ranks = (torch.randperm(num_classes, generator=generator) + 0.5).to(average) / num_classes
    mean = energy.quantile(ranks).clamp_min(MIN_MEAN)
    shape, prior = torch.full_like(mean, START_SHAPE), torch.full_like(mean, 1 / num_classes)
    return Parameters(weights / weights.sum(1, keepdim=True), mean, shape, prior)


def place(params: Parameters, stimuli: Tensor, labels: Tensor) -> Parameters:
    """Moves each class that has labelled stimuli to their mean intensity, and halfway to their direction.

    Args:
        params: a start.
        stimuli: `y [n, D]`.
        labels: `[n]`, -1 where not known.
    """
    weights, mean, shape, prior = (part.clone() for part in params)
    for label in torch.unique(labels[labels >= 0]).tolist():
        chosen = stimuli[labels == label].double()
        total = chosen.sum()
        if bool(total > 0):
            weights[label] = (weights[label] + chosen.sum(0) / total) / 2
            mean[label] = total / len(chosen)
    return Parameters(weights, mean, shape, prior)


def dead_classes(count: Tensor, min_count: float = 0.5) -> Tensor:
    """Which classes `[C]` answer for fewer than `min_count` stimuli."""
    return count < min_count


def worst_explained(
    stimuli: Tensor, params: Parameters, intensity: Intensity, sample_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The stimulus of a batch with the lowest `log p(y)`: that value `[]` and the stimulus `[D]`."""
    scores = evidence(stimuli, params, intensity).logsumexp(1) + log_base(stimuli)
    if sample_weight is not None:
        scores = torch.where(sample_weight > 0, scores, torch.inf)
    index = scores.argmin()
    return scores[index], stimuli[index]


def revive(
    params: Parameters, dead: Tensor, worst: tuple[Tensor, Tensor], weight: Tensor, learning: Learning = EXACT
) -> Parameters:
    """Gives the worst-explained stimulus to the first dead class, if that raises the log-likelihood.

    The class starts at the stimulus mixed evenly with the average direction, at its energy, with the prior of
    one stimulus. Lowering the other priors costs 1 nat in all; the change is kept if the stimulus gains more
    than 2.

    Args:
        params: the mixture after an M step.
        dead: `[C]` bool.
        worst: `log p(y)` and the stimulus `y [D]` that had the lowest.
        weight: number of stimuli in the data.
        learning: as in the M step.
    """
    score, stimulus = worst[0], worst[1].double()
    energy = stimulus.sum()
    if not bool(dead.any()) or bool(dead.all()) or not bool(energy > 0):
        return params
    index = int(dead.int().argmax())
    average = params.prior.double() @ params.weights.double()
    weights, mean, shape, prior = (part.clone() for part in params)
    weights[index] = ((stimulus / energy + average) / 2).to(weights.dtype)
    mean[index], shape[index] = energy, shape[~dead].median()
    if learning.learn_prior:
        prior *= 1 - 1 / weight
        prior[index] = 1 / weight
    revived = Parameters(weights, mean, shape, prior)
    gain = log_joint(stimulus.unsqueeze(0), revived, learning.intensity)[0, index] - score
    return revived if bool(gain > 2) else params
