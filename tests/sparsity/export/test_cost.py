"""What a smaller model costs: counts by hand, and a latency that tells small from large."""

import pytest
import torch
from torch import nn

from lightning_plasticity.sparsity.export.cost import compare, measure_latency
from lightning_plasticity.sparsity.export.surgery import shrink
from tests.sparsity.export.nets import images, masked, settle


def test_report_counts_by_hand():
    model = settle(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False)))
    x = images(5, 1, 6, 6)
    model[0].bias.data.fill_(1.0)
    masks = {"0.weight": torch.tensor([True, False, True, False]).view(4, 1, 1, 1)}
    report = compare(masked(model, masks), shrink(model, x, masks), x, repeats=3)
    assert report.before.parameters == 40 + 8
    assert report.after.parameters == 20 + 4 + 2  # the constants became a bias
    assert report.before.flops == 2 * 16 * (4 * 9 + 2 * 4)
    assert report.after.flops == 2 * 16 * (2 * 9 + 2 * 2)
    assert (report.before.zero_filters, report.after.zero_filters) == (2, 0)
    assert report.batch_size == 5
    assert report.before.latency > 0
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["parameters", "zero", "MFLOPs", "latency,"]
    assert lines[1].split() == ["parameters", "48", "26", "0.542"]
    with pytest.raises(ValueError, match="repeats=0"):
        measure_latency([model], x, repeats=0)


def test_latency_orders_a_small_and_a_large_net():
    small, large = nn.Linear(16, 16), nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(6)])
    pad = nn.Sequential(nn.ConstantPad1d((0, -1008), 0.0), small)
    fast, slow = measure_latency([pad, large], images(64, 1024), repeats=5)
    assert fast < slow
