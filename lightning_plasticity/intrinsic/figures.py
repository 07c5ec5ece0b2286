"""Figures of what the neurons learned."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_plasticity.figures import GREY, colors, legend_below, new_figure
from lightning_plasticity.intrinsic.distribution import Parameters, log_negative_binomial
from lightning_plasticity.intrinsic.naming import best_label
from lightning_plasticity.intrinsic.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_plasticity.intrinsic.inference import MixtureInference


def of_module(module: "MixtureInference") -> Mapping[str, "Figure"]:
    """All figures that a module has data for, by name."""
    params, counts = module.learned, module.label_counts
    shape = module.image_shape or _image_shape(params.weights.shape[1])
    drawn = {"weights": weights_figure(params, shape, counts)}
    energy, labels = module.scores.energies()
    if len(energy):
        drawn["intensities"] = intensity_figure(params, counts, energy, labels)
    if len(module.trace.seen) > 1:
        chosen = evenly_spread(params)
        drawn["intensities_over_time"] = intensities_over_time(module.trace, chosen)
        drawn["weights_over_time"] = weights_over_time(module.trace, shape, chosen)
    return drawn


def _image_shape(size: int) -> tuple[int, int]:
    side = math.isqrt(size)
    return (side, side) if side * side == size else (1, size)


def weights_figure(
    params: Parameters, image_shape: tuple[int, int], counts: Tensor, most: int = 60
) -> "Figure":
    """Weights of each class as an image, in the order of prior, with its label and mean intensity.

    Args:
        params: the mixture.
        image_shape: height and width of an image.
        counts: `[C, K]`, who answered for which label; `K` may be 0.
        most: classes drawn at most.
    """
    order = params.prior.argsort(descending=True)[:most].tolist()
    columns = min(len(order), 10)
    rows = -(-len(order) // columns)
    names = best_label(counts).tolist() if counts.shape[1] else [-1] * len(params.mean)
    title = "Weights of each class (label: mean intensity in counts)"
    if not any(names[index] >= 0 for index in order):
        title = "Weights of each class (mean intensity in counts)"
    elif any(names[index] < 0 for index in order):
        title += "\nno label: answers for none of the labelled stimuli"
    figure = new_figure(rows, columns, title=title, height=0.8 + 1.0 * rows)
    for axes in figure.axes:
        axes.set_axis_off()
    for axes, index in zip(figure.axes, order, strict=False):
        axes.imshow(params.weights[index].float().cpu().view(image_shape).numpy(), cmap="viridis")
        name = f"{names[index]}: " if names[index] >= 0 else ""
        axes.set_title(f"{name}{float(params.mean[index]):.0f}", fontsize=8, pad=2)
    return figure


def intensity_figure(params: Parameters, counts: Tensor, energy: Tensor, labels: Tensor) -> "Figure":
    """Learned intensity distributions over the histogram of the data's energies, one panel for each label.

    Args:
        params: the mixture.
        counts: `[C, K]`, who answered for which label; with `K = 0` there is one panel for all.
        energy: `S [n]`.
        labels: `[n]`.
    """
    params = Parameters(*(part.double().cpu() for part in params))
    named = bool(counts.any())
    share = torch.ones(len(params.mean), 1, dtype=torch.float64)
    if named:
        share = (best_label(counts.cpu()).unsqueeze(1) == torch.arange(counts.shape[1])).double()
    panels, columns = share.shape[1], min(share.shape[1], 5)
    rows = -(-panels // columns)
    figure = new_figure(
        rows, columns, xlabel="energy (counts)", ylabel="density", height=0.8 + 1.9 * rows,
        title="Energies (bars) and learned intensity distributions (lines)",
    )  # fmt: skip
    for label, axes in enumerate(figure.axes[:panels]):
        chosen = energy[labels == label] if named else energy
        _panel(axes, params, share[:, label], chosen)
        axes.set_title(f"label {label}" if named else "all stimuli", fontsize=9)
    for axes in figure.axes[panels:]:
        axes.set_axis_off()
    return figure


def _panel(axes: "Axes", params: Parameters, share: Tensor, energy: Tensor) -> None:
    mix = params.prior * share
    if len(energy) == 0 or not bool(mix.sum() > 0):
        axes.text(0.5, 0.5, "no class" if len(energy) else "no data", transform=axes.transAxes, ha="center")
    top = (float(energy.max()) if len(energy) else float(params.mean.max())) * 1.15 + 1
    grid = torch.arange(0, math.ceil(top), max(1, int(top / 200)), dtype=torch.float64)
    density = log_negative_binomial(grid, params.mean, params.shape).exp() @ (
        mix / mix.sum().clamp_min(1e-300)
    )
    if len(energy):
        axes.hist(energy.numpy(), bins=25, range=(0, top), density=True, color=GREY, alpha=0.5)
    axes.plot(grid.numpy(), density.numpy())
    axes.set_xlim(0, top)
    axes.set_yticks([])  # every panel has a scale of its own, and the area is 1
    axes.tick_params(labelsize=7)


def weights_over_time(trace: Trace, image_shape: tuple[int, int], chosen: Sequence[int]) -> "Figure":
    """Weights of some classes (rows) after more and more stimuli (columns)."""
    times = len(trace.weights)
    figure = new_figure(
        len(chosen), times, title="Weights over learning time", height=0.6 + 1.1 * len(chosen)
    )
    rows = [figure.axes[start : start + times] for start in range(0, len(figure.axes), times)]
    for row, (name, color) in zip(rows, colors(map(str, chosen)).items(), strict=True):
        for axes, weights in zip(row, trace.weights, strict=True):
            axes.imshow(weights[int(name)].view(image_shape).numpy(), cmap="viridis")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
        row[0].set_ylabel(f"class {name}", fontsize=8, color=color)
    for axes, seen in zip(rows[0], trace.weights_seen, strict=True):
        axes.set_title(f"{seen:,.0f} seen", fontsize=8)
    return figure


def intensities_over_time(trace: Trace, chosen: Sequence[int]) -> "Figure":
    """Mean intensity of every class over learning time; some are coloured."""
    figure = new_figure(
        title="Mean intensity of each class as it learns",
        xlabel="stimuli seen",
        ylabel="learned mean intensity (counts)",
    )
    axes, means = figure.axes[0], torch.stack(trace.mean).numpy()
    others = [index for index in range(means.shape[1]) if index not in chosen]
    grey = axes.plot(trace.seen, means[:, others], color=GREY, linewidth=0.7, alpha=0.6)
    for name, color in colors(map(str, chosen)).items():
        axes.plot(trace.seen, means[:, int(name)], color=color, label=f"class {name}")
    axes.set_yscale("log")
    for line in grey[:1]:
        line.set_label("other classes")
    legend_below(axes, ncols=4)
    return figure


def evenly_spread(params: Parameters, classes: int = 6) -> list[int]:
    """Classes in use (a tenth of an even share at least) whose intensities are evenly spread in rank."""
    used = (params.prior * len(params.prior) >= 0.1).nonzero().flatten()
    order = used[params.mean[used].argsort()]
    ranks = torch.linspace(0, len(order) - 1, min(classes, len(order))).round().long()
    return order[ranks.to(order.device)].tolist()


def contrast_figure(
    contrasts: Sequence[float], accuracy: Mapping[str, Sequence[float]], chance: float
) -> "Figure":
    """Accuracy over the contrast of the test stimuli, one line for each method.

    Args:
        contrasts: factors of every test intensity; 1 is that of training.
        accuracy: of each method at each contrast, in 0..1.
        chance: accuracy of guessing.
    """
    figure = new_figure(
        title="Accuracy on stimuli brighter or darker than in training",
        xlabel="contrast of test stimuli, relative to training",
        ylabel="accuracy (%)",
    )
    axes = figure.axes[0]
    for (method, values), marker in zip(accuracy.items(), "os^Dv", strict=False):
        axes.plot(contrasts, [100 * value for value in values], marker=marker, label=method)
    axes.axhline(100 * chance, color=GREY, linestyle=":", label="chance")
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(contrasts, [f"{contrast:g}" for contrast in contrasts])
    axes.set_ylim(0, 100)
    legend_below(axes)
    return figure
