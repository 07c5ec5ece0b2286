"""Figures of a run in sessions, and of a comparison of variants."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_plasticity.continual.report import LEARNERS, Record
from lightning_plasticity.figures import GREY, colors, new_figure, plot_spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def of_record(record: Record) -> Mapping[str, "Figure"]:
    """All figures of a run, by name."""
    drawn = {
        "accuracy": accuracy_figure(record),
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
    figure = new_figure(xlabel="session", ylabel="accuracy on all classes so far (%)")
    axes, sessions = figure.axes[0], range(1, record.evaluated + 1)
    for learner, marker in zip(LEARNERS, "os^", strict=True):
        axes.plot(sessions, seen_accuracies(record, learner), marker=marker, label=learner)
    if joint is not None:
        axes.axhline(100 * joint, color=GREY, linestyle="--", label="all classes at once")
    axes.set_xticks(list(sessions))
    axes.legend()
    return figure


def matrix_figure(matrix: Tensor) -> "Figure":
    """Accuracy on each session after each, as a heat map with its numbers; `matrix [t, T]`."""
    figure = new_figure(xlabel="classes of session", ylabel="after session", height=5.0, width=6.4)
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
    figure = new_figure(xlabel="after session", ylabel="mean weight of the fast learner")
    axes, rows = figure.axes[0], range(1, len(weight))
    old = [float(weight[row, :row].mean()) for row in rows]
    new = [float(weight[row, row]) for row in rows]
    after = [row + 1 for row in rows]
    axes.plot(after, old, marker="o", label="classes of earlier sessions")
    axes.plot(after, new, marker="s", label="classes of the current session")
    axes.axhline(0.5, color=GREY, linestyle="--", label="plain average")
    axes.set_xticks(after)
    axes.legend()
    return figure


def comparison_figure(runs: Mapping[str, Sequence[Sequence[float]]]) -> "Figure":
    """Accuracy on all classes seen after each session, mean and standard deviation over class orders.

    Args:
        runs: name of a variant -> for each class order, the accuracies after each session in percent.
    """
    figure = new_figure(xlabel="session", ylabel="accuracy on all classes so far (%)", height=5.5)
    axes, colour = figure.axes[0], colors(runs)
    for name, values in runs.items():
        table = torch.tensor([list(row) for row in values], dtype=torch.float64)
        spread = table.std(0) if len(table) > 1 else torch.zeros(table.shape[1])
        sessions = list(range(1, table.shape[1] + 1))
        plot_spread(axes, sessions, table.mean(0).tolist(), spread.tolist(), label=name, color=colour[name])
    axes.set_xticks(sessions)
    axes.legend(fontsize="small")
    return figure
