"""How well a model that learns in sessions does on old and new ones: accuracies and their summaries."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def accuracy_matrix(correct: Tensor, total: Tensor) -> Tensor:
    """``R[t, i]``: accuracy on session ``i`` after training on session ``t``; NaN where nothing was counted.

    Args:
        correct: ``[T, T]``, right answers after session (row) on the samples of session (column).
        total: ``[T, T]``, samples.

    Returns:
        float64 ``[T, T]``.
    """
    return torch.where(total > 0, correct.double() / total.double(), torch.nan)


def incremental_accuracies(correct: Tensor, total: Tensor) -> Tensor:
    """Share of right answers on all sessions seen, ``A_t = sum_{i <= t} n_i R[t, i] / sum_{i <= t} n_i``.

    >>> incremental_accuracies(torch.tensor([[3, 0], [1, 4]]), torch.tensor([[4, 0], [4, 6]]))
    tensor([0.7500, 0.5000], dtype=torch.float64)
    """
    right, all_ = correct.tril().sum(1).double(), total.tril().sum(1).double()
    return torch.where(all_ > 0, right / all_, torch.nan)


def forgetting(matrix: Tensor, after: int) -> Tensor:
    """``F = mean_{i < T} (max_{i <= t < T} R[t, i] - R[T, i])`` (Chaudhry et al., ECCV 2018), 1-based.

    The best accuracy that a session had *before* the last one, minus its last: it is negative where the
    last session helped an earlier one. Variants that differ: the maximum over ``t <= T`` (never negative),
    or from ``t = 1`` (counts guesses on a session before it was learned).

    Args:
        matrix: ``R``, ``[T, T]``.
        after: ``T``, 0-based index of the last session.

    Returns:
        0-d; NaN if there is one session only.
    """
    if after == 0:
        return matrix.new_tensor(torch.nan)
    best = torch.stack([matrix[session:after, session].max() for session in range(after)])
    return (best - matrix[after, :after]).mean()


def backward_transfer(matrix: Tensor, after: int) -> Tensor:
    """``BWT = mean_{i < T} (R[T, i] - R[i, i])`` (Lopez-Paz and Ranzato, NeurIPS 2017), 1-based.

    Args:
        matrix: ``R``, ``[T, T]``.
        after: ``T``, 0-based index of the last session.

    Returns:
        0-d; NaN if there is one session only.
    """
    if after == 0:
        return matrix.new_tensor(torch.nan)
    return (matrix[after, :after] - matrix.diagonal()[:after]).mean()


class ContinualAccuracy(Metric):
    """Accuracy on every session after every session, and what is made of it.

    With ``R[t, i]`` the accuracy on the test samples of session ``i`` after training on session ``t``,
    ``n_i`` their number and ``T`` the last session evaluated, ``compute`` gives

    ======================  ===========================================================================
    ``final_micro``         ``A_T = sum_{i <= T} n_i R[T, i] / sum_{i <= T} n_i``, over samples
    ``final_macro``         ``mean_{i <= T} R[T, i]``, over sessions; differs where their sizes do
    ``average_incremental`` ``mean_{t <= T} A_t``
    ``forgetting``          ``mean_{i < T} (max_{i <= t < T} R[t, i] - R[T, i])``, may be negative
    ``backward_transfer``   ``mean_{i < T} (R[T, i] - R[i, i])``
    ``matrix``              ``R``, float64 ``[T, T]``: row t after session t; NaN where nothing was counted
    ======================  ===========================================================================

    A summary that needs an evaluation which wasn't made is NaN: each session must be evaluated on itself
    and on all before it. Evaluations of later sessions are kept in the matrix and enter no summary. Counts
    are summed over processes, so that the values are exact whatever the number of processes.

    Args:
        num_sessions: ``T``.

    Raises:
        ValueError: if ``num_sessions`` isn't 1 or more.

    Example:
        >>> metric = ContinualAccuracy(2)
        >>> metric.update(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([0, 0]), after_session=0)
        >>> right, given = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 2, 2, 3])
        >>> metric.update(given, right, torch.tensor([0, 0, 1, 1]), after_session=1)
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items() if name != "matrix"}
        {'final_micro': 0.75, 'final_macro': 0.75, 'average_incremental': 0.875, 'forgetting': 0.5,
         'backward_transfer': -0.5}
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, num_sessions: int) -> None:
        super().__init__()
        if num_sessions < 1:
            raise ValueError(f"num_sessions={num_sessions!r} must be 1 or more")
        self.num_sessions = num_sessions
        for name in ("correct", "total"):
            counts = torch.zeros(num_sessions, num_sessions, dtype=torch.int64)
            self.add_state(name, default=counts, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor, sessions: Tensor | int, after_session: int) -> None:
        """Count the answers of a batch.

        Args:
            predictions: int ``[B]``, or logits ``[B, C]``, whose largest is the answer.
            labels: int ``[B]``.
            sessions: int ``[B]``, 0-based session that each sample belongs to, or one for all.
            after_session: 0-based session after whose training this is.

        Raises:
            ValueError: for shapes that differ, or a session out of range.
        """
        if predictions.ndim == 2:
            predictions = predictions.argmax(1)
        if isinstance(sessions, int):
            sessions = torch.full_like(labels, sessions)
        if not predictions.shape == labels.shape == sessions.shape or labels.ndim != 1:
            shapes = [tuple(tensor.shape) for tensor in (predictions, labels, sessions)]
            raise ValueError(f"predictions, labels and sessions have the shapes {shapes}: give [B] each")
        if not 0 <= after_session < self.num_sessions:
            raise ValueError(f"after_session={after_session!r} must be 0..{self.num_sessions - 1}")
        if len(sessions) and not 0 <= int(sessions.min()) <= int(sessions.max()) < self.num_sessions:
            raise ValueError(f"sessions={sorted(set(sessions.tolist()))} must be 0..{self.num_sessions - 1}")
        sessions = sessions.long()
        right = sessions[predictions == labels]
        self.correct[after_session] += torch.bincount(right, minlength=self.num_sessions)
        self.total[after_session] += torch.bincount(sessions, minlength=self.num_sessions)

    def compute(self) -> dict[str, Tensor]:
        """Give the summaries and the matrix.

        Raises:
            ValueError: if nothing was counted.
        """
        correct, total = self.correct.cpu(), self.total.cpu()  # float64 isn't to be had on every accelerator
        matrix = accuracy_matrix(correct, total)
        rows = total.sum(1).nonzero().flatten()
        if not len(rows):
            raise ValueError("ContinualAccuracy has counted nothing: call update() first")
        last = int(rows[-1])
        seen = torch.ones_like(matrix).tril()[: last + 1, : last + 1].bool()
        complete = not bool(matrix[: last + 1, : last + 1][seen].isnan().any())
        incremental = incremental_accuracies(correct, total)[: last + 1]
        final_row = matrix[last, : last + 1]
        unknown = matrix.new_tensor(torch.nan)
        return {
            "final_micro": incremental[last] if not final_row.isnan().any() else unknown,
            "final_macro": final_row.mean(),
            "average_incremental": incremental.mean() if complete else unknown,
            "forgetting": forgetting(matrix, last),
            "backward_transfer": backward_transfer(matrix, last),
            "matrix": matrix,
        }

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Keep the matrix of one session ``[1, 1]``: torchmetrics squeezes what has one element."""
        squeezing = super()._wrap_compute(compute)

        @wraps(compute)
        def shaped(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
            values: dict[str, Tensor] = squeezing(*args, **kwargs)
            return values | {"matrix": values["matrix"].reshape(self.num_sessions, self.num_sessions)}

        return shaped
