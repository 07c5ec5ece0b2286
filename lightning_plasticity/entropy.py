"""Entropies that say how sure a model is, or how much of what arrives is new.

SAFE weighs its two learners by them (Zhao et al., NeurIPS 2024); the federated memory and the callback
``EntropyController`` steer plasticity by them (Alessandrelli et al., 2026).
"""

import math

import torch
from torch import Tensor


def binary_entropy(probability: Tensor) -> Tensor:
    """Entropy of a coin, ``-p log2 p - (1 - p) log2 (1 - p)``: 0 at p = 0 and 1, 1 at p = 1/2.

    Args:
        probability: any shape, in [0, 1]. Values just outside, by rounding, count as 0 or 1; NaN stays NaN.

    Returns:
        Bits, same shape.

    >>> binary_entropy(torch.tensor([0.0, 0.5, 0.11]))
    tensor([0.0000, 1.0000, 0.4999])
    """
    p = probability.clamp(0, 1)
    nats: Tensor = torch.special.entr(p) + torch.special.entr(1 - p)
    return nats / math.log(2)


def predictive_entropy(logits: Tensor, normalize: bool = False) -> Tensor:
    """Entropy of the softmax over the last dimension.

    Args:
        logits: ``[..., classes]``. A class with logit ``-inf`` counts as impossible.
        normalize: divide by ``log(classes)``, so that 1 is a uniform guess (0 for a single class).

    Returns:
        ``[...]``, in nats, or as a share of the largest possible one.

    Raises:
        ValueError: for logits without a class.

    >>> predictive_entropy(torch.tensor([[0.0, 0.0], [2.0, -2.0]]), normalize=True).round(decimals=3)
    tensor([1.0000, 0.1300])
    """
    classes = logits.shape[-1] if logits.dim() else 0
    if not classes:
        raise ValueError(f"logits of shape {tuple(logits.shape)} hold no class: give [..., classes]")
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
    return entropy / max(math.log(classes), torch.finfo(entropy.dtype).tiny) if normalize else entropy


def sign_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Share of positions where two tensors have the same sign, among those where neither is zero.

    Zeros are left out: an average of an even number of +-1 patterns is exactly 0 at many positions, and
    counting those as disagreement makes a stationary stream look new.

    Args:
        first: any shape.
        second: the same shape.

    Returns:
        0-d, in [0, 1]; NaN where no position can be compared (one of the two is zero everywhere).

    Raises:
        ValueError: for different shapes.

    >>> sign_agreement(torch.tensor([1.0, -2.0, 0.0, 3.0]), torch.tensor([2.0, 1.0, 1.0, 5.0]))
    tensor(0.6667)
    """
    agreeing, compared = sign_counts(first, second)
    return agreeing / compared


def sign_counts(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Count agreeing and compared positions as :func:`sign_agreement` does; counts add up over parts.

    >>> sign_counts(torch.tensor([1.0, -2.0, 0.0]), torch.tensor([2.0, 1.0, 1.0]))
    (tensor(1), tensor(2))
    """
    if first.shape != second.shape:
        raise ValueError(f"shapes {tuple(first.shape)} and {tuple(second.shape)} differ: they must be equal")
    product = first.sign() * second.sign()
    return (product > 0).sum(), (product != 0).sum()


def entropy_weights(logits: Tensor, gamma: float = 1.0) -> Tensor:
    """Weights of several learners, larger for those that are surer: ``softmax_l(-gamma * H_l)`` (SAFE).

    Args:
        logits: ``[learners, ..., classes]``.
        gamma: 0 weighs all alike; the larger, the more the surest learner decides alone.

    Returns:
        ``[learners, ...]``, summing to 1 over the learners.

    Raises:
        ValueError: for a negative or non-finite gamma.

    >>> entropy_weights(torch.tensor([[[8.0, 0.0]], [[0.1, 0.0]]]), gamma=5.0)
    tensor([[0.9691],
            [0.0309]])
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(
            f"gamma={gamma} must be a finite number >= 0: 0 is the plain average of the learners"
        )
    return torch.softmax(-gamma * predictive_entropy(logits), 0)
