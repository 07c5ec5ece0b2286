"""Figures of a federation: what stands out of the noise, what was found, and how it went."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_plasticity.figures import BLUE, GREY, OKABE_ITO, VERMILLION, legend_below, new_figure
from lightning_plasticity.hopfield.memory import Memory
from lightning_plasticity.hopfield.spectrum import magnetisation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_plasticity.hopfield.module import FederatedHopfield

_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")


def of_module(module: "FederatedHopfield") -> Mapping[str, "Figure"]:
    """All figures that a module has data for, by name."""
    trace, drawn = module.trace, dict[str, "Figure"]()
    if len(module.memory.eigenvalues):
        drawn["spectrum"] = spectrum_figure(module.memory)
    if len(module.memory.archetypes):
        drawn["archetypes"] = archetypes_figure(module.memory, module.image_shape)
    if trace.overlaps:
        drawn["magnetisation"] = magnetisation_figure(
            trace.overlap_rounds, trace.overlap_table(), trace.found
        )
    if trace.plasticity:
        drawn["plasticity"] = plasticity_figure(
            torch.stack(trace.entropy), torch.stack(trace.plasticity), trace.clients()
        )
    return drawn


def spectrum_figure(memory: Memory) -> "Figure":
    """Eigenvalues of the federation's operator in order, the bulk edge, and those detected above it.

    Args:
        memory: after a round.
    """
    values, count, n = memory.eigenvalues * memory.neurons, memory.outliers, memory.neurons
    figure = new_figure(xlabel="rank of eigenvalue", ylabel="eigenvalue, times N")
    axes, ranks = figure.axes[0], torch.arange(1, len(values) + 1)
    shown = values > 0
    axes.plot(
        ranks[:count], values[:count], "o", color=VERMILLION, label=f"outliers: {count} archetypes detected"
    )
    bulk = shown & (ranks > count)
    axes.plot(
        ranks[bulk], values[bulk], ".", color=GREY, label=f"bulk, as the sketch of rank {len(values)} has it"
    )
    axes.axhline(
        memory.edge * n, color=BLUE, linestyle="--", linewidth=1.2, label=f"bulk edge {memory.edge * n:.2f}"
    )
    axes.set_yscale("log")
    axes.set_title(
        f"Operator of all clients after {memory.round} rounds, "
        f"averaged over {memory.report.effective_examples:,.0f} examples"
    )
    axes.legend(loc="upper right")
    return figure


def archetypes_figure(memory: Memory, image_shape: tuple[int, int], most: int = 60) -> "Figure":
    """Archetypes in memory as images, with the overlap with the truth that theory expects of each.

    Args:
        memory: with at least one.
        image_shape: height and width of an image.
        most: archetypes drawn at most.
    """
    states, expected = memory.archetypes[:most].cpu(), magnetisation(memory.evidence[:most])
    columns = min(len(states), 10 if image_shape[0] > 1 else 1)
    rows = -(-len(states) // columns)
    figure = new_figure(
        rows,
        columns,
        title=f"{len(memory.archetypes)} archetypes found (expected overlap with the truth)",
        height=0.6 + (1.0 if image_shape[0] > 1 else 0.35) * rows,
    )
    for axes in figure.axes:
        axes.set_axis_off()
    for axes, state, overlap in zip(figure.axes, states, expected, strict=False):
        bright = state if int(state.sum()) <= 0 else -state  # the sign is arbitrary: show strokes as bright
        axes.imshow(bright.view(image_shape).numpy(), cmap="gray", vmin=-1, vmax=1, aspect="auto"
                    if image_shape[0] == 1 else "equal")  # fmt: skip
        axes.set_title(f"{overlap:.3f}", fontsize=8, pad=2)
    return figure


def magnetisation_figure(rounds: Sequence[int], overlaps: Tensor, found: Sequence[int]) -> "Figure":
    """Overlap of every true archetype with its match over the rounds, and how many archetypes are remembered.

    Args:
        rounds: after which the truth was compared with, `[T]`.
        overlaps: `[T, K]`, NaN before an archetype is seen.
        found: archetypes in memory after each round.
    """
    figure = new_figure(2, 1, xlabel="round", sharex=True, height=6.0, gridspec_kw={"height_ratios": [2, 1]})
    upper, lower = figure.axes
    upper.set_ylabel("overlap with its match")
    for k in range(overlaps.shape[1]):
        _line(upper, rounds, overlaps[:, k], _style(k, overlaps.shape[1]), f"{k}")
    upper.set_title("How well each archetype is known")
    upper.set_ylim(-0.02, 1.04)
    if overlaps.shape[1] <= 20:
        _legend_beside(upper, "true archetype")
    known = (~overlaps.isnan()).sum(1).tolist()
    dots = "o" if len(found) == 1 else ""  # steps between rounds need two
    lower.step(
        range(len(found)), found, marker=dots, where="mid", color=BLUE, label="found, without being told"
    )
    lower.step(
        rounds, known, marker=dots and "x", where="mid", color=GREY, linestyle="--", label="true, seen so far"
    )
    lower.set_ylabel("archetypes")
    lower.set_ylim(0, 1.1 * max([1, *found, *known]))
    lower.locator_params(integer=True, min_n_ticks=1)
    legend_below(lower)
    return figure


def plasticity_figure(entropy: Tensor, plasticity: Tensor, clients: Sequence[int]) -> "Figure":
    """Entropy of each client's agreement with the memory, and the plasticity that follows, over the rounds.

    Args:
        entropy: `[T, C]` bits, NaN for a client that takes no part.
        plasticity: `[T, C]`, likewise; 0 for a client that has no signal.
        clients: those to draw.
    """
    figure = new_figure(2, 1, xlabel="round", sharex=True, height=6.0)
    upper, lower = figure.axes
    for index, client in enumerate(clients):
        style = _style(index, len(clients))
        rounds = range(len(entropy))
        _line(upper, rounds, entropy[:, client], style, "")
        _line(lower, rounds, plasticity[:, client], style, f"{client}")
    upper.set_title("How much of each client's signal is new")
    lower.set_title("What the federation takes of it (0: no signal, left out)")
    upper.set_ylabel("entropy H (bits)")
    upper.set_ylim(-0.03, 1.03)
    lower.set_ylabel("plasticity w")
    lower.set_ylim(bottom=-0.02)
    lower.locator_params(axis="x", integer=True, min_n_ticks=1)
    if 0 < len(clients) <= 20:
        _legend_beside(lower, "client")
    return figure


def _style(index: int, count: int) -> dict[str, Any]:
    """A line of its own among `count`: later ones are thinner, so that those beneath show."""
    return {
        "color": OKABE_ITO[index % len(OKABE_ITO)],
        "linestyle": _DASHES[index // len(OKABE_ITO) % len(_DASHES)],
        "marker": _MARKERS[index // len(OKABE_ITO) % len(_DASHES)],
        "linewidth": 1.3 + 3.0 * (1 - index / max(count - 1, 1)),
    }


def _line(axes: "Axes", rounds: Sequence[int], values: Tensor, style: Mapping[str, Any], label: str) -> None:
    """One client or archetype; a point where no neighbouring round has a value."""
    size = max(2.0, 1.25 * float(style["linewidth"]))
    axes.plot(list(rounds), values.numpy(), **style, markersize=size, label=label)


def _legend_beside(axes: "Axes", title: str) -> None:
    """All lines equally thin there, so that their dashes are seen whole."""
    legend = axes.legend(
        title=title, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False, handlelength=4.5
    )
    for line in legend.get_lines():
        line.set(linewidth=1.6, markersize=3)
