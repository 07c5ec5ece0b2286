"""Granularity: what is switched on and off together. Single weights, whole filters, or N of every M weights.

The scores are the same for all three; only the selection differs (the idea of jaxpruner). A granularity works
on
*units*: the entries of the stored mask, which has the parameter's shape, or one entry per filter.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from lightning_plasticity.sparsity.masks import random_mask
from lightning_plasticity.sparsity.rewire import select_top
from lightning_plasticity.sparsity.selection import LazyScores


class Granularity:
    """Single weights: the base, and granularity ``"weight"``. See :meth:`parse` for the names."""

    has_global_scope = True
    """Whether units of different layers are ranked against each other in global pruning."""
    has_unit_weights = True
    """Whether every weight is a unit of its own."""
    allows_transposed = True
    """Whether transposed convolutions, whose first dimension is the input, can be masked."""

    def __str__(self) -> str:
        return "weight"

    @staticmethod
    def parse(value: "Granularity | str") -> "Granularity":
        """Read ``"weight"``, ``"filter"`` or an N:M string.

        Raises:
            ValueError: For anything else, or N not in 1..M-1.
        """
        if isinstance(value, Granularity):
            return value
        if value == "weight":
            return Granularity()
        if value == "filter":
            return Filters()
        if (found := re.fullmatch(r"(\d+):(\d+)", str(value))) and 0 < int(found[1]) < int(found[2]):
            return Groups(int(found[1]), int(found[2]))
        raise ValueError(
            f"granularity='{value}' must be 'weight', 'filter' or an N:M string with 0 < N < M such as '2:4'"
        )

    def problem(self, name: str, shape: Sequence[int]) -> str | None:
        """Say why a parameter cannot be masked, or None."""
        return None

    def mask_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the stored mask of a parameter of ``shape``; broadcasts to it."""
        return tuple(shape)

    def reduce(self, scores: Tensor) -> Tensor:
        """Turn scores of single weights into scores of units."""
        return scores

    def count(self, shape: Sequence[int], density: float) -> int:
        """Active units of a layer at a density."""
        return round(math.prod(self.mask_shape(shape)) * density)

    def draw(self, shape: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
        """Draw a mask with ``count`` active units, on the CPU."""
        return random_mask(self.mask_shape(shape), count, generator)

    def grow_scores(self, captured: Tensor, before: Tensor, generator: torch.Generator) -> Tensor:
        """Make the grow scores of units comparable, given which were active when they were captured."""
        return captured

    def prune(
        self,
        scores: Sequence[LazyScores],
        masks: Sequence[Tensor],
        keep: int | Sequence[int],
        group: ProcessGroup | None = None,
    ) -> list[Tensor]:
        """Keep the best active units: ``keep`` of all layers together, or that many in each layer."""
        return self.drop(scores, masks, keep, group)

    def drop(
        self,
        scores: Sequence[LazyScores],
        masks: Sequence[Tensor],
        keep: int | Sequence[int],
        group: ProcessGroup | None = None,
    ) -> list[Tensor]:
        """Keep the best active units on the way to a regrowth that restores the pattern."""
        parts = [replace(score, eligible=mask) for score, mask in zip(scores, masks, strict=True)]
        return select_top(parts, keep, group)

    def grow(
        self,
        scores: Sequence[LazyScores],
        survivors: Sequence[Tensor],
        taken: Sequence[Tensor],
        totals: Sequence[int],
        counts: Sequence[int],
        group: ProcessGroup | None = None,
    ) -> list[Tensor]:
        """Activate ``counts`` units in each layer, the best outside ``taken``, ``totals`` in the end."""
        parts = [replace(score, eligible=~mask) for score, mask in zip(scores, taken, strict=True)]
        grown = select_top(parts, counts, group)
        return [new.logical_or_(mask) for new, mask in zip(grown, survivors, strict=True)]


class Filters(Granularity):
    """Whole filters, the first dimension of a weight; at least one stays in every layer.

    Scores are sums over the filter: ``sum |w|`` to drop (Li et al. 2017), ``sum |gradient|`` to regrow (Liu
    et al. 2021, supplement). Filters are ranked within their layer. Sparsity is the fraction of dead filters.
    """

    has_global_scope = False
    has_unit_weights = False
    allows_transposed = False

    def __str__(self) -> str:
        return "filter"

    def mask_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """One entry per filter: ``(C_out, 1, ...)``."""
        return (shape[0], *(1 for _ in shape[1:]))

    def reduce(self, scores: Tensor) -> Tensor:
        """Sum over each filter."""
        return scores.flatten(1).sum(1).reshape(self.mask_shape(scores.shape))

    def count(self, shape: Sequence[int], density: float) -> int:
        """Active filters at a density, at least one."""
        return max(1, round(shape[0] * density))

    def grow_scores(self, captured: Tensor, before: Tensor, generator: torch.Generator) -> Tensor:
        """Put live and dead filters on one scale.

        Batch normalisation distorts the gradient of a filter that has been zero for a while: it is exactly
        zero where the norm's bias is not positive, and inflated by ``gamma / sqrt(eps)`` (about 300)
        elsewhere. So each filter is measured against the mean of its own kind, filters that were live when
        the gradient was taken and filters that were dead. Filters without any gradient come last, in random
        order: they return where nothing else is left, so with ``allow_readd=False``, or where few filters
        were dropped. The authors never released structured code; this rule is ours.
        """
        live, dead = (captured * kind / _mean_positive(captured[kind]) for kind in (before, ~before))
        lottery = torch.rand(captured.shape, generator=generator).to(captured) - 1.0
        scores = torch.where(before, live, dead)
        return torch.where(captured > 0, scores, lottery)


class Groups(Granularity):
    """N of every M consecutive weights along the inputs, as semi-structured kernels need (``"2:4"``).

    Groups run along dimension 1: the inputs of a linear layer, the input channels of a convolution at each
    kernel position. On the way to the final density every group keeps the same number of weights.
    """

    has_global_scope = False
    allows_transposed = False

    def __init__(self, n: int, m: int) -> None:
        self.n, self.m = n, m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def problem(self, name: str, shape: Sequence[int]) -> str | None:
        """M must divide the input dimension."""
        if shape[1] % self.m:
            return f"'{name}' of shape {tuple(shape)} has {shape[1]} inputs, not a multiple of {self.m}"
        return None

    def per_group(self, density: float) -> int:
        """Active weights in each group at a density: ``max(N, ceil(M * density))``."""
        return max(self.n, math.ceil(round(self.m * density, 9)))

    def count(self, shape: Sequence[int], density: float) -> int:
        """Active weights of the layer, the same number in every group."""
        return math.prod(shape) // self.m * self.per_group(density)

    def draw(self, shape: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
        """Draw the same number of weights in every group."""
        draws = self._grouped(torch.rand(tuple(shape), generator=generator))
        return self._ungrouped(_top_in_group(draws, count * self.m // math.prod(shape)), shape)

    def prune(
        self,
        scores: Sequence[LazyScores],
        masks: Sequence[Tensor],
        keep: int | Sequence[int],
        group: ProcessGroup | None = None,
    ) -> list[Tensor]:
        """Keep the best active weights of every group."""
        assert not isinstance(keep, int), "groups are pruned layer by layer"
        pruned = []
        for score, mask, count in zip(scores, masks, keep, strict=True):
            ranked = self._grouped(score.function(*score.tensors).masked_fill(~mask, -torch.inf))
            pruned.append(
                self._ungrouped(_top_in_group(ranked, count * self.m // self._units(mask, group)), mask.shape)
            )
        return pruned

    def grow(
        self,
        scores: Sequence[LazyScores],
        survivors: Sequence[Tensor],
        taken: Sequence[Tensor],
        totals: Sequence[int],
        counts: Sequence[int],
        group: ProcessGroup | None = None,
    ) -> list[Tensor]:
        """Refill every group to its number, from outside ``taken`` as long as that lasts."""
        grown = []
        for score, mask, closed, total in zip(scores, survivors, taken, totals, strict=True):
            ranked = (
                score.function(*score.tensors).masked_fill(closed, -torch.inf).masked_fill(mask, torch.inf)
            )
            per_group = total * self.m // self._units(mask, group)
            grown.append(self._ungrouped(_top_in_group(self._grouped(ranked), per_group), mask.shape))
        return grown

    def _units(self, mask: Tensor, group: ProcessGroup | None) -> int:
        if group is None:
            return mask.numel()
        numel = torch.tensor(mask.numel(), device=mask.device)
        torch.distributed.all_reduce(numel, group=group)
        return int(numel)

    def _grouped(self, values: Tensor) -> Tensor:
        last = values.movedim(1, -1)
        return last.reshape(*last.shape[:-1], last.shape[-1] // self.m, self.m)

    def _ungrouped(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        return values.flatten(-2).movedim(-1, 1).reshape(tuple(shape)).contiguous()


def _top_in_group(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` largest of the last dimension, ties to the lowest index."""
    size = scores.shape[-1]
    position = torch.arange(size, device=scores.device)
    ahead = torch.zeros(scores.shape, dtype=torch.int16, device=scores.device)
    for rival in range(size):
        score = scores[..., rival : rival + 1]
        ahead += (score > scores) | ((score == scores) & (rival < position))
    return ahead < count


def _mean_positive(values: Tensor) -> Tensor:
    """Mean of the positive values; 1 where there are none, so that it can divide."""
    positive = values[values > 0]
    return positive.mean() if len(positive) else torch.ones((), dtype=values.dtype, device=values.device)
