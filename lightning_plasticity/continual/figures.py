"""Figures of a run in sessions, and of a comparison of variants."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_plasticity.continual.report import LEARNERS, Record
from lightning_plasticity.figures import BLACK, BLUE, GREY, colors, legend_below, new_figure, plot_spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def of_record(record: Record, joint: float | None = None) -> Mapping[str, "Figure"]:
    """All figures of a run, by name; `joint` as in `accuracy_figure`."""
    drawn = {
        "accuracy": accuracy_figure(record, joint),
        "matrix": matrix_figure(record.matrix()[: record.evaluated]),
    }
    if record.evaluated > 1:
        drawn["fast_weight"] = weight_figure(record.fast_weight()[: record.evaluated])
    return drawn


def seen_accuracies(record: Record, learner: str) -> list[float]:
    """Accuracy in percent on all classes seen, after each session."""
    metric = record.accuracy[learner]
    right, total = metric.correct.tril().sum(1).double(), metric.total.tril().sum(1).double()
    return (100 * right / total)[: record.evaluated].tolist()


def accuracy_figure(record: Record, joint: float | None = None) -> "Figure":
    """Accuracy on all classes seen so far, after each session, of each learner.

    Args:
        record: of the run.
        joint: accuracy of learning all classes at once, drawn as a line.
    """
    figure = new_figure(
        title="Accuracy after each session", xlabel="session", ylabel="accuracy on all classes so far (%)"
    )
    axes, sessions = figure.axes[0], range(1, record.evaluated + 1)
    for learner, marker in zip(LEARNERS, "os^", strict=True):
        axes.plot(sessions, seen_accuracies(record, learner), marker=marker, label=learner)
    if joint is not None:
        axes.axhline(100 * joint, color=GREY, linestyle="--", label="all classes at once")
    axes.set_xticks(list(sessions))
    legend_below(axes, ncols=4)
    return figure


def matrix_figure(matrix: Tensor) -> "Figure":
    """Accuracy on each session after each, as a heat map with its numbers; `matrix [t, T]`."""
    title = "What is kept of each session"
    figure = new_figure(title=title, xlabel="classes of session", ylabel="after session", height=6.0)
    axes, percent = figure.axes[0], 100 * matrix
    image = axes.imshow(percent.numpy(), vmin=0, vmax=100, cmap="viridis")
    axes.grid(visible=False)
    for (row, column), value in ((place, percent[place]) for place in _cells(percent)):
        colour = "black" if value > 60 else "white"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(matrix.shape[1]), [str(i + 1) for i in range(matrix.shape[1])])
    axes.set_yticks(range(matrix.shape[0]), [str(i + 1) for i in range(matrix.shape[0])])
    figure.colorbar(image, ax=axes, label="accuracy of the aggregate (%)")
    return figure


def _cells(matrix: Tensor) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in (~matrix.isnan()).nonzero()]


def weight_figure(weight: Tensor) -> "Figure":
    """Mean weight of the fast learner in the aggregate, on old and on new classes; `weight [t, T]`."""
    figure = new_figure(
        title="How much the aggregate follows the fast learner",
        xlabel="after session",
        ylabel="mean weight of the fast learner",
    )
    axes, rows = figure.axes[0], range(1, len(weight))
    old = [float(weight[row, :row].mean()) for row in rows]
    new = [float(weight[row, row]) for row in rows]
    after = [row + 1 for row in rows]
    axes.plot(after, old, marker="o", label="classes of earlier sessions")
    axes.plot(after, new, marker="s", label="classes of the current session")
    axes.axhline(0.5, color=GREY, linestyle="--", label="plain average")
    axes.set_xticks(after)
    legend_below(axes, ncols=4)
    return figure


def comparison_figure(
    curves: Mapping[str, Sequence[Sequence[float]]],
    finals: Mapping[str, Sequence[float]],
    joint: float | None = None,
) -> "Figure":
    """Variants over class orders: accuracies after each session, and the final ones order by order.

    Args:
        curves: name of a variant -> for each class order, accuracy in percent on all classes seen after each
            session; drawn as mean and standard deviation.
        finals: name of a variant -> the final accuracy of each class order in percent; drawn as dots with
            their mean.
        joint: accuracy in percent of learning all classes at once, drawn as a line.
    """
    title = "Accuracy of each variant, over orders of the classes"
    figure = new_figure(rows=2, title=title, height=10.0, height_ratios=(4, max(2.0, 0.3 * len(finals))))
    (upper, lower), colour = figure.axes, colors(curves)
    for name, values in curves.items():
        table = torch.tensor([list(row) for row in values], dtype=torch.float64)
        spread = table.std(0) if len(table) > 1 else torch.zeros(table.shape[1])
        sessions = list(range(1, table.shape[1] + 1))
        plot_spread(upper, sessions, table.mean(0).tolist(), spread.tolist(), label=name, color=colour[name])
        upper.set_xticks(sessions)
    upper.set(xlabel="session", ylabel="accuracy on all classes so far (%)")
    _final_dots(lower, finals)
    if joint is not None:
        for draw in (upper.axhline, lower.axvline):
            draw(joint, color=GREY, linestyle="--", label="all classes at once")
    upper.legend(fontsize="small")
    return figure


def _final_dots(axes: "Axes", finals: Mapping[str, Sequence[float]]) -> None:
    """One row of dots for each variant, the best on top, its mean a bar."""
    order = sorted(finals, key=lambda name: sum(finals[name]) / len(finals[name]))
    for row, name in enumerate(order):
        values = list(finals[name])
        axes.plot(values, [row] * len(values), "o", color=BLUE, alpha=0.6, markersize=5)
        axes.plot(sum(values) / len(values), row, "|", color=BLACK, markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(order)), order, fontsize="small")
    axes.set_xlabel("final accuracy of each class order (%), bar: mean")
