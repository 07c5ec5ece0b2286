"""SAFE's losses: keep what the pre-trained net knows, stay near the slow learner, agree across their heads.

Zhao et al., NeurIPS 2024 (arXiv:2411.02175), as their public code runs them; where we differ it is said.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_plasticity.continual.heads import CosineHead

Reduction = Literal["sum", "mean"]


def transfer_terms(
    features: Tensor, pretrained: Tensor, reduction: Reduction = "sum", standardize: bool = False
) -> tuple[Tensor, Tensor]:
    """How far the correlation of two nets' features is from the identity, on and off its diagonal.

    ``Mx = (1/B) sum_i s_i p_i^T`` of features `s`, `p` scaled to unit length, sample by sample;
    ``L_diag = sum_j (Mx_jj - 1)^2`` and ``L_rdn = sum_{j != k} Mx_jk^2``. For a batch smaller than the
    feature size `Mx` is never formed: ``|Mx|^2 = (1/B^2) sum_ij (s_i.s_j)(p_i.p_j)``.

    Args:
        features: `[B, d]` of the net that learns.
        pretrained: `[B, d]` of the pre-trained net; no gradient flows to it.
        reduction: `"sum"` as in the authors' code, `"mean"` over the `d` and the `d (d - 1)` entries as in
            the paper.
        standardize: scale each feature over the batch (Barlow Twins) instead of each sample to unit length.

    Returns:
        `L_diag` and `L_rdn`, 0-d, not weighted. They are at least float32.

    Raises:
        ValueError: for features of different shapes or an unknown reduction.

    >>> same = torch.eye(3)
    >>> [round(float(term), 3) for term in transfer_terms(same, same)]       # Mx = I / 3
    [1.333, 0.0]
    """
    if features.shape != pretrained.shape or features.dim() != 2:
        raise ValueError(
            f"features {tuple(features.shape)} and pretrained {tuple(pretrained.shape)} must both be [B, d]"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction={reduction!r} must be 'sum' or 'mean'")
    s, p = (_standardized(f) if standardize else _unit(f) for f in (features, pretrained.detach()))
    batch, width = s.shape
    diagonal = (s * p).mean(0)
    small = batch < width
    total = ((s @ s.T) * (p @ p.T)).sum() / batch**2 if small else (s.T @ p / batch).square().sum()
    terms = (diagonal - 1).square().sum(), total - diagonal.square().sum()
    return terms if reduction == "sum" else (terms[0] / width, terms[1] / max(width * (width - 1), 1))


def transfer_loss(
    features: Tensor,
    pretrained: Tensor,
    diagonal: float = 1.0,
    redundancy: float = 0.0,
    reduction: Reduction = "sum",
    standardize: bool = False,
) -> Tensor:
    """Weighted sum of `transfer_terms`: session 1 learns without losing what the pre-trained net knows.

    Args:
        features: `[B, d]` of the net that learns.
        pretrained: `[B, d]` of the pre-trained net.
        diagonal: weight `a_diag` of the pull towards the pre-trained features.
        redundancy: weight `a_rdn` of the decorrelation. With features that are never negative it works
            against the diagonal, and a large weight collapses them.
        reduction: see `transfer_terms`.
        standardize: see `transfer_terms`.

    >>> float(transfer_loss(torch.eye(3), torch.eye(3), diagonal=3.0).round(decimals=3))
    4.0
    """
    on, off = transfer_terms(features, pretrained, reduction, standardize)
    return diagonal * on + redundancy * off


def alignment_loss(fast: Tensor, slow: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Distance of the fast learner from the slow one, ``1 - cos(f_F(x_i), f_S(x_i))``.

    Args:
        fast: `[B, d]`.
        slow: `[B, d]`; no gradient flows to it.
        reduction: the mean over the batch (ours), or the sum as in the authors' code, whose weight then
            depends on the batch: a weight on the sum is that on the mean divided by `B`.

    Raises:
        ValueError: for features of different shapes or an unknown reduction.

    >>> float(alignment_loss(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]])))
    0.5
    """
    if fast.shape != slow.shape:
        raise ValueError(f"fast {tuple(fast.shape)} and slow {tuple(slow.shape)} must have one shape [B, d]")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction={reduction!r} must be 'sum' or 'mean'")
    distance = 1 - (_unit(fast) * _unit(slow.detach())).sum(-1)
    return distance.mean() if reduction == "mean" else distance.sum()


def cross_classification_loss(
    fast: Tensor,
    slow: Tensor,
    labels: Tensor,
    fast_head: CosineHead,
    slow_head: CosineHead,
    old_classes: int,
    seen_classes: int,
    pseudo_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Each learner's head classifies the other's features, old class weights standing for old samples.

    Slow to fast: ``CE(head_F([W_S[:K]; f_S(x)]), [0..K-1; y])``, which teaches the fast head. Fast to slow:
    ``CE(head_S([W_F[:K]; f_F(x)]), [0..K-1; y])`` with a frozen slow head, which teaches the fast features
    and the fast head's old rows.

    Args:
        fast: `[B, d]` features of the fast learner.
        slow: `[B, d]` of the slow learner; no gradient flows to them.
        labels: `[B]`, below `seen_classes`.
        fast_head: the trained cosine head.
        slow_head: the frozen one.
        old_classes: `K`, classes of the sessions before.
        seen_classes: `C`, classes of the sessions so far; later rows are left out.
        pseudo_weight: weight of each of the `K` pseudo-samples beside 1 for a sample: `1 / P` where `P`
            processes hold a share of the batch each, so that together they give what one process gives.

    Returns:
        The two terms, 0-d.

    >>> head = CosineHead(2, 2)
    >>> head.set_rows(0, torch.eye(2))
    >>> terms = cross_classification_loss(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), head, head, 1, 2)
    >>> [round(term.item(), 6) for term in terms]
    [4.5e-05, 4.5e-05]
    """
    targets = torch.cat([torch.arange(old_classes, device=labels.device), labels])
    weight = fast.new_ones(len(targets), dtype=torch.float32)
    weight[:old_classes] = pseudo_weight
    terms = []
    for head, rows, features in (
        (fast_head, slow_head.weight.detach(), slow.detach()),
        (slow_head, fast_head.weight, fast),
    ):
        logits = head(torch.cat([rows[:old_classes], features.to(rows.dtype)]), seen_classes)
        terms.append((weight * F.cross_entropy(logits, targets, reduction="none")).sum() / weight.sum())
    return terms[0], terms[1]


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float() if features.dtype != torch.float64 else features, dim=-1)


def _standardized(features: Tensor) -> Tensor:
    wide = features.float() if features.dtype != torch.float64 else features
    return (wide - wide.mean(0)) / wide.std(0, correction=0).clamp(min=1e-12)
