"""The heads: a cosine head that is trained, and a ridge head that is solved and predicts."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_plasticity.continual.ridge import PENALTIES, choose_penalty, solve_ridge
from lightning_plasticity.continual.statistics import RidgeStatistics, full_precision

DOUBLE_UP_TO = 4096  # random features whose sums are kept in float64 unless told otherwise


class CosineHead(nn.Module):
    """``sigma <x / |x|, w_c / |w_c|>``: logits from directions alone, with one scale for all.

    Rows are allocated for all classes at once and set when their session begins, so no parameter is ever
    created or resized.

    Args:
        in_features: `d`.
        num_classes: rows.
        scale: start of `sigma`.
        trainable: False: weight and scale are buffers, as in the slow learner.

    Raises:
        ValueError: for sizes below 1 or a scale that is not positive.

    >>> head = CosineHead(3, 2)
    >>> head.set_rows(0, torch.eye(3)[:2])
    >>> head(torch.tensor([[0.0, 5.0, 0.0]])).detach()
    tensor([[ 0., 10.]])
    """

    weight: Tensor
    scale: Tensor

    def __init__(
        self, in_features: int, num_classes: int, scale: float = 10.0, trainable: bool = True
    ) -> None:
        super().__init__()
        _check_sizes(in_features=in_features, num_classes=num_classes)
        if not scale > 0:
            raise ValueError(f"scale={scale} must be positive")
        for name, value in (
            ("weight", torch.zeros(num_classes, in_features)),
            ("scale", torch.tensor(float(scale))),
        ):
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, features: Tensor, classes: int | None = None) -> Tensor:
        """Logits `[B, classes]` of features `[B, d]`, over the first so many classes; in float32 or wider."""
        x = F.normalize(features.to(self.weight.dtype), dim=-1)
        return self.scale * x @ F.normalize(self.weight[:classes], dim=-1).T

    @torch.no_grad()
    def set_rows(self, first: int, rows: Tensor) -> None:
        """Writes rows `[n, d]` in place from row `first` on."""
        self.weight[first : first + len(rows)].copy_(rows)


class RidgeHead(nn.Module):
    """RanPAC's head: random features, streamed sums, a ridge regression onto one-hot labels.

    ``h = relu(f W) / sqrt(M)`` with a fixed normal `W [d, M]`; of all samples only ``G = sum h h^T`` and
    ``Q = sum h y^T`` are kept, so that learning session by session gives what learning all at once gives.
    Every fifth sample of a class goes to sums of its own: the penalty of least squared error on those is
    taken, then the head is solved on both. Where `1 / sqrt(M)` differs from the authors' code, which has no
    such factor: it only makes the penalty independent of `M` (theirs is ours times `M`).

    Args:
        in_features: `d`.
        num_classes: `C_all`.
        random_features: `M`.
        seed: of `W`, which is not stored in checkpoints but drawn again.
        penalties: candidates of the ridge parameter; one alone is taken as it is.
        dtype: of the sums and the solution; None: float64 up to 4,096 random features, where it costs little,
            else float32. Features are expanded in float32.

    Attributes:
        fit: statistics of four fifths of the samples.
        held: statistics of the rest.
        weight: `[M, C_all]`, zero until solved.
        penalty: the one chosen last, 0-d.

    Raises:
        ValueError: for sizes below 1, penalties that are not positive, features of the wrong width or not
            finite, or labels out of range.

    Example:
        >>> head = RidgeHead(4, num_classes=2, random_features=64)
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> head.update(x, (x[:, 0] > 0).long())
        >>> head.solve()
        >>> head(torch.tensor([[3.0, 0, 0, 0], [-3.0, 0, 0, 0]])).argmax(1)
        tensor([1, 0])
    """

    weight: Tensor
    penalty: Tensor
    projection: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        random_features: int = 10_000,
        seed: int = 0,
        penalties: tuple[float, ...] = PENALTIES,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(in_features=in_features, num_classes=num_classes, random_features=random_features)
        if not penalties or min(penalties) <= 0:
            raise ValueError(f"penalties={penalties} must be positive numbers, at least one")
        self.seed, self.penalties = seed, tuple(sorted(penalties))
        dtype = dtype or (torch.float64 if random_features <= DOUBLE_UP_TO else torch.float32)
        self.fit = RidgeStatistics(random_features, num_classes, dtype)
        self.held = RidgeStatistics(random_features, num_classes, dtype)
        self.register_buffer("weight", torch.zeros(random_features, num_classes))
        self.register_buffer("penalty", torch.tensor(0.0))
        self.register_buffer("projection", self._draw(in_features, random_features), persistent=False)

    def _draw(self, in_features: int, random_features: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        drawn: Tensor = torch.randn(in_features, random_features, generator=generator)
        return drawn / math.sqrt(random_features)

    @property
    def counts(self) -> Tensor:
        """Samples of each class so far, int64 `[C_all]`."""
        return self.fit.counts + self.held.counts

    def expand(self, features: Tensor) -> Tensor:
        """Random features `[B, M]` of features `[B, d]`, float32 whatever autocast says."""
        if features.dim() != 2 or features.shape[1] != len(self.projection):
            raise ValueError(f"features {tuple(features.shape)} must be [B, {len(self.projection)}]")
        with full_precision(features):
            expanded: Tensor = features.to(self.projection.dtype) @ self.projection
        return expanded.relu_()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, held: Tensor | None = None) -> None:
        """Adds samples to the sums.

        Args:
            features: `[B, d]`.
            labels: int64 `[B]`.
            held: bool `[B]`, which samples choose the penalty; None: every fifth of each class. Processes
                that share the samples should say it by a sample's index, so that it doesn't depend on them.
        """
        classes = self.weight.shape[1]
        if labels.shape != features.shape[:1]:
            raise ValueError(f"labels {tuple(labels.shape)} must be [B] with B = {len(features)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(
                f"labels {int(labels.min())}..{int(labels.max())} must be in 0..{classes - 1}, "
                f"for num_classes={classes}"
            )
        if not bool(features.isfinite().all()):
            raise ValueError("features are not finite: the backbone has diverged, or its input is not finite")
        expanded = self.expand(features)
        held = self._every_fifth(labels) if held is None else held.to(labels.device)
        self.fit.add(expanded[~held], labels[~held])
        self.held.add(expanded[held], labels[held])

    def _every_fifth(self, labels: Tensor) -> Tensor:
        one_hot = F.one_hot(labels, len(self.counts))
        rank = (one_hot.cumsum(0) + self.counts.to(labels.device)).gather(1, labels.unsqueeze(1)).squeeze(1)
        return rank % 5 == 0

    @torch.no_grad()
    def solve(self) -> None:
        """Chooses the penalty on the held-out sums and solves on all of them."""
        with full_precision(self.weight):
            self.penalty.fill_(choose_penalty(self.fit, self.held, self.penalties))
            gram, cross = self.fit.gram + self.held.gram, self.fit.cross + self.held.cross
            self.weight.copy_(solve_ridge(gram, cross, float(self.penalty)))

    def forward(self, features: Tensor, classes: int | None = None) -> Tensor:
        """Logits `[B, classes]` of features `[B, d]`: regressed one-hot values, about 0 to 1."""
        with full_precision(features):
            return self.expand(features) @ self.weight[:, :classes]

    def forget(self) -> None:
        """Sets the sums back to zero."""
        self.fit.zero_()
        self.held.zero_()

    def gather(self, sum_: Callable[[Tensor], Tensor]) -> None:
        """Replaces all sums by those over processes."""
        for tensor in (*self.fit.buffers(), *self.held.buffers()):
            tensor.copy_(sum_(tensor))

    def take(self, other: "RidgeHead") -> None:
        """Copies the sums and the solution of another head."""
        for own, theirs in zip(self.buffers(), other.buffers(), strict=True):
            if own is not theirs:
                own.copy_(theirs)

    def extra_repr(self) -> str:
        """Sizes, for `print(head)`."""
        width, classes = self.weight.shape
        return f"in_features={len(self.projection)}, random_features={width}, num_classes={classes}"

    def get_extra_state(self) -> dict[str, Any]:
        """The seed that draws the projection again."""
        return {"seed": self.seed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Draws the projection of a loaded state."""
        if state["seed"] != self.seed:
            self.seed = int(state["seed"])
            drawn = self._draw(len(self.projection), self.weight.shape[0])
            self.projection.copy_(drawn)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")
