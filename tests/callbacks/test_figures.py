"""FigureLogger, log_figure and the figure style, on real trainers."""

import os
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread

from lightning_plasticity.callbacks.figures import FigureLogger, log_figure
from lightning_plasticity.figures import BLUE, OKABE_ITO, colors, new_figure, plot_spread, save_figure


def steps(trainer, module):
    figure = new_figure(xlabel="run", ylabel="optimizer steps")
    figure.axes[0].bar(["this one"], [trainer.global_step])
    return figure


class DrawingModel(BoringModel):
    def figures(self):
        return {"weights": new_figure(title="weights")}


class DrawingCallback(Callback):
    def __init__(self, name):
        self.name = name

    @property
    def state_key(self):
        return self.name

    def figures(self):
        return {self.name: new_figure(title=self.name), "shared": new_figure()}


class FakeWandb(WandbLogger):
    """The real logger's interface, without a run behind it."""

    def __init__(self, save_dir):
        super().__init__(save_dir=save_dir, project="project", version="run1", mode="offline")
        self.images = []
        self.tables = []

    @property
    def experiment(self):
        return None

    def log_image(self, key, images, step=None):
        self.images.append((key, images, step))

    def log_table(self, key, columns, data, step=None):
        self.tables.append((key, columns, data, step))

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        pass

    def log_graph(self, model):
        pass

    def finalize(self, status):
        pass


class FakeTensorBoard(TensorBoardLogger):
    class Writer:
        def __init__(self):
            self.figures = []

        def add_figure(self, tag, figure, global_step, close):
            self.figures.append((tag, figure, global_step, close))

    def __init__(self, save_dir):
        Logger.__init__(self)
        self._save_dir = str(save_dir)
        self.writer = self.Writer()

    save_dir = property(lambda self: self._save_dir)
    log_dir = property(lambda self: f"{self._save_dir}/tensorboard")
    experiment = property(lambda self: self.writer)
    name = property(lambda self: "tensorboard")
    version = property(lambda self: 0)

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        pass

    def log_graph(self, *args, **kwargs):
        pass

    def save(self):
        pass

    def finalize(self, status):
        pass


def fit(callbacks, logger=False, model=None, **trainer):
    options = {"max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 1, "accelerator": "cpu"}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(callbacks=callbacks, logger=logger, **options | trainer)
    trainer.fit(model or BoringModel())
    return trainer


def test_figures_of_functions_callbacks_and_module_lie_beside_the_metrics(capsys):
    logger = CSVLogger("logs", name="run")
    fit([FigureLogger([steps]), DrawingCallback("masks")], logger, DrawingModel())
    folder = Path(logger.log_dir, "figures")
    assert {path.name for path in folder.iterdir()} == {"steps.png", "masks.png", "shared.png", "weights.png"}
    assert Path(logger.log_dir, "metrics.csv").parent == folder.parent
    height, width, _ = imread(folder / "steps.png").shape
    assert width >= 800
    assert height >= 400
    assert f"4 figures in {folder}: steps.png" in capsys.readouterr().out


def test_a_name_that_occurs_twice_overwrites_nothing():
    logger = CSVLogger("logs", name="run")
    fit([FigureLogger(), DrawingCallback("first"), DrawingCallback("second")], logger)
    names = {path.name for path in Path(logger.log_dir, "figures").iterdir()}
    assert names == {"first.png", "shared.png", "second.png", "shared_2.png"}


def test_figures_go_to_wandb_as_images_and_to_tensorboard_as_figures(tmp_path):
    wandb, tensorboard, csv = FakeWandb(tmp_path), FakeTensorBoard(tmp_path), CSVLogger(tmp_path, name="csv")
    fit([FigureLogger([steps])], [wandb, tensorboard, csv])
    path = tmp_path / "tensorboard" / "figures" / "steps.png"  # the first logger that has a folder of its own
    assert wandb.images == [("figures/steps", [str(path)], 6)]
    ((tag, figure, step, close),) = tensorboard.writer.figures
    assert (tag, step, close) == ("figures/steps", 6, False)
    assert figure.axes[0].get_ylabel() == "optimizer steps"
    assert path.is_file()


class Tabulating(DrawingCallback):
    def tables(self):
        return {"counts": [{"layer": self.name, "size": 3}, {"layer": "b", "size": 5}], "none": []}


def test_tables_are_files_beside_the_metrics_and_go_to_wandb(tmp_path):
    wandb, csv = FakeWandb(tmp_path), CSVLogger(tmp_path, name="csv")
    fit([FigureLogger(), Tabulating("a"), Tabulating("c")], [wandb, csv])
    folder = Path(csv.log_dir, "tables")
    assert (folder / "counts.csv").read_text().split() == ["layer,size", "a,3", "b,5"]
    assert (folder / "counts_2.csv").read_text().split() == ["layer,size", "c,3", "b,5"]
    assert wandb.tables == [
        ("tables/counts", ["layer", "size"], [["a", 3], ["b", 5]], 6),
        ("tables/counts_2", ["layer", "size"], [["c", 3], ["b", 5]], 6),
    ]
    assert len(list(folder.iterdir())) == 2, "a table without rows is left out"


def test_figures_lie_beside_the_checkpoints_when_wandb_is_the_only_logger(tmp_path):
    fit([FigureLogger([steps])], FakeWandb(tmp_path))
    assert (tmp_path / "project" / "run1" / "figures" / "steps.png").is_file()


def test_figures_lie_in_the_default_folder_without_a_logger(tmp_path):
    fit([FigureLogger([steps])], logger=False, default_root_dir=tmp_path / "root")
    assert (tmp_path / "root" / "figures" / "steps.png").is_file()


def test_every_n_epochs_writes_during_the_run(tmp_path):
    wandb = FakeWandb(tmp_path)
    fit([FigureLogger([steps], every_n_epochs=2)], wandb, max_epochs=5)
    assert [step for _, _, step in wandb.images] == [6, 12, 15]


def test_fast_dev_run_draws_but_leaves_no_trace(tmp_path):
    drawn = []

    def draw(trainer, module):
        drawn.append(1)
        return new_figure()

    fit([FigureLogger([draw]), Tabulating("a")], fast_dev_run=True, logger=True)
    assert drawn == [1]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_import_paths_resolve_and_name_the_figure(tmp_path, monkeypatch):
    source = (
        "from lightning_plasticity.figures import new_figure\ndef loss(trainer, module): return new_figure()"
    )
    (tmp_path / "plots_of_a_user.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    fit([FigureLogger(["plots_of_a_user.loss"])], logger=False, default_root_dir=tmp_path)
    assert (tmp_path / "figures" / "loss.png").is_file()


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        (["no_such_package_anywhere.plot"], "no_such_package_anywhere"),
        (["os.no_such_function"], "no_such_function"),
        (["just_a_word"], "package.module.function"),
        (["os.sep"], "not a function"),
        (["math.sqrt"], "'math.sqrt' must take two arguments, a trainer and its module"),
        ([lambda trainer: None], "must take two arguments"),
        ([3], "neither a function nor an import path"),
        ("os.getcwd", r"\['os.getcwd'\]"),
    ],
)
def test_wrong_figures_raise_at_construction(figures, message):
    with pytest.raises(MisconfigurationException, match=message):
        FigureLogger(figures)


