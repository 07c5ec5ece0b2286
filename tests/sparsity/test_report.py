"""The report of a run: text, FLOPs integrated over the real masks, figures."""

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.report import (
    SparsityReport,
    density_of,
    is_compiled,
    merged_history,
    numbers_to_log,
)
from lightning_plasticity.sparsity.schedules import Cubic
from lightning_plasticity.sparsity.sparsifier import Sparsifier, Update


def trained(config, steps=10, names=None):
    """A net after some steps, and its engine."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    parameters = {
        name: p for name, p in net.named_parameters() if name in (names or ["0.weight", "2.weight"])
    }
    engine = Sparsifier(parameters, config, steps)
    engine.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 10)).square().sum().backward()
        optimizer.step()
    return net, engine


def report_of(net):
    """A report that saw one batch of 4."""
    report = SparsityReport()
    report.watch_flops(net)
    net(torch.randn(4, 10))
    report.close_flops(4)
    return report


GRADUAL = SparsityConfig(Cubic(0.0, 0.5, 0, 1), 0.2, 4)
"""Half of the weights go at step 1; updates, all with growth, at steps 1, 4 and 8."""


def test_flops_are_integrated_over_the_masks_that_were():
    net, engine = trained(GRADUAL)
    report = report_of(net)
    assert [step for step, _ in engine.history] == [0, 1, 4, 8]
    shares = report.flop_shares([engine])
    dense = {"0.weight": 2 * 10 * 20, "2.weight": 2 * 20 * 5}
    assert shares["dense"] == sum(dense.values()) == 600

    def forward(counts):
        return sum(2 * count for count in counts)  # a linear layer: 2 FLOPs for every active weight

    total, starts = 0.0, [*(step for step, _ in engine.history), 10]
    for (start, counts), stop in zip(engine.history, starts[1:], strict=True):
        total += 3 * forward(counts) * (stop - start)
    for update in (
        1,
        4,
        8,
    ):  # the gradient that growth reads is dense: that of the step before the masks change
        counts = [c for step, c in engine.history if step < update][-1]
        total += 600 - forward(counts)
    assert shares["training"] == pytest.approx(total / (3 * 600 * 10))
    assert shares["forward"] == pytest.approx(forward(engine.counts) / 600)


@pytest.mark.parametrize(
    ("config", "dense_gradients"),
    [
        (SparsityConfig(0.5, 0.2, 4, grow="random"), 0),
        (SparsityConfig(0.5, 0.2, 4), 2),
        (SparsityConfig(0.5), 0),
    ],
    ids=["SET", "RigL", "static"],
)
def test_only_growth_by_gradient_pays_for_dense_gradients(config, dense_gradients):
    net, engine = trained(config)
    f = sum(2 * count for count in engine.counts)
    shares = report_of(net).flop_shares([engine])
    assert shares["training"] == pytest.approx((30 * f + dense_gradients * (600 - f)) / 18000)


def test_without_flops_the_report_says_nothing_of_them():
    _, engine = trained(GRADUAL)
    assert SparsityReport().flop_shares([engine]) == {}
    assert "FLOPs" not in SparsityReport().text("GraNet", [engine])


def test_the_text_tells_what_happened():
    net, engine = trained(GRADUAL)
    report = report_of(net)
    report.record({"val/accuracy": torch.tensor(0.25), "val/loss": torch.tensor(3.0)}, 10, 0.5)
    lines = report.text("GraNet", [engine]).splitlines()
    assert lines[0] == "GraNet: density 0.5000 (150 of 300 weights active)"
    assert lines[1].strip() == "val/accuracy 0.2500"
    assert lines[2].split() == ["layer", "weights", "active", "density"]
    first, second = engine.counts
    assert lines[3].split() == ["0.weight", "200", str(first), f"{first / 200:.4f}"]
    assert lines[4].split() == ["2.weight", "100", str(second), f"{second / 100:.4f}"]
    shares = report.flop_shares([engine])
    assert lines[5].strip() == (
        f"FLOPs: forward 600 dense, x0.500 now; training x{shares['training']:.3f} of dense"
    )
    assert lines[6].strip() == (
        f"3 updates: 150 weights pruned, {engine.dropped} dropped and {engine.grown} grown"
    )
    engine.skipped = 3
    assert report.text("GraNet", [engine]).endswith("; 3 skipped (gradients not finite)")


def test_a_layer_without_an_active_weight_is_named():
    """Global ranking can take all of a layer whose weights are small."""
    net = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    net[1].weight.data.mul_(1e-4)
    parameters = {"0.weight": net[0].weight, "1.weight": net[1].weight}
    engine = Sparsifier(parameters, SparsityConfig(Cubic(0.0, 0.6, 0, 1), 0.0, 4), 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    engine.attach(optimizer)
    assert "NOTHING" not in SparsityReport().text("GMP", [engine])
    for _ in range(4):
        net(torch.randn(4, 10)).sum().backward()
        optimizer.step()
    assert engine.counts == [120, 0]
    assert "  NOTHING passes 1.weight: all weights are pruned. " in SparsityReport().text("GMP", [engine])


def test_filters_are_called_filters():
    _, engine = trained(SparsityConfig(0.5, granularity="filter"), names=["0.weight"])
    assert (
        SparsityReport().text("RigL", [engine]).startswith("RigL: density 0.5000 (10 of 20 filters active)")
    )


def test_only_accuracies_are_kept_for_the_curve():
    report = SparsityReport()
    report.record(
        {"val/Accuracy": torch.tensor(0.5), "loss": torch.tensor(1.0), "acc_per_class": torch.ones(3)}, 7, 0.3
    )
    assert report.curve == [(7, 0.3, {"val/Accuracy": 0.5})]


def test_histories_of_several_engines_are_merged_step_by_step():
    _, one = trained(GRADUAL, names=["0.weight"])
    _, other = trained(SparsityConfig(0.8, 0.3, 3), names=["2.weight"])
    merged = merged_history([one, other])
    assert [step for step, _ in merged] == [0, 1, 3, 4, 6, 8, 9]
    assert [round(d["0.weight"], 3) for _, d in merged] == [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert {d["2.weight"] for _, d in merged} == {0.2}
    assert merged_history([]) == []


def test_numbers_are_shares_of_all_connections_and_sums_of_the_updates():
    config = SparsityConfig(0.8, 0.3, 3, grow="random", track_exploration=True)
    _, one = trained(config, names=["0.weight"])  # 200 weights
    _, other = trained(SparsityConfig(0.5, 0.3, 3, track_exploration=True), names=["2.weight"])  # 100
    assert numbers_to_log([one, other], []) == {
        "sparsity/density": pytest.approx(90 / 300),
        "sparsity/skipped_updates": 0.0,
    }
    updates = [Update(3, pruned=5, dropped=2, grown=2), Update(3, dropped=4, grown=4)]
    numbers = numbers_to_log([one, other], updates)
    assert [numbers[f"sparsity/{key}"] for key in ("pruned", "dropped", "grown")] == [5.0, 6.0, 6.0]
    ever = sum(int(mask.sum()) for engine in (one, other) for mask in engine._ever)
    assert numbers["sparsity/exploration"] == pytest.approx(ever / 300)
    assert density_of([]) == 1.0


def test_figures_show_the_run():
    net, engine = trained(GRADUAL)
    report = report_of(net)
    assert report.figures([]) == {}
    for step, accuracy in ((5, 0.3), (10, 0.6)):
        report.record({"val/accuracy": torch.tensor(accuracy)}, step, 0.5)
    figures = report.figures([engine])
    assert list(figures) == ["density_over_run", "density_per_layer"]
    assert all(isinstance(figure, Figure) for figure in figures.values())
    left, right = figures["density_over_run"].axes
    assert list(left.lines[0].get_xdata()) == [0, 1, 4, 8, 10]
    assert list(left.lines[0].get_ydata()) == pytest.approx([100, 50, 50, 50, 50])
    assert list(right.lines[0].get_xdata()) == [5, 10]
    assert list(right.lines[0].get_ydata()) == pytest.approx([30, 60])
    bars = figures["density_per_layer"].axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx(
        [100 * n / size for n, size in zip(engine.counts, engine.plan.sizes, strict=True)]
    )


def test_compiled_modules_are_told_apart():
    net = nn.Linear(2, 2)
    assert not is_compiled(net)
    net.compile()
    assert is_compiled(net)
    report = SparsityReport()
    report.watch_flops(nn.Sequential(net))
    assert not net._forward_hooks


def test_accuracies_of_training_are_left_out():
    """They are of the epoch before when a validation ends."""
    report = SparsityReport()
    report.record({"train/accuracy": torch.tensor(0.9), "val/accuracy": torch.tensor(0.5)}, 10, 0.3)
    assert report.curve == [(10, 0.3, {"val/accuracy": 0.5})]
