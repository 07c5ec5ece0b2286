"""Sums of random features that a ridge head is solved from, and their compact form in a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def full_precision(like: Tensor) -> torch.autocast:
    """No autocast on the device of a tensor: sums and what is solved from them do not bear half precision."""
    return torch.autocast(like.device.type, enabled=False)


class RidgeStatistics(nn.Module):
    """``G = sum h h^T``, ``Q = sum h y^T`` and the number of samples of each class.

    Additive: over batches, over sessions and over processes. A state dict holds the lower triangle of `G`
    alone, half of it.

    Args:
        width: `M`.
        num_classes: `C_all`.
        dtype: of `G` and `Q`.

    Attributes:
        gram: `G [M, M]`.
        cross: `Q [M, C_all]`.
        counts: int64 `[C_all]`.

    >>> sums = RidgeStatistics(2, 2)
    >>> sums.add(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    >>> sums.gram, sums.cross, sums.counts
    (tensor([[1., 2.],
            [2., 5.]]), tensor([[1., 0.],
            [2., 1.]]), tensor([1, 1]))
    """

    gram: Tensor
    cross: Tensor
    counts: Tensor

    def __init__(self, width: int, num_classes: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("gram", torch.zeros(width, width, dtype=dtype))
        self.register_buffer("cross", torch.zeros(width, num_classes, dtype=dtype))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(self.counts.sum())

    @torch.no_grad()
    def add(self, expanded: Tensor, labels: Tensor) -> None:
        """Adds random features `[B, M]` with labels `[B]`."""
        expanded = expanded.to(self.gram.dtype)
        self.gram.addmm_(expanded.T, expanded)
        self.cross.index_add_(1, labels, expanded.T)
        self.counts += torch.bincount(labels, minlength=len(self.counts))

    @torch.no_grad()
    def merge(self, other: "RidgeStatistics") -> None:
        """Adds another's sums."""
        self.gram += other.gram
        self.cross += other.cross
        self.counts += other.counts

    @torch.no_grad()
    def zero_(self) -> None:
        """Forgets all."""
        for tensor in (self.gram, self.cross, self.counts):
            tensor.zero_()

    def squared_error(self, weight: Tensor) -> Tensor:
        """``sum_i |y_i - W^T h_i|^2 = tr(W^T G W) - 2 tr(W^T Q) + n`` from the sums alone, 0-d.

        Args:
            weight: `W [m, C_all]` with `m <= M`: of the first `m` random features.
        """
        width, weight = len(weight), weight.to(self.gram.dtype)
        with full_precision(weight):
            quadratic = (weight * (self.gram[:width, :width] @ weight)).sum()
        return quadratic - 2 * (weight * self.cross[:width]).sum() + self.counts.sum()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        rows, columns = _triangle(self.gram)
        destination[f"{prefix}gram"] = self.gram[rows, columns]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        packed = state_dict.get(f"{prefix}gram")
        full = dict(state_dict)
        if packed is not None and packed.dim() == 1:
            rows, columns = _triangle(self.gram)
            if len(packed) == len(rows):
                gram = torch.empty_like(self.gram)
                gram[rows, columns] = gram[columns, rows] = packed.to(gram)
                full[f"{prefix}gram"] = gram
        super()._load_from_state_dict(full, prefix, *args)


def _triangle(matrix: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(len(matrix), len(matrix), device=matrix.device)
    return rows, columns