@pytest.mark.parametrize("epochs", [0, -1])
def test_wrong_interval_raises_at_construction(epochs):
    with pytest.raises(MisconfigurationException, match=f"every_n_epochs={epochs}"):
        FigureLogger(every_n_epochs=epochs)


def test_something_that_is_no_figure_is_an_error_that_names_its_source():
    with pytest.raises(TypeError, match=r"_getcwd must give a matplotlib Figure .*, got str"):
        fit([FigureLogger([_getcwd])])


def _getcwd(trainer, module):
    return os.getcwd()


def test_a_remote_folder_is_an_error_that_says_what_to_do():
    trainer = Trainer(logger=False, accelerator="cpu", default_root_dir="memory://somewhere")
    with pytest.raises(MisconfigurationException, match=r"memory://somewhere.*CSVLogger"):
        log_figure(trainer, "name", new_figure())
    with pytest.raises(MisconfigurationException, match=r"memory://somewhere.*CSVLogger"):
        FigureLogger().setup(trainer, BoringModel(), "fit")


def test_missing_matplotlib_is_an_error_before_the_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    trained = []
    model = BoringModel()
    monkeypatch.setattr(model, "on_train_start", lambda: trained.append(1))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-plasticity\[recipes\]'"):
        fit([FigureLogger()], model=model)
    assert trained == []


@pytest.mark.slow
def test_a_real_offline_wandb_run_holds_the_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, project="figures", version="run1")
    fit([FigureLogger([steps])], logger)
    logger.experiment.finish()
    (image,) = tmp_path.glob("wandb/offline-run-*/files/media/images/figures/steps_*.png")
    written = tmp_path / "figures" / "run1" / "figures" / "steps.png"
    assert image.read_bytes() == written.read_bytes()


def test_new_figure_is_labelled_and_in_the_palette():
    figure = new_figure(2, 2, title="all", xlabel="epoch", ylabel="accuracy (%)", sharex=True)
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "epoch", "epoch"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy (%)", "", "accuracy (%)", ""]
    drawn = [figure.axes[0].plot([0, 1], [0, i])[0].get_color() for i in range(8)]
    assert drawn == list(OKABE_ITO)


def test_style_and_global_state_of_matplotlib_are_left_alone():
    before = dict(matplotlib.rcParams)
    save_figure(new_figure(), "figure.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("shape", [(0, 1), (1, 0), (-1, 2)])
def test_a_figure_without_panels_is_an_error(shape):
    with pytest.raises(ValueError, match=f"rows={shape[0]}, cols={shape[1]}"):
        new_figure(*shape)


def test_plot_spread_draws_the_mean_and_a_band_of_one_colour():
    (axes,) = new_figure().axes
    plot_spread(axes, [0, 1, 2], np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.5, 1.0]), label="GraNet")
    plot_spread(axes, [0, 1, 2], [1, 1, 1], [0, 0, 0], label="dense")
    first, second = axes.lines
    np.testing.assert_array_equal(first.get_ydata(), [1, 2, 3])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.5, 4.0)
    assert first.get_marker() != second.get_marker()
    assert first.get_color() != second.get_color()


def test_save_figure_makes_folders_and_takes_the_format_from_the_ending(tmp_path):
    assert save_figure(new_figure(), tmp_path / "a" / "b" / "figure.svg").read_text().startswith("<?xml")
    with pytest.raises(ValueError, match="nonsense"):
        save_figure(new_figure(), tmp_path / "figure.nonsense")


def test_colors_are_stable_and_go_round():
    many = colors(str(i) for i in range(10))
    assert many["0"] == BLUE == many["8"]
    assert len(many) == 10
