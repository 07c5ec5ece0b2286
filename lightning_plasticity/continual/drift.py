"""Statistics that follow the fast learner: sums over old data, carried to features that have moved since.

The slow learner never changes, so its sums over all old samples stay exact; the fast learner's go stale with
every step, and old samples are gone. What is left are the current session's images: random views of them
(`surrogates.py`) pass through both learners, and a linear map from slow to fast random features is fitted,
``h_F = A^T h_S + e``. It carries the slow sums over: ``G_F = A^T G_S A + n Cov(e)``, ``Q_F = A^T Q_S``.
The covariance of what the map misses belongs to the sums: without it directions that old samples do have
look empty, and the ridge head trusts them. Not in the paper; the authors' code leaves old sums as they were.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_plasticity.continual.statistics import RidgeStatistics, full_precision


class DriftSums(NamedTuple):
    """Sums over views that both learners saw; additive over batches and processes.

    Attributes:
        slow: ``sum h_S h_S^T [M, M]``.
        cross: ``sum h_S h_F^T [M, M]``.
        fast: ``sum h_F h_F^T [M, M]``.
        views: their number, 0-d.
    """

    slow: Tensor
    cross: Tensor
    fast: Tensor
    views: Tensor

    @classmethod
    def zeros(cls, like: Tensor) -> "DriftSums":
        """No view yet; `like` is `[M, M]`."""
        slow, cross, fast = (torch.zeros_like(like) for _ in range(3))
        return cls(slow, cross, fast, like.new_zeros(()))

    @torch.no_grad()
    def add(self, slow: Tensor, fast: Tensor) -> None:
        """Adds random features `[B, M]` of the same views under both learners."""
        slow, fast = slow.to(self.slow.dtype), fast.to(self.slow.dtype)
        self.slow.addmm_(slow.T, slow)
        self.cross.addmm_(slow.T, fast)
        self.fast.addmm_(fast.T, fast)
        self.views.add_(len(slow))


class DriftMap(NamedTuple):
    """``h_F = A^T h_S + e``.

    Attributes:
        matrix: `A [M, M]`.
        residual: second moment of `e`, `[M, M]`.
    """

    matrix: Tensor
    residual: Tensor


def fit_map(sums: DriftSums, penalty: float = 3e-3) -> DriftMap:
    """Fits the map by ridge regression towards the identity: where no view says otherwise, nothing moved.

    ``A = (S + rho I)^-1 (X + rho I)`` of the sums `S` (slow) and `X` (cross), ``rho = penalty * tr S / M``.

    Args:
        sums: over views of current images.
        penalty: pull towards the identity, as a share of the mean eigenvalue of `S`.

    Raises:
        ValueError: without a view or with a penalty that is not positive.

    >>> h = torch.eye(2)
    >>> sums = DriftSums.zeros(h)
    >>> sums.add(h, 3 * h)
    >>> fit_map(sums, penalty=1e-6).matrix.round(decimals=3)
    tensor([[3., 0.],
            [0., 3.]])
    """
    if not penalty > 0:
        raise ValueError(f"penalty={penalty} must be positive")
    if not float(sums.views):
        raise ValueError("no view has been added: a map of the drift needs some")
    pull = penalty * sums.slow.diagonal().mean()
    damped, target = sums.slow.clone(), sums.cross.clone()
    damped.diagonal().add_(pull)
    target.diagonal().add_(pull)
    with full_precision(damped):
        matrix = torch.cholesky_solve(target, torch.linalg.cholesky(damped))
        crossed = matrix.T @ sums.cross
        residual = (sums.fast - crossed - crossed.T + matrix.T @ sums.slow @ matrix) / sums.views
    return DriftMap(matrix, residual)


@torch.no_grad()
def carry(statistics: RidgeStatistics, drift: DriftMap) -> RidgeStatistics:
    """The sums that the same samples have in the fast learner's random features, as far as the map knows.

    Args:
        statistics: the slow learner's over old samples.
        drift: from slow to fast.

    Returns:
        New sums.
    """
    carried = RidgeStatistics(len(statistics.gram), len(statistics.counts), statistics.gram.dtype).to(
        statistics.gram.device
    )
    with full_precision(statistics.gram):
        gram = drift.matrix.T @ statistics.gram @ drift.matrix + statistics.size * drift.residual
        carried.gram.copy_((gram + gram.T) / 2)
        carried.cross.copy_(drift.matrix.T @ statistics.cross)
    carried.counts.copy_(statistics.counts)
    return carried
