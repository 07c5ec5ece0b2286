"""Exact selection on the CPU by a sampled bracket: one pass over the data, no sort.

After Floyd and Rivest (1975), "Expected time bounds for selection": a small sample gives two values that
enclose the k-th largest with near certainty. One pass marks and counts everything above the bracket and
collects the few entries inside; the k-th largest is then found among those. The counts prove the result: a
bracket that missed, or that holds too much (heavy ties), is reported and the caller takes another way.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from lightning_plasticity.sparsity.lazy_scores import LazyScores, common_dtype, spans

CHUNK = 1 << 18  # scores read at once: stays in the cache; at most 255 * 2048, see _Workspace.collect
DIRECT = 1 << 15  # a layer of so few scores is read whole
SMALL = 1 << 14  # below this number, sampling costs more than it saves
LIMIT = 1 << 14  # words of 8 scores that may be collected in any case, however few scores there are
NAN = "scores hold NaN, which has no rank; skip this update or replace them with torch.nan_to_num"
DEVIATIONS = 3.5  # half width of the bracket in standard deviations of a sampled rank: 1 miss in 2,000


def select_by_bracket(
    parts: Sequence[LazyScores], k: int, masks: Sequence[Tensor] | None = None, check_nan: bool = False
) -> Tensor | None:
    """Find the ``k``-th largest of all scores and mark the ``k`` largest, ties to the lowest index.

    Args:
        parts: Scores on the CPU.
        k: 1 to the number of scores.
        masks: Contiguous bool masks to write, one a part; None if only the threshold is wanted.
        check_nan: Whether to look for NaN among the eligible scores.

    Returns:
        The ``k``-th largest, 0-d, or None if the bracket missed; then the masks hold nothing of use.

    Raises:
        ValueError: If there are NaN and ``check_nan``.
    """
    total = sum(part.numel for part in parts)
    if len(parts) == 1 and total <= DIRECT:
        return select_directly(parts[0], k, masks[0] if masks is not None else None, check_nan)
    dtype = torch.promote_types(common_dtype(parts), torch.float32)  # half precision is slow on the CPU
    survey = _survey(parts, _bracket(parts, k, dtype), max(LIMIT, total // 16), masks, dtype)
    if survey is None:
        return None
    values, positions, above = survey
    if check_nan and values.isnan().any():  # NaN is neither above nor below the bracket, so all are here
        raise ValueError(NAN)
    if not 1 <= k - above <= len(values):
        return None
    threshold = kth_largest(values, k - above)
    if masks is not None:
        keep, ties = values > threshold, values == threshold
        keep[ties.nonzero().view(-1)[: k - above - int(keep.sum())]] = True
        _mark(masks, positions[keep])
    return threshold.to(common_dtype(parts))


def select_directly(
    part: LazyScores, k: int, mask: Tensor | None = None, check_nan: bool = False
) -> Tensor | None:
    """:func:`select_by_bracket` for one layer of few scores, where a bracket costs more than it saves.

    None where the ``k``-th largest is -inf, which scores that are not eligible stand for here, or NaN.
    """
    scores = part.read(0, part.numel)
    if scores.dtype.itemsize < 4:
        scores = scores.float()
    if (eligible := part.read_eligible(0, part.numel)) is not None:
        scores = scores.where(eligible, -math.inf)
    if check_nan and scores.isnan().any():
        raise ValueError(NAN)
    threshold = scores.kthvalue(len(scores) - k + 1).values
    if not threshold > -math.inf:
        return None
    if mask is not None:
        above = torch.gt(scores, threshold, out=mask.view(-1))
        ties = (scores == threshold).nonzero().view(-1)
        above[ties[: k - int(torch.count_nonzero(above))]] = True
    return threshold.to(part.dtype)


def kth_largest(values: Tensor, k: int) -> Tensor:
    """Find the ``k``-th largest of 1-d values that exist already, by brackets within brackets.

    Example:
        >>> kth_largest(torch.tensor([5.0, 1.0, 4.0, 4.0]), 3)
        tensor(4.)
    """
    if len(values) > SMALL:
        stride = _stride(len(values))
        low, high = _enclose(values[::stride], k / len(values), stride, len(values))
        inside = values[(values >= low) & (values <= high)]
        rank = k - int((values > high).sum())
        if 1 <= rank <= len(inside) < len(values) // 2:
            return kth_largest(inside, rank)
    return values.kthvalue(len(values) - k + 1).values


def _stride(total: int) -> int:
    """How far apart samples lie: every ``total ** (1/3) / 2`` balances the cost of sample and candidates.

    No multiple of 2, 3, 5 or 7, so that the sample does not follow a layer's rows or kernels.
    """
    stride = math.floor(math.cbrt(total) / 2) | 1
    while math.gcd(stride, 3 * 5 * 7) > 1:
        stride += 2
    return stride


def _bracket(parts: Sequence[LazyScores], k: int, dtype: torch.dtype) -> tuple[float, float]:
    total = sum(part.numel for part in parts)
    if total <= SMALL:
        return -math.inf, math.inf
    stride, offset, samples = _stride(total), 0, []
    for part in parts:  # every stride-th of all parts laid end to end
        samples.append(part.sample(-offset % stride, stride).to(dtype))
        offset += part.numel
    return _enclose(torch.cat(samples), k / total, stride, total)


def _enclose(sample: Tensor, quantile: float, stride: int, total: int) -> tuple[float, float]:
    """Two sampled values that very likely enclose the score of rank ``quantile * total`` from the top."""
    drawn = -(-total // stride)  # counts those left out of the sample because they rank below all
    centre = quantile * drawn
    slack = DEVIATIONS * (math.sqrt(centre * (1 - quantile)) + 1)
    upper, lower = math.floor(centre - slack), math.ceil(centre + slack)
    high = float(kth_largest(sample, upper)) if 1 <= upper <= len(sample) else math.inf
    low = float(kth_largest(sample, lower)) if lower <= len(sample) else -math.inf
    return low, high


def _survey(
    parts: Sequence[LazyScores],
    bracket: tuple[float, float],
    limit: int,
    masks: Sequence[Tensor] | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, int] | None:
    """Pass once over all scores: mark and count those above the bracket, collect those inside.

    Returns:
        Values inside, their positions (ascending, see :func:`_mark`) and how many are above; None as soon as
        more than ``limit`` words of 8 scores have any inside.
    """
    space = _Workspace(min(CHUNK, max(part.numel for part in parts)), dtype)
    found = 0
    first_words = _first_words(part.numel for part in parts)
    for index, part in enumerate(parts):
        for start, stop in spans(part.numel, CHUNK):
            above = space.compare(part, start, stop, bracket)
            if masks is not None:
                masks[index].view(-1)[start:stop] = above
            found += space.collect(first_words[index] + start // 8)
            if found > limit:
                return None
    return space.collected()


def _first_words(sizes: Iterable[int]) -> list[int]:
    """Where each layer would begin if all were laid end to end in words of 8, and where the last ends."""
    return list(accumulate((-(-size // 8) for size in sizes), initial=0))


def _mark(masks: Sequence[Tensor], positions: Tensor) -> None:
    """Set the masks at ascending positions that count through all layers in whole words of 8."""
    starts = [8 * word for word in _first_words(mask.numel() for mask in masks)][:-1]
    cuts = torch.searchsorted(positions, torch.tensor(starts[1:])).tolist()
    for mask, start, where in zip(masks, starts, positions.tensor_split(cuts), strict=True):
        mask.view(-1)[where - start] = True


class _Workspace:
    """Memory that every piece of the scores passes through, and what was collected from them.

    Flags are handled in words of 8: one 64-bit integer. All is cut to rows of 256 words.
    """

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        size = _whole_rows(size)
        self.scores, self.floats = torch.zeros(2, size, dtype=dtype).unbind()
        self.above, self.inside = torch.zeros(2, size, dtype=torch.bool).unbind()
        self.length = 0
        self.counts: list[Tensor] = []
        self.words: list[tuple[Tensor, Tensor, Tensor]] = []

    def compare(self, part: LazyScores, start: int, stop: int, bracket: tuple[float, float]) -> Tensor:
        """Flag the scores above the bracket and those inside (neither above nor below); return the former."""
        count = stop - start
        self.length = _whole_rows(count)
        above, inside, floats = self.above[:count], self.inside[:count], self.floats[:count]
        scores = part.read(start, stop, out=self.scores[:count])
        # by way of floats: torch vectorises the comparison and the conversion, but not a comparison to bool
        above.copy_(torch.gt(scores, bracket[1], out=floats))
        inside.copy_(torch.lt(scores, bracket[0], out=floats))
        torch.eq(above, inside, out=inside)
        if (eligible := part.read_eligible(start, stop)) is not None:
            above.logical_and_(eligible)
            inside.logical_and_(eligible)
        self.above[count : self.length] = False
        self.inside[count : self.length] = False
        return above

    def collect(self, first_word: int) -> int:
        """Count the flags above, gather the words with any flag inside; return the number of words."""
        above = self.above[: self.length].view(torch.int64)
        self.counts.append(above.view(-1, 256).sum(0))  # at most 255 rows, so each byte counts on its own
        flags = self.inside[: self.length].view(torch.int64)
        where = flags.nonzero().view(-1)
        scores = self.scores.view(-1, 8).index_select(0, where)
        self.words.append((scores, flags.index_select(0, where), where.add_(first_word)))
        return len(where)

    def collected(self) -> tuple[Tensor, Tensor, int]:
        """Everything collected, as :func:`_survey` returns it."""
        scores, flags, where = (torch.cat(found) for found in zip(*self.words, strict=True))
        inside = flags.view(torch.bool).nonzero().view(-1)
        positions = where.index_select(0, inside >> 3).mul_(8).add_(inside & 7)
        above = int(torch.stack(self.counts).view(torch.uint8).sum())
        return scores.view(-1).index_select(0, inside), positions, above


def _whole_rows(count: int) -> int:
    return -(-count // 2048) * 2048
