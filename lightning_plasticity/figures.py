"""One look for every figure of the package, drawn without pyplot and without global state.

A figure function takes numbers and returns a :class:`matplotlib.figure.Figure`, so it works in a notebook, in
a script, and in a logger. The palette is the one of Okabe and Ito (2008), which stays readable with every
common form of colour blindness; figures are 8 inches wide, so that their text is readable at a width of 800
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW, BLACK = OKABE_ITO = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
GREY = "#7F7F7F"  # for what is only there to compare with: chance, a baseline, a limit

DOTS_PER_INCH = 150
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def new_figure(
    rows: int = 1,
    cols: int = 1,
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    width: float = 8.0,
    height: float | None = None,
    **subplots: Any,
) -> Figure:
    """Makes an empty figure in the package's style; its panels are `figure.axes`, row by row.

    Args:
        rows: Rows of panels.
        cols: Columns of panels.
        title: Title over the whole figure.
        xlabel: Label, with its unit, under every panel of the last row.
        ylabel: Label, with its unit, left of every panel of the first column.
        width: Width in inches.
        height: Height in inches; by default the panels are about as high as is pleasant for their width.
        **subplots: Passed to :meth:`matplotlib.figure.Figure.subplots`, such as `sharex=True`.

    Raises:
        ValueError: If `rows` or `cols` is less than one.
        ModuleNotFoundError: If matplotlib is not installed.

    >>> figure = new_figure(cols=2, xlabel="epoch", ylabel="accuracy (%)")
    >>> left, right = figure.axes
    >>> line, = left.plot([0, 1, 2], [10, 90, 95])
    >>> line.get_color()
    '#0072B2'
    """
    if rows < 1 or cols < 1:
        raise ValueError(
            f"a figure needs at least one row and one column of panels, got rows={rows}, cols={cols}"
        )
    matplotlib = require_matplotlib()
    height = rows * min(4.5, 0.75 * width / cols + 0.6) if height is None else height
    # All of the style is what an Axes reads when it is made, so nothing of it is left behind here.
    with matplotlib.rc_context(_style(matplotlib.cycler)):
        figure = matplotlib.figure.Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
        panels = figure.subplots(rows, cols, squeeze=False, **subplots)
    for panel in panels[-1]:
        panel.set_xlabel(xlabel)
    for panel in panels[:, 0]:
        panel.set_ylabel(ylabel)
    if title:
        figure.suptitle(title)
    return figure  # type: ignore[no-any-return]


def plot_spread(
    axes: Axes,
    x: Sequence[float],
    mean: Sequence[float],
    spread: Sequence[float],
    *,
    label: str = "",
    **line: Any,
) -> None:
    """Draws a mean as a line with a marker and its spread as a band of the same colour.

    Markers differ from line to line, so that the lines stay apart without colour too.

    Args:
        axes: The panel.
        x: Positions, shape `[n]`.
        mean: Means, shape `[n]`.
        spread: Half the height of the band, shape `[n]`, such as a standard deviation over seeds.
        label: The line's entry in the legend.
        **line: Passed to :meth:`matplotlib.axes.Axes.plot`.
    """
    line.setdefault("marker", _MARKERS[len(axes.lines) % len(_MARKERS)])
    (drawn,) = axes.plot(x, mean, label=label, **line)
    lower = [float(m) - float(s) for m, s in zip(mean, spread, strict=True)]
    upper = [float(m) + float(s) for m, s in zip(mean, spread, strict=True)]
    axes.fill_between(x, lower, upper, color=drawn.get_color(), alpha=0.2, linewidth=0)


def legend_below(axes: Axes, *, ncols: int = 3, **legend: Any) -> None:
    """Puts a panel's legend under the whole figure, where it hides nothing.

    Args:
        axes: The panel whose labelled lines are named; other panels may share them.
        ncols: Columns at most.
        **legend: Passed to :meth:`matplotlib.figure.Figure.legend`, such as `title`.
    """
    handles, labels = axes.get_legend_handles_labels()
    axes.get_figure(root=True).legend(  # type: ignore[union-attr]
        handles, labels, loc="outside lower center", ncols=max(1, min(ncols, len(labels))), **legend
    )


def colors(names: Iterable[str]) -> dict[str, str]:
    """Gives each name a colour of the palette, in order, so that panels can share them.

    >>> colors(["dense", "GraNet"])
    {'dense': '#0072B2', 'GraNet': '#E69F00'}
    """
    return dict(zip(names, cycle(OKABE_ITO), strict=False))


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure in the format of the path's ending, makes the folder, and returns the path.

    Args:
        figure: Any matplotlib figure, ours or not.
        path: Where to; the ending chooses the format (`.png`, `.pdf`, `.svg`).

    Raises:
        ValueError: If matplotlib cannot write that format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=figure.dpi)
    return path


def _style(cycler: Callable[..., Any]) -> dict[str, Any]:
    return {
        "axes.prop_cycle": cycler(color=OKABE_ITO) * cycler(linewidth=[1.8]) * cycler(markersize=[5]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": "medium",
        "grid.color": "#E0E0E0",
        "grid.linewidth": 0.8,
    }


def require_matplotlib() -> Any:
    """Imports matplotlib, without pyplot, or says how to install it.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        import matplotlib
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "figures need matplotlib: pip install 'lightning-plasticity[recipes]'", name=error.name
        ) from error
    return matplotlib
