"""RingScore: whether recurrent and conjunctive weights form a ring attractor; LiveCells."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

LIVE = 0.05  # a cell lives if its highest rate over the track is above this


def aligned_profile(matrix: Tensor) -> Tensor:
    """Mean weight by offset of the sender from the receiver, the offset 0 in the middle: `[n]`.

    Args:
        matrix: weights `[n, n]`, rows and columns sorted along the ring; rows receive.

    Example:
        >>> aligned_profile(torch.eye(5))
        tensor([0., 0., 1., 0., 0.])
    """
    count = len(matrix)
    rows = torch.arange(count, device=matrix.device)
    rolled = matrix[rows.unsqueeze(1), (rows.unsqueeze(1) + rows) % count]
    return rolled.mean(0).roll(count // 2)


def ring_score(recurrent: Tensor, right: Tensor, left: Tensor) -> dict[str, Tensor]:
    """Two signs of a ring attractor, and their product.

    `centre_mass`: share of the recurrent profile's positive part within a tenth of the ring on either side (a
    fifth by chance). `antisymmetry`: minus the correlation of the odd parts of the two conjunctive profiles:
    one pushes where the other pulls; their even parts, equal on both sides, are a common drive that moves
    nothing. `score`: their product, 0 where the second is negative.

    Args:
        recurrent: `[n, n]`, sorted along the ring.
        right: conjunctive weights of movement to the right, likewise.
        left: to the left, likewise.
    """
    profile = aligned_profile(recurrent)
    positive = profile.clamp_min(0.0)
    reach, middle = max(1, len(profile) // 10), len(profile) // 2
    near = positive[middle - reach : middle + reach + 1].sum() / positive.sum().clamp_min(1e-12)
    both = torch.stack([aligned_profile(right), aligned_profile(left)])
    mirrored = both[:, (2 * middle - torch.arange(len(profile), device=both.device)) % len(profile)]
    opposite = -torch.corrcoef(both - mirrored)[0, 1].nan_to_num()  # maps that were cut push nowhere
    return {"centre_mass": near, "antisymmetry": opposite, "score": near * opposite.clamp_min(0.0)}


class RingScore(Metric):
    """Mean ring score of the models it has seen; see `ring_score`.

    Example:
        >>> ring = RingScore()
        >>> shift = torch.eye(10).roll(1, 0)
        >>> ring.update(torch.eye(10), shift - shift.T, shift.T - shift)
        >>> round(float(ring.compute()["score"]), 3)
        1.0
    """

    full_state_update = False
    centre_mass: Tensor
    antisymmetry: Tensor
    score: Tensor
    models: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("centre_mass", "antisymmetry", "score"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("models", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, recurrent: Tensor, right: Tensor, left: Tensor) -> None:
        """Takes one model's weights, sorted along the ring `[n, n]`."""
        if recurrent.ndim != 2 or not recurrent.shape == right.shape == left.shape:
            raise ValueError("recurrent, right and left must be square matrices of one size")
        for name, value in ring_score(recurrent, right, left).items():
            setattr(self, name, getattr(self, name) + value)
        self.models += 1

    def compute(self) -> dict[str, Tensor]:
        """Means of `centre_mass`, `antisymmetry` and `score`."""
        return {name: getattr(self, name) / self.models for name in ("centre_mass", "antisymmetry", "score")}


class LiveCells(Metric):
    """Mean number of cells that fire somewhere: highest rate over all positions above 0.05.

    Example:
        >>> live = LiveCells()
        >>> live.update(torch.tensor([[0.0, 0.9], [0.0, 0.01]]))  # cells, positions
        >>> live.compute()
        tensor(1.)
    """

    full_state_update = False
    total: Tensor
    models: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("models", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, rate_map: Tensor) -> None:
        """Takes one model's rate map `[cells, positions]`."""
        self.total = self.total + (rate_map.amax(1) > LIVE).sum()
        self.models += 1

    def compute(self) -> Tensor:
        """Cells."""
        return self.total / self.models
