"""Figures of sparse training. Pure functions of plain numbers; matplotlib is imported when one is drawn."""

import csv
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean, pstdev
from typing import TYPE_CHECKING, Any

from lightning_plasticity import figures as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CUT_AT = "epochs trained before the cut"


def density_over_run(
    history: Sequence[tuple[int, float]], accuracies: Mapping[str, Sequence[tuple[int, float]]]
) -> "Figure":
    """Draw density and accuracies over optimizer steps.

    Args:
        history: (optimizer step, density in 0..1) after each update, the first at step 0.
        accuracies: Metric name to (optimizer step, accuracy in 0..1).
    """
    figure = style.new_figure(xlabel="optimizer step", ylabel="active weights or filters (%)")
    left = figure.axes[0]
    steps, densities = zip(*history, strict=True)
    last = max([steps[-1], *(step for curve in accuracies.values() for step, _ in curve)])
    left.step(
        [*steps, last],
        [100 * d for d in (*densities, densities[-1])],
        where="post",
        color=style.BLUE,
        label="density",
    )
    left.set_ylim(0, 104)
    lines = list(left.lines)
    if accuracies:
        right = left.twinx()
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        palette = cycle((style.VERMILLION, style.GREEN, style.PURPLE, style.ORANGE))
        for (name, curve), color in zip(accuracies.items(), palette, strict=False):
            x, y = zip(*curve, strict=True)
            lines += right.plot(x, [100 * v for v in y], color=color, marker="o", markersize=3, label=name)
        right.set_ylabel("accuracy (%)")
    names = [str(line.get_label()) for line in lines]
    figure.legend(lines, names, loc="outside lower center", ncols=min(4, len(lines)))  # lines cross anywhere
    left.set_title("Density and accuracy over the run")
    return figure


def density_per_layer(
    initial: Mapping[str, float], final: Mapping[str, float], sizes: Mapping[str, int]
) -> "Figure":
    """Draw the density of each layer, before training and at its end.

    Args:
        initial: Layer name to density in 0..1 before the first step.
        final: The same at the end.
        sizes: Layer name to number of weights (or filters).
    """
    names = list(final)
    figure = style.new_figure(xlabel="density (%)", height=max(3.2, 0.28 * len(names) + 1.7))
    axes = figure.axes[0]
    rows = range(len(names))
    axes.barh(rows, [100 * final[name] for name in names], color=style.BLUE, label="at the end", height=0.7)
    starts = [100 * initial[name] for name in names]
    axes.plot(starts, rows, "|", markersize=12, markeredgewidth=2, color=style.ORANGE, label="at the start")
    axes.set_yticks(rows, [f"{name.removesuffix('.weight')} ({sizes[name]:,})" for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 104)
    axes.grid(visible=False, axis="y")
    axes.set_title("Density per layer (number of weights or filters)")
    style.legend_below(axes)
    return figure


def plasticity_over_time(records: Sequence[Mapping[str, float]], title: str = "") -> "Figure":
    """Draw pruning plasticity over training time, a line per pruning rate (Liu et al. 2021, figures 1 and 2).

    Args:
        records: Results of PruningPlasticity; several for one epoch and rate (seeds) are drawn as mean and
            spread.
        title: Title of the figure.
    """
    figure = style.new_figure(xlabel=CUT_AT, ylabel="accuracy after - before the cut (points)", title=title)
    draw_plasticity(figure.axes[0], records)
    style.legend_below(figure.axes[0], ncols=5, title="share cut")
    return figure


def draw_plasticity(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    """Draw a line per pruning rate, zero, and the drops of the learning rate.

    A cut at the end of epoch e, counted from 0, comes after e + 1 epochs.
    """
    axes.axhline(0.0, color=style.GREY, linewidth=1)
    for rate in sorted({record["rate"] for record in records}):
        mine = [record for record in records if record["rate"] == rate]
        epochs = sorted({record["epoch"] for record in mine})
        values = [[100 * r["plasticity"] for r in mine if r["epoch"] == epoch] for epoch in epochs]
        style.plot_spread(
            axes,
            [epoch + 1 for epoch in epochs],
            [mean(v) for v in values],
            [pstdev(v) for v in values],
            label=f"{rate:g}",
        )
    for index, epochs_before in enumerate(learning_rate_drops(records)):
        label = "" if index else "learning rate drops"
        axes.axvline(epochs_before, color=style.GREY, linestyle=":", linewidth=1.2, label=label)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)  # epochs


def learning_rate_drops(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Epochs at whose start the learning rate had fallen by more than a third, as the records tell."""
    return sorted({drop for record in records for drop in record["learning_rate_drops"]})


def methods_compared(runs: Sequence[Mapping[str, Any]], title: str = "") -> "Figure":
    """Draw test accuracy per method, a dot per seed and a bar at the mean; training FLOPs beside it.

    Args:
        runs: One mapping a run: ``method``, ``accuracy`` and ``train_flops`` as shares (0..1).
        title: Title of the figure.
    """
    methods = list(dict.fromkeys(run["method"] for run in runs))
    figure = style.new_figure(
        cols=2, title=title, height=0.42 * len(methods) + 1.6, sharey=True, width_ratios=[2.6, 1]
    )
    left, right = figure.axes
    for row, method in enumerate(methods):
        mine = [run for run in runs if run["method"] == method]
        values = [100 * run["accuracy"] for run in mine]
        left.plot(values, [row] * len(values), "o", color=style.BLUE, alpha=0.55)
        left.plot([mean(values)], [row], "|", color=style.VERMILLION, markersize=18, markeredgewidth=2.5)
        right.barh(row, 100 * mean(run["train_flops"] for run in mine), color=style.ORANGE, height=0.6)
    left.set_yticks(range(len(methods)), methods)
    left.invert_yaxis()
    left.set_xlabel("test accuracy (%), a dot per seed, bar = mean")
    right.set_xlabel("train FLOPs (% of dense)")
    return figure


def plasticity_grid(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw plasticity over training time: a panel per pre-trained sparsity, without and with regeneration.

    Args:
        records: Results of PruningPlasticity with ``pretrained``, the sparsity of the run, added.
    """
    sparsities = sorted({record["pretrained"] for record in records})
    figure = style.new_figure(
        rows=len(sparsities),
        cols=2,
        xlabel=CUT_AT,
        ylabel="plasticity (points)",
        sharex=True,
        sharey="row",
    )
    for index, axes in enumerate(figure.axes):
        sparsity, regrow = sparsities[index // 2], bool(index % 2)
        mine = [r for r in records if r["pretrained"] == sparsity and r["regrow"] == regrow]
        draw_plasticity(axes, mine)
        way = "with" if regrow else "without"
        axes.set_title(f"pre-trained sparsity {sparsity:g}, {way} regeneration", fontsize=10)
    style.legend_below(figure.axes[0], ncols=5, title="share cut")
    return figure


def write_records(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write records as CSV, so that nothing is lost if a long measurement stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
