"""Prune, regrow and rewire: pure functions on (weights, gradients, mask, counts).

``counts`` is one number for everything together (global pruning) or a number per layer. All take one tensor
or a mapping of layer name to tensor, and return new masks of the same structure; nothing is changed in place.
Exact counts, ties go to the lowest index, no sort (see ``selection``). Weights and gradients rank by their
absolute value, so a non-negative score of any kind can be passed in their place.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from lightning_plasticity.sparsity.selection import LazyScores, masked_scores, select

Tensors = TypeVar("Tensors", Tensor, Mapping[str, Tensor])
Counts = int | Mapping[str, int]


def prune_mask(weights: Tensors, mask: Tensors, keep: Counts) -> Tensors:
    """Keep the ``keep`` active connections of largest ``|w|`` (GraNet, Liu et al. 2021, step 1).

    An active connection whose weight is exactly 0 ranks above every inactive one: the mask is the only truth.

    Args:
        weights: Weights, any shape, or layer name to weights.
        mask: Bool, same structure; True = active.
        keep: Connections to keep: over all layers together if a number, else per layer.

    Returns:
        The pruned mask, a subset of ``mask``, with exactly ``keep`` active entries.

    Raises:
        ValueError: If more connections should be kept than are active, or weights hold NaN.

    Example:
        >>> active = torch.tensor([True, True, True, False])
        >>> prune_mask(torch.tensor([3.0, -4.0, 0.0, 9.0]), active, keep=2).tolist()
        [True, True, False, False]
    """
    w, m, k = _aligned(weights, mask, keep)
    _check_counts("keep", k, [int(x.sum()) for x in m], "active connections")
    return _like(
        mask,
        select_top([masked_scores(torch.abs, (x,), y) for x, y in zip(w, m, strict=True)], k, check_nan=True),
    )


def regrow_mask(grads: Tensors, mask: Tensors, count: Counts, exclude: Tensors | None = None) -> Tensors:
    """Activate the ``count`` inactive connections of largest ``|gradient|`` (RigL, Evci et al. 2020).

    Args:
        grads: Dense gradients, any shape, or layer name to gradients.
        mask: Bool, same structure; True = active.
        count: Connections to activate: over all layers together if a number, else per layer.
        exclude: Bool, same structure: further connections that must not be activated.

    Returns:
        The grown mask, a superset of ``mask``.

    Raises:
        ValueError: If fewer than ``count`` connections can be activated, or gradients hold NaN.

    Example:
        >>> active = torch.tensor([False, False, False, True])
        >>> regrow_mask(torch.tensor([0.1, -0.4, 0.2, 9.0]), active, count=1).tolist()
        [False, True, False, True]
    """
    g, m, k = _aligned(grads, mask, count)
    taken = m if exclude is None else [a | b for a, b in zip(m, _aligned(grads, exclude, 0)[1], strict=True)]
    _check_counts("count", k, [int((~x).sum()) for x in taken], "inactive connections")
    grown = select_top(
        [masked_scores(torch.abs, (x,), ~y) for x, y in zip(g, taken, strict=True)], k, check_nan=True
    )
    return _like(mask, [a | b for a, b in zip(m, grown, strict=True)])


def rewire(
    weights: Tensors, grads: Tensors, mask: Tensors, count: Counts, allow_readd: bool = True
) -> Tensors:
    """Drop the ``count`` active connections of smallest ``|w|``, then grow as many by ``|gradient|``.

    The regeneration of GraNet (Liu et al. 2021, steps 2 and 3) and the update of RigL. The number of active
    connections stays the same.

    Args:
        weights: Weights, any shape, or layer name to weights.
        grads: Dense gradients, same structure.
        mask: Bool, same structure; True = active.
        count: Connections to exchange; per layer if a mapping.
        allow_readd: Whether a connection dropped now may grow back now (as in the authors' code).

    Returns:
        The rewired mask.

    Raises:
        ValueError: If ``count`` exceeds the active connections or those that can grow, or values hold NaN.

    Example:
        >>> w, g = torch.tensor([3.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.1, 0.2, 0.9])
        >>> rewire(w, g, torch.tensor([True, True, False, False]), 1).tolist()
        [True, False, False, True]
    """
    w, m, k = _aligned(weights, mask, count)
    active = [int(x.sum()) for x in m]
    _check_counts("count", k, active, "active connections")
    keep = sum(active) - k if isinstance(k, int) else [a - b for a, b in zip(active, k, strict=True)]
    parts = [masked_scores(torch.abs, (x,), y) for x, y in zip(w, m, strict=True)]
    survivors = _like(mask, select_top(parts, keep, check_nan=True))
    return regrow_mask(grads, survivors, count, exclude=None if allow_readd else mask)


def select_top(
    parts: Sequence[LazyScores],
    counts: int | Sequence[int],
    group: ProcessGroup | None = None,
    check_nan: bool = False,
) -> list[Tensor]:
    """Select the top scores over all parts together (one count) or in each part (a count each)."""
    if isinstance(counts, int):
        return select(parts, counts, group=group, check_nan=check_nan)
    return [
        select([part], count, group=group, check_nan=check_nan)[0]
        for part, count in zip(parts, counts, strict=True)
    ]


def _aligned(
    values: Tensors, mask: Tensors, counts: Counts
) -> tuple[list[Tensor], list[Tensor], int | list[int]]:
    if isinstance(values, Tensor) != isinstance(mask, Tensor):
        raise ValueError(
            "weights, grads and mask must all be tensors or all be mappings of layer name to tensor"
        )
    if isinstance(values, Tensor):
        if not isinstance(counts, int):
            raise ValueError(f"counts={counts} must be a number for a single tensor")
        named, masks = {"": values}, {"": mask}
    else:
        named, masks = dict(values), dict(mask)
    if named.keys() != masks.keys():
        raise ValueError(
            f"layers differ: {sorted(named.keys() ^ masks.keys())} are not in both values and mask"
        )
    for name, value in named.items():
        if value.shape != masks[name].shape or masks[name].dtype != torch.bool:
            raise ValueError(
                f"mask of '{name}' must be bool of shape {tuple(value.shape)}, "
                f"is {masks[name].dtype} of {tuple(masks[name].shape)}"
            )
    if isinstance(counts, Mapping):
        if counts.keys() != named.keys():
            raise ValueError(
                f"counts must name every layer once; {sorted(counts.keys() ^ named.keys())} do not match"
            )
        return list(named.values()), list(masks.values()), [counts[name] for name in named]
    return list(named.values()), list(masks.values()), counts


def _check_counts(argument: str, counts: int | list[int], available: list[int], what: str) -> None:
    wanted = [counts] if isinstance(counts, int) else counts
    there = [sum(available)] if isinstance(counts, int) else available
    for number, limit in zip(wanted, there, strict=True):
        if not 0 <= number <= limit:
            raise ValueError(f"{argument}={number} must lie between 0 and {limit}, the number of {what}")


def _like(structure: Tensors, masks: list[Tensor]) -> Tensors:
    if isinstance(structure, Tensor):
        return masks[0]
    return dict(zip(structure, masks, strict=True))
