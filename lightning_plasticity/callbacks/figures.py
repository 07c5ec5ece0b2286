"""FigureLogger: every figure and table of a run, as a file beside its metrics and in its loggers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_plasticity.callbacks.support import callbacks_of, leaves_no_trace
from lightning_plasticity.callbacks.tables import log_table
from lightning_plasticity.figures import require_matplotlib, save_figure
from lightning_plasticity.runs import run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
FigureFunction = Callable[[Trainer, LightningModule], Any]


class FigureLogger(Callback):
    """Writes figures as PNG to `<run folder>/figures/` and sends them to every logger, when a fit ends.

    Figures come from `figures` and from every callback and the LightningModule that have a method
    `figures() -> Mapping[str, Figure]`. W&B gets them as images and TensorBoard as figures, named
    `figures/<name>`; other loggers have the file. They are drawn on rank zero alone, so they must not call
    collectives. If two have one name, the later is called `<name>_2`. Under `fast_dev_run` they are drawn but
    written nowhere. In the end the rows of `tables() -> Mapping[str, Sequence[Mapping[str, value]]]` of the
    same owners go to `<run folder>/tables/<name>.csv` and to W&B, named `tables/<name>`.

    Args:
        figures: Functions `(trainer, module) -> Figure`, or their import paths such as
            `"my_package.plots.loss"`; a figure is named after its function.
        every_n_epochs: Also write them after every so many epochs, over the previous file; `None`: only at
            the end.

    Raises:
        MisconfigurationException: If a figure is no function, an import path leads nowhere, or
            `every_n_epochs` is less than one.

    >>> from lightning_plasticity.figures import new_figure
    >>> def steps(trainer, module):
    ...     figure = new_figure(xlabel="run", ylabel="optimizer steps")
    ...     bars = figure.axes[0].bar(["this one"], [trainer.global_step])
    ...     return figure
    >>> callback = FigureLogger([steps], every_n_epochs=10)
    """

    def __init__(
        self, figures: Sequence[str | FigureFunction] = (), every_n_epochs: int | None = None
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise MisconfigurationException(
                f"every_n_epochs={every_n_epochs} must be at least 1, or None for figures at the end only"
            )
        if isinstance(figures, str) or not isinstance(figures, Sequence):
            raise MisconfigurationException(
                f"figures={figures!r} must be a list; write [{figures!r}] for one"
            )
        self.every_n_epochs = every_n_epochs
        self._functions = [_figure_function(figure) for figure in figures]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds out before the training, and not after it, that figures cannot be drawn or written."""
        require_matplotlib()
        if not leaves_no_trace(trainer):
            run_folder(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the figures if it is their epoch."""
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes figures and tables, and says where the figures are."""
        self._write_tables(trainer, pl_module)
        paths = self._write(trainer, pl_module)
        if paths:
            count = f"{len(paths)} figure{'s' if len(paths) > 1 else ''}"
            print(f"{count} in {paths[0].parent}: {', '.join(path.name for path in paths)}")

    @rank_zero_only
    def _write(self, trainer: Trainer, module: LightningModule) -> list[Path]:
        drawn = _distinct(self._draw(trainer, module))
        paths = [log_figure(trainer, name, figure) for name, figure in drawn]
        return [path for path in paths if path is not None]

    def _draw(self, trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, Figure]]:
        for function in self._functions:
            name = getattr(function, "__name__", type(function).__name__)
            yield name, _checked(function(trainer, module), name, name)
        for source, name, figure in _of_owners("figures", trainer, module):
            yield name, _checked(figure, name, source)

    @rank_zero_only
    def _write_tables(self, trainer: Trainer, module: LightningModule) -> None:
        tables = ((name, rows) for _, name, rows in _of_owners("tables", trainer, module))
        for name, rows in _distinct(tables):
            log_table(trainer, name, rows)


@rank_zero_only
def log_figure(trainer: Trainer, name: str, figure: Figure) -> Path | None:
    """Writes one figure to `<run folder>/figures/<name>.png` and sends it to the trainer's loggers.

    Args:
        trainer: The trainer whose run it belongs to.
        name: Name of the figure; a `/` in it makes a folder.
        figure: Any matplotlib figure.

    Returns:
        The path of the file; `None` under `fast_dev_run`, which leaves no trace, and on ranks other than
        zero.
    """
    if leaves_no_trace(trainer):
        return None
    path = save_figure(figure, run_folder(trainer) / "figures" / f"{name}.png")
    for logger in trainer.loggers:
        _send(logger, f"figures/{name}", figure, path, trainer.global_step)
    return path


def _send(logger: Logger, key: str, figure: Figure, path: Path, step: int) -> None:
    if isinstance(logger, WandbLogger):
        logger.log_image(key=key, images=[str(path)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(key, figure, global_step=step, close=False)


def _figure_function(figure: str | FigureFunction) -> FigureFunction:
    function = figure if callable(figure) else _imported(figure)
    try:
        signature(function).bind(None, None)
    except TypeError as error:
        raise MisconfigurationException(
            f"figures: {figure!r} must take two arguments, a trainer and its module ({error})"
        ) from error
    except ValueError:  # of some functions in C nobody knows
        pass
    return function


def _imported(figure: str) -> FigureFunction:
    module, _, name = figure.rpartition(".") if isinstance(figure, str) else ("", "", "")
    try:
        function: FigureFunction = getattr(import_module(module), name)
    except (ValueError, ImportError, AttributeError) as error:
        raise MisconfigurationException(
            f"figures: {figure!r} is neither a function nor an import path like 'package.module.function' "
            f"({error})"
        ) from error
    if not callable(function):
        raise MisconfigurationException(f"figures: {figure!r} is a {type(function).__name__}, not a function")
    return function


def _checked(figure: Any, name: str, source: str) -> Figure:
    from matplotlib.figure import Figure

    if not isinstance(figure, Figure):
        raise TypeError(f"{source} must give a matplotlib Figure for {name!r}, got {type(figure).__name__}")
    return figure


def _of_owners(kind: str, trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, str, Any]]:
    """What callbacks and module give by their method of that name: source, name and thing."""
    for owner in (*callbacks_of(trainer), module):
        method = getattr(owner, kind, None)
        if callable(method):
            yield from ((f"{type(owner).__name__}.{kind}", name, thing) for name, thing in method().items())


def _distinct(named: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """Counts up names that occur again, so that no figure or table overwrites another."""
    seen: Counter[str] = Counter()
    for name, thing in named:
        seen[name] += 1
        yield (name if seen[name] == 1 else f"{name}_{seen[name]}"), thing
