"""Exact selection by radix histograms of the float bits: any device, any shard, any data.

Floats order like integers once the bits of the negative ones are flipped. A histogram of the top 16 bits
finds the bucket that holds the k-th largest; the next 16 bits are counted inside that bucket, and so on:
one pass for half precision, two for float32, four for float64. Histograms add, so shards of a layer need to
exchange counts only. Nothing here waits for the device: no value is read by the host, so ``k`` may be a
tensor too.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from lightning_plasticity.sparsity.lazy_scores import LazyScores, common_dtype, spans

DIGIT = 16
BUCKETS = 1 << DIGIT
CHUNK = 1 << 18  # scores read at once on the CPU: what stays in the cache
DEVICE_CHUNK = 1 << 24  # and elsewhere: what keeps the device busy
INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def select_by_radix(
    parts: Sequence[LazyScores], k: int | Tensor, masks: Sequence[Tensor], group: ProcessGroup | None = None
) -> Tensor:
    """Mark the ``k`` largest of all scores; ties in order of part, then rank, then index.

    Args:
        parts: Scores on one device. With ``group``: this rank's shards, the same parts on every rank.
        k: 0 to the number of scores (of all ranks), a number or a 0-d integer tensor on the device.
        masks: Contiguous bool masks to write, one a part.
        group: Processes that hold shards along dimension 0 of the parts, in rank order.

    Returns:
        The ``k``-th largest, 0-d (NaN for ``k = 0``).
    """
    dtype = common_dtype(parts)
    key, quota = _threshold_key(parts, k, dtype, group)
    quotas = _tie_quotas(torch.stack([_count_ties(part, key, dtype) for part in parts]), quota, group)
    for part, mask, ties in zip(parts, masks, quotas.unbind(), strict=True):
        _write(part, mask.view(-1), key, ties, dtype)
    return _from_key(key, dtype)


def radix_threshold(
    parts: Sequence[LazyScores], k: int | Tensor, group: ProcessGroup | None = None
) -> Tensor:
    """Find the ``k``-th largest of all scores, 0-d. See :func:`select_by_radix`.

    Example:
        >>> radix_threshold([LazyScores(torch.abs, (torch.tensor([5.0, -1.0, 4.0, -4.0]),))], 3)
        tensor(4.)
    """
    dtype = common_dtype(parts)
    return _from_key(_threshold_key(parts, k, dtype, group)[0], dtype)


def _threshold_key(
    parts: Sequence[LazyScores], k: int | Tensor, dtype: torch.dtype, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Key of the ``k``-th largest, digit by digit from above, and how many of that key are in the top."""
    device = parts[0].device
    rank = torch.full((), k, device=device) if isinstance(k, int) else k.to(torch.int64)
    prefix = torch.zeros((), dtype=torch.int64, device=device)
    top = 8 * dtype.itemsize - DIGIT
    for shift in range(top, -1, -DIGIT):
        counts = torch.zeros(BUCKETS, dtype=torch.int64, device=device)
        for part in parts:
            for _, _, key in _keys(part, dtype):
                digits = (key >> shift).to(torch.int64)
                if shift == top:  # the digit with the sign
                    counts.scatter_add_(0, digits + BUCKETS // 2, torch.ones_like(digits))
                else:
                    counts.scatter_add_(
                        0, digits & (BUCKETS - 1), (digits >> DIGIT == prefix).to(torch.int64)
                    )
        if group is not None:
            dist.all_reduce(counts, group=group)
        digit, rank = _bucket_of(counts, rank)
        prefix = digit - BUCKETS // 2 if shift == top else (prefix << DIGIT) + digit
    return prefix, rank


def _bucket_of(counts: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """The bucket that holds the entry of ``rank`` from the top, and its rank inside the bucket."""
    descending = counts.flip(0)
    reached = descending.cumsum(0)
    index = (reached < rank).sum().clamp(max=BUCKETS - 1)
    before = (reached - descending).gather(0, index.view(1)).view(())
    return BUCKETS - 1 - index, rank - before


def _tie_quotas(ties: Tensor, quota: Tensor, group: ProcessGroup | None) -> Tensor:
    """How many ties each part of this rank may keep, ``[parts]``: by order of parts, in each of ranks."""
    ranks, own = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    gathered = [torch.empty_like(ties) for _ in range(ranks)]
    if group is None:
        gathered = [ties]
    else:
        dist.all_gather(gathered, ties, group=group)
    ordered = torch.stack(gathered, dim=1)  # [parts, ranks]
    before = ordered.view(-1).cumsum(0).view_as(ordered) - ordered
    return (quota - before[:, own]).clamp(min=0)


def _count_ties(part: LazyScores, key: Tensor, dtype: torch.dtype) -> Tensor:
    ties = torch.zeros((), dtype=torch.int64, device=part.device)
    for _, _, keys in _keys(part, dtype):
        ties += (keys == key).sum()
    return ties


def _write(part: LazyScores, mask: Tensor, key: Tensor, quota: Tensor, dtype: torch.dtype) -> None:
    """Mark all above the key and the first ``quota`` that equal it."""
    seen = torch.zeros((), dtype=torch.int64, device=part.device)
    for start, stop, keys in _keys(part, dtype):
        ties = keys == key
        number = ties.cumsum(0) + seen
        mask[start:stop] = (keys > key) | (ties & (number <= quota))
        seen = number[-1]


def _keys(part: LazyScores, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    """Pieces of a part as integers in the order of the scores; the lowest integer where not eligible."""
    for start, stop in spans(part.numel, CHUNK if part.device.type == "cpu" else DEVICE_CHUNK):
        key = _to_key(part.read(start, stop).to(dtype))
        eligible = part.read_eligible(start, stop)
        yield (
            start,
            stop,
            key if eligible is None else key.masked_fill_(~eligible, torch.iinfo(key.dtype).min),
        )


def _to_key(scores: Tensor) -> Tensor:
    bits = (scores + 0.0).view(INTEGERS[scores.dtype])  # -0.0 + 0.0 = 0.0: both zeros are one value
    return bits ^ ((bits >> (8 * scores.dtype.itemsize - 1)) & torch.iinfo(bits.dtype).max)


def _from_key(key: Tensor, dtype: torch.dtype) -> Tensor:
    bits = key.to(INTEGERS[dtype])
    return (bits ^ ((bits >> (8 * dtype.itemsize - 1)) & torch.iinfo(bits.dtype).max)).view(dtype)
