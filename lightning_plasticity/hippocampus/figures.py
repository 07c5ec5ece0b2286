"""Figures: what was learned, and what happens in the dark."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_plasticity.figures import (
    BLACK,
    BLUE,
    GREY,
    OKABE_ITO,
    colors,
    legend_below,
    new_figure,
    plot_spread,
)
from lightning_plasticity.metrics.ring_score import aligned_profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_plasticity.hippocampus.analysis import Darkness
    from lightning_plasticity.hippocampus.latents import WakeAndSleep
    from lightning_plasticity.hippocampus.module import HippocampalFormation


def of_module(module: "HippocampalFormation") -> "Mapping[str, Figure]":
    """All figures that a module has data for, by name; of its first model where it is of one."""
    drawn: dict[str, Figure] = {}
    if module.recorder.minutes:
        drawn["prediction_error"] = prediction_error_figure(*module.recorder.history())
        drawn["rates"] = rates_figure(module)
    if module.settings.task == "track":
        drawn["ring"] = ring_figure(module)
        drawn["rate_maps"] = rate_maps_figure(module)
    return drawn


def prediction_error_figure(minutes: Sequence[float], errors: Tensor) -> "Figure":
    """Averaged |basal - apical| of both layers over simulated time, mean and spread over models.

    Args:
        minutes: simulated `[N]`.
        errors: of HPC and MEC `[N, M, 2]`.
    """
    figure = new_figure(
        title="Prediction error over training",
        xlabel="simulated time (min)",
        ylabel="mean |basal - apical| (rate)",
    )
    axes = figure.axes[0]
    for layer, name in enumerate(("HPC", "MEC")):
        values = errors[..., layer]
        spread = values.std(1) if values.shape[1] > 1 else torch.zeros(len(values))
        plot_spread(axes, list(minutes), values.mean(1).tolist(), spread.tolist(), label=name, marker="")
    axes.set_yscale("log")
    axes.legend()
    return figure


def rates_figure(module: "HippocampalFormation", seconds: float = 2.0) -> "Figure":
    """Rates of the last seconds of training, and which dendrite drove each layer."""
    last, dt = module.recorder.last, module.settings.dt
    steps = min(round(seconds / dt), len(last["p"]))
    figure = new_figure(
        3,
        1,
        title="The last seconds of training",
        xlabel="time (s)",
        height=7.0,
        sharex=True,
        height_ratios=[3, 3, 1],
    )
    extent = (0.0, steps * dt)
    for axes, name, label in zip(figure.axes, ("p", "g"), ("HPC cell", "MEC cell"), strict=False):
        rates = last[name][-steps:].T.numpy()
        image = axes.imshow(
            rates,
            aspect="auto",
            origin="lower",
            cmap="viridis",
            extent=(*extent, 0, len(rates)),
            interpolation="none",
        )
        axes.set_ylabel(label)
        axes.grid(False)
        figure.colorbar(image, ax=axes, label="rate")
    axes = figure.axes[2]
    sleep = module.gate.fractions(module.state.step - steps, steps).numpy()
    time = (torch.arange(steps) * dt).numpy()
    axes.step(time, sleep[:, 0], where="post", label="HPC")
    axes.step(time, sleep[:, 1], where="post", linestyle=":", label="MEC")
    axes.set_yticks([0, 1], ["wake", "sleep"])
    axes.set_ylim(-0.2, 1.2)
    axes.set_xlim(*extent)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def ring_figure(module: "HippocampalFormation", index: int = 0) -> "Figure":
    """Sorted recurrent and conjunctive weights of a model, and their mean profiles around each cell."""
    from lightning_plasticity.hippocampus.analysis import sorted_ring

    ring = sorted_ring(module, index)
    names = {"recurrent": "MEC", "right": "rightward cells", "left": "leftward cells"}
    figure = new_figure(
        2, 3, title=f"Ring among {len(ring.recurrent)} live MEC cells, sorted along the track", height=6.4
    )
    for axes, (name, title) in zip(figure.axes, names.items(), strict=False):
        matrix = getattr(ring, name).cpu().numpy()
        limit = float(abs(matrix).max()) or 1.0
        image = axes.imshow(
            matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", interpolation="none"
        )
        axes.set_title(title)
        axes.set_xlabel("from cell")
        axes.grid(False)
        figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, label="weight")
    figure.axes[0].set_ylabel("to cell")
    for axes, name in zip(figure.axes[3:6], names, strict=True):
        profile = aligned_profile(getattr(ring, name)).tolist()
        axes.plot([offset - len(profile) // 2 for offset in range(len(profile))], profile)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel("offset (cells)")
    figure.axes[3].set_ylabel("mean weight")
    return figure


def rate_maps_figure(module: "HippocampalFormation", index: int = 0, places: int = 100) -> "Figure":
    """Rates of all cells over the track: basal ones (wake) and what apical dendrites make of MEC (sleep)."""
    length = module.settings.circumference
    positions = (torch.arange(places) + 0.5) / places * length
    figure = new_figure(2, 2, title="Rate maps", xlabel="place (m)", height=6.4, sharex=True)
    for row, layer in enumerate(("hpc", "mec")):
        order = module.rate_map(layer, "wake", positions)[index].argmax(1).argsort(stable=True)  # type: ignore[arg-type]
        for column, (phase, title) in enumerate({"wake": "basal (wake)", "sleep": "apical (sleep)"}.items()):
            axes = figure.axes[2 * row + column]
            rates = module.rate_map(layer, phase, positions)[index][order].cpu().numpy()  # type: ignore[arg-type]
            image = axes.imshow(
                rates, aspect="auto", origin="lower", extent=(0, length, 0, len(rates)), interpolation="none"
            )
            axes.set_title(f"{layer.upper()}, {title}")
            axes.grid(False)
            figure.colorbar(image, ax=axes, label="rate")
        figure.axes[2 * row].set_ylabel("cell, sorted by its place")
    return figure


def dark_error_figure(
    history: Sequence[tuple[float, Tensor]], dt: float, circumference: float, most: int = 5
) -> "Figure":
    """Error by time in the dark, mean and spread over models, at some of the tests of a run, the last too.

    Args:
        history: simulated minutes of each test, and errors `[M, T]` in metres.
        dt: seconds of a step.
        circumference: metres, of the track.
        most: tests drawn at most.
    """
    last = len(history) - 1
    chosen = torch.linspace(last, 0, min(most, len(history))).round().int().flip(0).tolist()
    curves = {f"after {history[k][0]:g} min": history[k][1] for k in chosen}
    return darkness_figure(curves, dt, circumference, "Path integration during training")


def darkness_figure(curves: Mapping[str, Tensor], dt: float, circumference: float, title: str) -> "Figure":
    """Error by time in the dark: mean and standard deviation over models, beside chance.

    Args:
        curves: name -> errors `[M, T]` in metres; a name's colour is that of `bump_speed_figure`.
        dt: seconds of a step.
        circumference: metres, of the track; a guess is a quarter of it wrong on average.
        title: of the figure.
    """
    height = 4.6 + 0.25 * ((len(curves) + 2) // 2)
    figure = new_figure(
        title=title, xlabel="time in the dark (s)", ylabel="decoding error (m)", height=height
    )
    axes, chance, palette = figure.axes[0], circumference / 4, colors(curves)
    for number, (name, errors) in enumerate(curves.items()):
        time = ((torch.arange(errors.shape[1]) + 1) * dt).tolist()
        spread = errors.std(0) if len(errors) > 1 else torch.zeros(len(time))
        style = {"marker": "", "linestyle": "-" if number < len(OKABE_ITO) else ":", "color": palette[name]}
        plot_spread(axes, time, errors.mean(0).tolist(), spread.tolist(), label=name, **style)
    axes.axhline(chance, color=GREY, linestyle="--", label="chance")
    axes.set_ylim(0, max(1.4 * chance, axes.get_ylim()[1]))
    legend_below(axes, ncols=2)
    return figure


def tracking_figure(dark: "Darkness", dt: float, tests: int = 3, index: int = 0) -> "Figure":
    """Decoded and true place through the light and the dark, of some tests of one model."""
    tests = min(tests, dark.true.shape[1])
    figure = new_figure(
        tests, 1, title="Decoded against true place", xlabel="time from lights out (s)",
        height=2.0 * tests + 0.8, sharex=True, sharey=True,
    )  # fmt: skip
    before = dark.true_light.shape[2]
    time = ((torch.arange(before + dark.true.shape[2]) + 1 - before) * dt).tolist()
    for test, axes in enumerate(figure.axes):
        true = torch.cat([dark.true_light[index, test], dark.true[index, test]]).tolist()
        decoded = torch.cat([dark.decoded_light[index, test], dark.decoded[index, test]]).tolist()
        axes.axvspan(0, time[-1], color=GREY, alpha=0.15, linewidth=0)
        axes.plot(time, true, ".", color=GREY, markersize=4, label="true")
        axes.plot(time, decoded, ".", color=BLUE, markersize=2, label="decoded")
        axes.set_ylabel("place (m)")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=2
    )
    return figure


def bump_speed_figure(speeds: Tensor, curves: Mapping[str, Tensor]) -> "Figure":
    """Speed of the bump in the dark against the animal's: mean and standard deviation over models.

    Args:
        speeds: true ones `[V]`, m/s.
        curves: name -> speeds of the decoded place `[M, V]`, m/s; a name's colour is that of
            `darkness_figure`.
    """
    figure = new_figure(
        title="Does the bump move as fast as the animal?",
        xlabel="true speed (m/s)",
        ylabel="speed of the bump (m/s)",
    )
    axes = figure.axes[0]
    ends = [float(speeds.min()), float(speeds.max())]
    axes.plot(ends, ends, color=GREY, linestyle="--", label="equal")
    palette = colors(curves)
    for name, found in curves.items():
        spread = (found.std(0) if len(found) > 1 else torch.zeros(found.shape[1])).tolist()
        plot_spread(axes, speeds.tolist(), found.mean(0).tolist(), spread, label=name, color=palette[name])
    legend_below(axes, ncols=2)
    return figure


def wake_and_sleep_figure(found: "WakeAndSleep", dt: float, index: int = 0, cells: int = 3) -> "Figure":
    """The latent task: dendrites in wake, rates in sleep, and autocorrelations of both."""
    from lightning_plasticity.hippocampus.latents import lagged

    figure = new_figure(3, 1, height=8.5, title="Artificial latents: wake predicts, sleep generates")
    wake, sleep, lags = figure.axes
    steps = round(10 / dt)
    time = torch.arange(steps) * dt
    for cell, color in enumerate(colors(map(str, range(cells))).values()):
        first = cell == 0
        _line(wake, time, found.wake_basal[:steps, index, cell], color, "basal" if first else "")
        apical = found.wake_apical[:steps, index, cell]
        _line(wake, time, apical, color, "apical" if first else "", linestyle=":")
        _line(sleep, time, found.sleep_mec[:steps, index, cell], color, f"cell {cell + 1}")
    wake.set(xlabel="time in wake (s)", ylabel="rate", title=f"Wake: {cells} cells of HPC, a colour each")
    sleep.set(xlabel="time in sleep (s)", ylabel="rate", title=f"Sleep: {cells} cells of MEC, a colour each")
    generated, data = lagged(found, dt, index=index)
    lag = torch.arange(len(data)) * dt
    _line(lags, lag, data, GREY, "features")
    _line(lags, lag, generated, BLACK, "MEC asleep", linestyle="--")
    lags.set(xlabel="lag (s)", ylabel="autocorrelation", title="Does sleep change as fast as the data?")
    for axes in figure.axes:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    for line in wake.get_legend().legend_handles:  # type: ignore[union-attr]
        line.set_color(BLACK)  # type: ignore[union-attr]  # dashes tell the dendrites apart, of every cell
    return figure


def _line(axes: "Axes", x: Tensor, y: Tensor, color: str, label: str, **style: Any) -> None:
    axes.plot(x.tolist(), y.tolist(), color=color, label=label or None, linewidth=1.4, **style)
