"""SAFE's inference: two learners' logits, each weighed by how sure it is (Zhao et al., 2024)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_plasticity.entropy import entropy_weights


def aggregate(logits: Sequence[Tensor], gamma: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mixes the logits (not the probabilities) of several learners: ``sum_l w_l z_l``.

    ``w = softmax_l(-gamma H_l)`` with the entropy `H_l` of each learner's prediction, sample by sample. The
    authors' evaluation reports the better of the fast learner and the aggregate on the test labels; this is
    the aggregate, always.

    Args:
        logits: of each learner, `[B, C]` over the same classes.
        gamma: 0: the plain average; the larger, the more the surer learner decides alone.

    Returns:
        Logits `[B, C]` and the learners' weights `[learners, B]`, in at least float32: a large gamma needs
        it.

    Raises:
        ValueError: for no learner, logits of different shapes, or a negative gamma.

    >>> z, w = aggregate([torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])], gamma=0.0)
    >>> z, w.flatten()
    (tensor([[1.0000, 0.5000]]), tensor([0.5000, 0.5000]))
    """
    shapes = {tuple(learner.shape) for learner in logits}
    if len(shapes) != 1:
        raise ValueError(f"logits of shapes {sorted(shapes)}: give one [B, C] of every learner")
    stacked = torch.stack([z if z.dtype == torch.float64 else z.float() for z in logits])
    weights = entropy_weights(stacked, gamma)
    return (weights.unsqueeze(-1) * stacked).sum(0), weights
