"""How well archetypes that were found agree with the true ones, whatever their order and sign."""

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric


def match_archetypes(found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs true archetypes with found ones so that their absolute overlaps have the largest sum.

    The Hungarian method. Every found archetype serves one true one at most, so that finding one twice does
    not count twice; `-xi` is the same memory as `xi`.

    Args:
        found: +-1 `[F, N]`; `F` may be 0.
        truth: +-1 `[K, N]`.

    Returns:
        Absolute overlap `|found . truth| / N` of each true archetype with its partner, `[K]` float64, 0
        without one; and the partner's index, `[K]` int64, -1 without one. Both on the truth's device.

    Raises:
        ValueError: if the two have unlike numbers of neurons.
        ModuleNotFoundError: if SciPy is missing.

    Example:
        >>> truth = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1]])
        >>> match_archetypes(-truth[[1, 0]], truth)
        (tensor([1., 1., 0.], dtype=torch.float64), tensor([ 1,  0, -1]))
    """
    overlap = _overlaps(found, truth)
    rows, columns = _assignment()(overlap.cpu().numpy(), maximize=True)
    matched = torch.zeros(len(truth), dtype=torch.float64, device=truth.device)
    partner = torch.full((len(truth),), -1, device=truth.device)
    rows, columns = torch.as_tensor(rows), torch.as_tensor(columns)
    matched[columns] = overlap[rows, columns].to(truth.device)
    partner[columns] = rows.to(truth.device)
    return matched, partner


def magnetisation(found: Tensor, truth: Tensor) -> Tensor:
    """Largest absolute overlap of each true archetype with any found one, `m_mu = max_nu |.|`, `[K]` float64.

    Args:
        found: +-1 `[F, N]`; `F` may be 0, and `m` is 0 then.
        truth: +-1 `[K, N]`.

    Raises:
        ValueError: if the two have unlike numbers of neurons.

    Example:
        >>> magnetisation(torch.tensor([[1.0, 1, 1, -1]]), torch.tensor([[-1.0, -1, -1, -1]]))
        tensor([0.5000], dtype=torch.float64)
    """
    overlap = _overlaps(found, truth)
    return overlap.amax(0) if len(overlap) else overlap.new_zeros(len(truth))


def forgetting(overlaps: Tensor) -> Tensor:
    """How far each archetype has fallen from its best overlap, `[K]`; NaN for one never seen.

    Args:
        overlaps: `[T, K]` over time, NaN before an archetype is seen.

    Example:
        >>> forgetting(torch.tensor([[1.0, torch.nan], [0.75, 0.5], [0.5, 1.0]]))
        tensor([0.5000, 0.0000])
    """
    last = overlaps[-1]
    return overlaps.nan_to_num(-torch.inf).amax(0).maximum(last) - last


def latency(overlaps: Tensor, threshold: float = 0.9) -> Tensor:
    """Rounds from an archetype's first appearance until it is known, `[K]`: 1 is at once, infinity is never.

    Args:
        overlaps: `[T, K]` after every round, NaN before an archetype is seen.
        threshold: overlap from which on it counts as known.

    Example:
        >>> latency(torch.tensor([[1.0, torch.nan], [1.0, 0.5], [1.0, 1.0]])).tolist()
        [1.0, 2.0]
    """
    rounds = torch.arange(1.0, len(overlaps) + 1).unsqueeze(1)
    first = torch.where(overlaps.isnan(), torch.inf, rounds).amin(0)
    known = torch.where(overlaps >= threshold, rounds, torch.inf).amin(0)
    return torch.where(known.isinf(), torch.inf, known - first + 1)


class ArchetypeOverlap(Metric):
    """Overlap of true archetypes with found ones after Hungarian matching, in absolute value.

    A true archetype that has no partner counts as 0.

    Args:
        reduction: ``"mean"`` over all true archetypes of all updates, or the ``"min"``.
        **kwargs: those of `torchmetrics.Metric`.

    Raises:
        ValueError: for another reduction.

    Example:
        >>> metric = ArchetypeOverlap()
        >>> truth = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1]])
        >>> metric.update(found=-truth[:1], truth=truth)
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor
    lowest: Tensor

    def __init__(self, reduction: Literal["mean", "min"] = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if reduction not in ("mean", "min"):
            raise ValueError(f"reduction={reduction!r} must be 'mean' or 'min'")
        self.reduction = reduction
        self.set_dtype(torch.float64)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("lowest", torch.ones((), dtype=torch.float64), dist_reduce_fx="min")

    def update(self, found: Tensor, truth: Tensor) -> None:
        """Adds one comparison of `found [F, N]` with `truth [K, N]`, both +-1."""
        matched, _ = match_archetypes(found, truth)
        self.total += matched.sum()
        self.count += len(matched)
        if len(matched):
            self.lowest = torch.minimum(self.lowest, matched.min())

    def compute(self) -> Tensor:
        """Gives the mean or the least matched overlap, 0-d float64; NaN before any true archetype."""
        mean = self.total / self.count
        return mean if self.reduction == "mean" else torch.where(self.count > 0, self.lowest, mean)


def _overlaps(found: Tensor, truth: Tensor) -> Tensor:
    """`|found . truth| / N`, `[F, K]` float64."""
    if found.ndim != 2 or truth.ndim != 2 or found.shape[1] != truth.shape[1] or not truth.shape[1]:
        raise ValueError(
            f"found {tuple(found.shape)} and truth {tuple(truth.shape)} must be [F, N] and [K, N] of one N"
        )
    return (found.double().to(truth.device) @ truth.double().T).abs() / truth.shape[1]


def _assignment() -> Any:
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matching archetypes needs scipy: pip install 'lightning-plasticity[recipes]'"
        ) from error
    return linear_sum_assignment
