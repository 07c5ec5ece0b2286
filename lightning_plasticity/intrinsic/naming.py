"""Names for classes that were learned without labels, from a few labelled stimuli.

A class is named by the labels of the stimuli that it answers for, `p(label k | class c) = sum_n s_nc [l_n =
k] / sum_n s_nc`, which is what a second Hebbian layer with the same rule would learn from those labels.
"""

import torch
from torch import Tensor

from lightning_plasticity.intrinsic.distribution import Parameters


def label_counts(posterior: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    """How often each class answered for each label: `sum_n s_nc [l_n = k]`, `[C, K]`, float64.

    Args:
        posterior: `s [n, C]`.
        labels: `[n]`, -1 where the label is not known.
        num_labels: `K`.
    """
    known = labels >= 0
    one_hot = torch.nn.functional.one_hot(labels[known], num_labels).double()
    return posterior[known].double().T @ one_hot


def class_names(counts: Tensor) -> Tensor:
    """`p(label | class) [C, K]` from counts; a class that has met no label says what is true of all classes.

    Example:
        >>> class_names(torch.tensor([[3.0, 1.0], [0.0, 0.0]]))
        tensor([[0.7500, 0.2500],
                [0.7500, 0.2500]], dtype=torch.float64)
    """
    counts = counts.double()
    base = counts.sum(0) + torch.finfo(torch.float64).tiny
    prior = base / base.sum()
    return (counts + 1e-9 * prior) / (counts.sum(1, keepdim=True) + 1e-9)


def label_posterior(posterior: Tensor, counts: Tensor) -> Tensor:
    """`p(label | y) = sum_c p(c | y) p(label | c)`, `[n, K]`."""
    return posterior.double() @ class_names(counts)


def best_label(counts: Tensor, least: float = 0.5) -> Tensor:
    """The label that each class answers for most, `[C]`; -1 if it has met fewer than `least`."""
    return counts.argmax(1).where(counts.sum(1) >= least, -1)


def label_intensity(params: Parameters, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and Gamma shape of the intensities that go with each label, `[K]` each.

    The classes whose best label it is are mixed in proportion to their priors; the shape is that of a Gamma
    distribution with the mixture's mean and variance (infinite if it has no spread). NaN for a label without
    a class.
    """
    named = best_label(counts).unsqueeze(1) == torch.arange(counts.shape[1], device=counts.device)
    share = params.prior.double().unsqueeze(1) * named
    share = share / share.sum(0)
    mu = params.mean.double()
    mean = mu @ share
    variance = (mu.square() * (1 + 1 / params.shape.double())) @ share - mean.square()
    return mean, mean.square() / variance.clamp_min(0)
