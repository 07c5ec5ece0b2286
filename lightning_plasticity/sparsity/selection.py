"""Selection: the exact k largest of all layers together, without a sort and without a copy of the scores.

Exact counts, and ties always in the same order: first layer first, in a layer the lowest row-major index.
Two ways with one result: a sampled bracket (``bracket``; CPU, one process) and radix histograms (``radix``;
other devices, shards of several processes, and data that no bracket can cut, such as heavy ties).
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from lightning_plasticity.sparsity.bracket import NAN, select_by_bracket
from lightning_plasticity.sparsity.lazy_scores import LazyScores, masked_scores, spans
from lightning_plasticity.sparsity.radix import radix_threshold, select_by_radix

__all__ = ["LazyScores", "exact_threshold", "masked_scores", "select", "top_mask"]

Tensors = TypeVar("Tensors", Tensor, Mapping[str, Tensor])


@torch.no_grad()
def exact_threshold(scores: Tensor | Mapping[str, Tensor], k: int) -> Tensor:
    """Find the ``k``-th largest score over everything (GraNet, Liu et al. 2021: the global threshold).

    Args:
        scores: One tensor of any shape, or layer name to tensor; float16, bfloat16, float32 or float64.
        k: 1 to the number of scores.

    Returns:
        The value, 0-d, in the dtype of the scores.

    Raises:
        ValueError: If ``k`` is out of range, or the scores hold NaN or are not floating point.

    Example:
        >>> exact_threshold({"a": torch.tensor([0.5, 2.0]), "b": torch.tensor([1.0, 3.0])}, 3)
        tensor(1.)
    """
    parts = _parts(scores)
    total = sum(part.numel for part in parts)
    if not 1 <= k <= total:
        raise ValueError(f"k={k} must lie between 1 and {total}, the number of scores")
    if parts[0].device.type == "cpu" and (found := select_by_bracket(parts, k, check_nan=True)) is not None:
        return found
    _refuse_nan(parts)
    return radix_threshold(parts, k)


def top_mask(scores: Tensors, k: int) -> Tensors:
    """Mark exactly the ``k`` largest scores over everything; ties by order of layers, then row-major index.

    Args:
        scores: One tensor of any shape, or layer name to tensor; float16, bfloat16, float32 or float64.
        k: 0 to the number of scores.

    Returns:
        Bool, contiguous, same structure and shapes.

    Raises:
        ValueError: If ``k`` is out of range, or the scores hold NaN or are not floating point.

    Example:
        >>> top_mask(torch.tensor([1.0, 3.0, 2.0, 2.0]), 2)
        tensor([False,  True,  True, False])
    """
    masks = select(_parts(scores), k, check_nan=True)
    if isinstance(scores, Tensor):
        return masks[0]
    return dict(zip(scores, masks, strict=True))


@torch.no_grad()
def select(
    parts: Sequence[LazyScores],
    k: int | Tensor,
    out: Sequence[Tensor] | None = None,
    group: ProcessGroup | None = None,
    check_nan: bool = False,
) -> list[Tensor]:
    """Mark exactly the ``k`` largest of lazily computed scores. Entries that are not eligible come last.

    On devices other than the CPU nothing waits for the device, unless ``check_nan``.

    Args:
        parts: Scores of each layer, all on one device.
        k: 0 to the number of scores; a number or a 0-d integer tensor (its range is not checked off the CPU).
        out: Bool masks to write, in the shapes of the parts; made if None.
        group: Processes that hold shards of the parts along dimension 0, in rank order; ``k`` then counts
            over all, and every rank must call with the same parts and ``k``. Only counts are exchanged.
        check_nan: Whether to refuse NaN among the eligible scores. Without, NaN gives an undefined selection.

    Returns:
        Bool masks in the shapes of the parts: ``out``, or new ones. With ``group``, those of the own shards.

    Raises:
        ValueError: If ``k`` is out of range, devices differ, ``out`` does not fit, or a check finds NaN.

    Example:
        >>> weights, active = torch.tensor([0.0, -5.0, 2.0, 1.0]), torch.tensor([True, False, True, True])
        >>> select([masked_scores(torch.abs, [weights], active)], 2)
        [tensor([False, False,  True,  True])]
    """
    if len({part.device for part in parts}) > 1:
        raise ValueError(
            f"parts lie on several devices {sorted({str(part.device) for part in parts})}; move them to one"
        )
    _check_k(parts, k, group)
    results = _check_out(parts, out)
    if not parts:
        return results
    masks = [
        torch.empty(m.shape, dtype=torch.bool, device=m.device) if not m.is_contiguous() else m
        for m in results
    ]
    if group is not None or parts[0].device.type != "cpu":
        if check_nan:
            _refuse_nan(parts)
        select_by_radix(parts, k, masks, group)
    else:
        _select_here(parts, int(k), masks, check_nan)
    for result, mask in zip(results, masks, strict=True):
        if result is not mask:
            result.copy_(mask)
    return results


def _select_here(parts: Sequence[LazyScores], k: int, masks: Sequence[Tensor], check_nan: bool) -> None:
    """On the CPU, one process: the bracket if it can, else the radix histograms, which always can."""
    is_all = k == sum(part.numel for part in parts)
    if not (k == 0 or is_all) and select_by_bracket(parts, k, masks, check_nan) is not None:
        return
    if check_nan:
        _refuse_nan(parts)
    if k == 0 or is_all:
        for mask in masks:
            mask.fill_(is_all and k > 0)
    else:
        select_by_radix(parts, k, masks)


def _parts(scores: Tensor | Mapping[str, Tensor]) -> list[LazyScores]:
    tensors = [scores] if isinstance(scores, Tensor) else list(scores.values())
    return [LazyScores(_same, (tensor.detach(),)) for tensor in tensors]


def _same(scores: Tensor) -> Tensor:
    return scores


def _check_k(parts: Sequence[LazyScores], k: int | Tensor, group: ProcessGroup | None) -> None:
    total = sum(part.numel for part in parts)
    if group is not None or (isinstance(k, Tensor) and k.device.type != "cpu"):
        return  # reading numbers of other ranks or of the device would wait for them
    if not 0 <= k <= total:
        raise ValueError(f"k={int(k)} must lie between 0 and {total}, the number of scores")


def _check_out(parts: Sequence[LazyScores], out: Sequence[Tensor] | None) -> list[Tensor]:
    if out is None:
        return [torch.empty(part.shape, dtype=torch.bool, device=part.device) for part in parts]
    expected = [(part.shape, torch.bool, part.device) for part in parts]
    if [(mask.shape, mask.dtype, mask.device) for mask in out] != expected:
        raise ValueError(
            f"out must hold one bool mask a part, in shapes {[tuple(part.shape) for part in parts]}"
        )
    return list(out)


def _refuse_nan(parts: Sequence[LazyScores]) -> None:
    for part in parts:
        for start, stop in spans(part.numel, 1 << 22):
            nan, eligible = part.read(start, stop).isnan(), part.read_eligible(start, stop)
            if (nan if eligible is None else nan & eligible).any():
                raise ValueError(NAN)
