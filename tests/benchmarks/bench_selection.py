"""Time exact selection against what others do: ``python tests/benchmarks/bench_selection.py``.

ResNet-50 for CIFAR: 54 layers, 23.47 M weights, CPU. Every way must give the same result. Ratios are medians
over paired rounds.
"""

import statistics
import time

import numpy as np
import torch

from lightning_plasticity.sparsity.bracket import select_by_bracket
from lightning_plasticity.sparsity.radix import radix_threshold
from lightning_plasticity.sparsity.selection import (
    LazyScores,
    exact_threshold,
    masked_scores,
    select,
    top_mask,
)

ROUNDS = 5


def resnet50_shapes():
    """Convolution and linear weights of ResNet-50 with a 3x3 stem and 10 classes."""
    shapes, width_in = [(64, 3, 3, 3)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, width_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, width_in, 1, 1))
            width_in = 4 * width
    return [*shapes, (10, 2048)]


def compare(title, ours, *others):
    """Run all in turn, round by round, and print medians, minima and ratios."""
    named = [ours, *others]
    times = {name: [] for name, _ in named}
    for _, function in named:
        function()
    for _ in range(ROUNDS):
        for name, function in named:
            start = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - start))
    print(f"\n{title}")
    base = times[ours[0]]
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, base, strict=True))
        print(f"  {name:<52}{statistics.median(found):9.1f} ms  best {min(found):8.1f}  {ratio:7.1f} x")


def concat(weights):
    """All |w| in one vector, as the reference does it."""
    return torch.cat([weight.abs().view(-1) for weight in weights])


def sorted_threshold(weights, k):
    """The reference's way: the last of a sorted top-k (VITA-Group/GraNet)."""
    return torch.topk(concat(weights), k, sorted=True).values[-1]


def kthvalue_threshold(weights, k):
    """The k-th largest by quickselect."""
    flat = concat(weights)
    return torch.kthvalue(flat, len(flat) - k + 1).values


def numpy_threshold(weights, k):
    """The k-th largest by NumPy's introselect, vectorised on x86."""
    flat = concat(weights).numpy()
    flat.partition(len(flat) - k)
    return torch.tensor(flat[len(flat) - k])


def masks_of(threshold, weights, k):
    """The reference's masks: float, everything at or above a threshold."""
    value = threshold(weights, k)
    return [(weight.abs() >= value).float() for weight in weights]


def assert_same_masks(masks, weights, k):
    """Exactly k, and as the reference's but for weights that equal the threshold, all of which it keeps."""
    value = sorted_threshold(weights, k)
    assert sum(int(mask.sum()) for mask in masks) == k
    for mask, weight in zip(masks, weights, strict=True):
        assert torch.equal(mask, (weight.abs() >= value) & (mask | (weight.abs() != value)))


def rewire_by_sorts(weights, grads, masks, ratio):
    """The reference's regeneration: two full sorts a layer."""
    result = []
    for weight, grad, mask in zip(weights, grads, masks, strict=True):
        active = int(mask.sum())
        count = int(np.ceil(ratio * active))
        order = torch.sort((weight.abs() * mask).view(-1)).indices
        grown = mask.clone().view(-1)
        grown[order[: mask.numel() - active + count]] = 0.0
        order = torch.sort((grad.abs().view(-1) * (grown == 0)), descending=True).indices
        grown[order[:count]] = 1.0
        result.append(grown.view_as(mask))
    return result


def rewire_by_select(weights, grads, masks, ratio):
    """The same by exact selection."""
    result = []
    for weight, grad, mask in zip(weights, grads, masks, strict=True):
        active = int(torch.count_nonzero(mask))
        count = int(np.ceil(ratio * active))
        (kept,) = select([masked_scores(torch.abs, [weight], mask)], active - count)
        (grown,) = select([masked_scores(torch.abs, [grad], ~kept)], count)
        result.append(grown.logical_or_(kept))
    return result


def main():
    """Print the tables."""
    generator = torch.Generator().manual_seed(0)
    shapes = resnet50_shapes()
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    grads = [torch.randn(shape, generator=generator) for shape in shapes]
    active = [torch.rand(shape, generator=generator) < 0.5 for shape in shapes]
    total = sum(weight.numel() for weight in weights)
    k = round(0.3 * total)
    print(
        f"{len(weights)} layers, {total / 1e6:.2f} M weights, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )

    parts = [LazyScores(torch.abs, (weight,)) for weight in weights]
    out = [torch.empty(shape, dtype=torch.bool) for shape in shapes]
    assert select_by_bracket(parts, k) == sorted_threshold(weights, k) == kthvalue_threshold(weights, k)
    compare(
        "threshold of the 30 % largest |w|",
        ("sampled bracket", lambda: select_by_bracket(parts, k)),
        ("radix histograms", lambda: radix_threshold(parts, k)),
        ("concat + NumPy partition", lambda: numpy_threshold(weights, k)),
        ("concat + kthvalue", lambda: kthvalue_threshold(weights, k)),
        ("concat + sorted top-k (reference)", lambda: sorted_threshold(weights, k)),
    )
    assert_same_masks(select(parts, k), weights, k)
    compare(
        "masks of the 30 % largest |w|",
        ("select, into masks that exist", lambda: select(parts, k, out=out)),
        ("select, new masks", lambda: select(parts, k)),
        ("concat + NumPy partition", lambda: masks_of(numpy_threshold, weights, k)),
        ("concat + kthvalue", lambda: masks_of(kthvalue_threshold, weights, k)),
        ("concat + sorted top-k (reference)", lambda: masks_of(sorted_threshold, weights, k)),
    )
    scores = {str(i): weight.abs() for i, weight in enumerate(weights)}
    masked = [masked_scores(torch.abs, [w], m) for w, m in zip(weights, active, strict=True)]
    sparse = [weight * mask for weight, mask in zip(weights, active, strict=True)]
    assert_same_masks(select(masked, k), sparse, k)
    compare(
        "30 % largest |w| of all among the 50 % active, and the public functions on scores that exist",
        ("select among active, into masks that exist", lambda: select(masked, k, out=out)),
        ("exact_threshold(scores)", lambda: exact_threshold(scores, k)),
        ("top_mask(scores)", lambda: top_mask(scores, k)),
        ("concat + sorted top-k (reference)", lambda: masks_of(sorted_threshold, sparse, k)),
    )
    float_masks = [mask.float() for mask in active]
    a, b = rewire_by_select(weights, grads, active, 0.5), rewire_by_sorts(weights, grads, float_masks, 0.5)
    assert all(torch.equal(x, y.bool()) for x, y in zip(a, b, strict=True))
    compare(
        "rewire each layer: drop 50 % of the active, grow as many",
        ("select twice a layer", lambda: rewire_by_select(weights, grads, active, 0.5)),
        ("two full sorts a layer (reference)", lambda: rewire_by_sorts(weights, grads, float_masks, 0.5)),
    )


if __name__ == "__main__":
    main()
