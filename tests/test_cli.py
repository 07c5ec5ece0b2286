"""PlasticityCLI on tiny real trainings, in this process but for one interrupted child."""

import contextlib
import csv
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from argparse import ArgumentError
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core import rank_zero

from lightning_plasticity import cli, runs
from lightning_plasticity.callbacks.figures import FigureLogger
from lightning_plasticity.cli import PlasticityCLI, run_function
from lightning_plasticity.mistakes import require_at_least
from lightning_plasticity.runs import hush_others, reserve_folder, run_folder, run_loggers, wandb_mode

QUICK = {
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "log_every_n_steps": 1,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Net(BoringModel):
    """A linear layer.

    Args:
        lr: Learning rate.
        fail: Whether the value is refused.
    """

    def __init__(self, lr: float = 0.1, fail: bool = False):
        super().__init__()
        if fail:
            raise ValueError("fail=True is not possible: leave it out")
        self.save_hyperparameters()

    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        self.log("loss", output["loss"])
        self.log("draw", torch.rand(()))
        return output


class Interrupt(Callback):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, at_step: int = 1):
        self.at_step = at_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.at_step:
            raise KeyboardInterrupt


@pytest.fixture
def recipe(tmp_path):
    """A recipe script with its YAML beside it."""
    script = tmp_path / "recipes" / "toy.py"
    script.parent.mkdir()
    script.write_text('"""A toy that trains a line."""\n')
    script.with_suffix(".yaml").write_text(yaml.safe_dump({"trainer": QUICK, "model": {"lr": 0.5}}))
    return script


def run(recipe, *args, **kwargs):
    return PlasticityCLI(Net, BoringDataModule, script=recipe, args=list(args), **kwargs)


def test_a_run_has_one_folder_with_its_metrics_configuration_and_checkpoint(recipe, capsys):
    cli = run(recipe, "fit", "--model.lr=0.25")
    folder = Path("runs/toy/version_0")
    assert run_folder(cli.trainer) == folder
    assert f"This run's files: {folder}" in capsys.readouterr().out
    with (folder / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["loss"]] == ["0", "1"]
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"] == {"lr": 0.25, "fail": False}  # command line over the YAML beside the script
    assert saved["trainer"]["max_epochs"] == 1
    assert saved["seed_everything"] == 0
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_the_saved_configuration_repeats_the_run(recipe):
    run(recipe, "fit", "--model.lr=0.25", "--seed_everything=3")
    run(recipe, "fit", "--config=runs/toy/version_0/config.yaml")
    first, second = (Path(f"runs/toy/version_{n}/metrics.csv").read_text() for n in range(2))
    assert first == second
    run(recipe, "fit", "--model.lr=0.25", "--seed_everything=4")
    assert Path("runs/toy/version_2/metrics.csv").read_text() != first


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")  # Lightning's, of metrics and checkpoints
def test_trials_in_one_folder_of_any_logger_keep_every_configuration(recipe, tmp_path):
    same = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": "", "version": "all"}}
    for lr in (0.1, 0.2, 0.3):
        run(recipe, "fit", f"--model.lr={lr}", f"--trainer.logger={json.dumps(same)}")
    names = ["config.yaml", "config_1.yaml", "config_2.yaml"]
    saved = [yaml.safe_load((tmp_path / "all" / name).read_text()) for name in names]
    assert [config["model"]["lr"] for config in saved] == [0.1, 0.2, 0.3]


def test_an_explicit_logger_is_respected(recipe):
    cli = run(recipe, "fit", "--trainer.logger=false")
    assert cli.trainer.loggers == []
    assert not Path("runs").exists()
    with pytest.raises(MisconfigurationException, match=r"wandb=True adds to the default loggers"):
        run(recipe, "fit", "--trainer.logger=false", "--wandb=true")


def test_default_root_dir_moves_the_runs(recipe, tmp_path):
    cli = run(recipe, "validate", f"--trainer.default_root_dir={tmp_path / 'elsewhere'}")
    assert run_folder(cli.trainer) == tmp_path / "elsewhere" / "toy" / "version_0"


def test_fast_dev_run_leaves_no_trace(recipe, capsys):
    before = set(Path().rglob("*"))
    run(recipe, "fit", "--trainer.fast_dev_run=true", "--wandb=true")
    assert set(Path().rglob("*")) == before
    assert "This run's files" not in capsys.readouterr().out


def test_a_preset_appends_to_the_callbacks_of_the_yaml_beside_the_script(recipe, repository):
    own = {"callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]}
    recipe.with_suffix(".yaml").write_text(yaml.safe_dump({"trainer": QUICK | own}))
    cli = run(recipe, "fit", f"--config={repository / 'callbacks' / 'figures.yaml'}")
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert names.index("LearningRateMonitor") < names.index("FigureLogger")


def test_the_preset_works_in_a_lightning_cli_that_knows_nothing_of_us(repository, tmp_path):
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump({"trainer": {**QUICK, "logger": False}}))
    preset = repository / "callbacks" / "figures.yaml"
    args = ["fit", f"--config={tmp_path / 'theirs.yaml'}", f"--config={preset}"]
    args += ["--trainer.callbacks.every_n_epochs=2"]
    cli = LightningCLI(BoringModel, BoringDataModule, args=args)
    (figures,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, FigureLogger))
    assert figures.every_n_epochs == 2


def test_the_last_checkpoint_is_kept_unless_the_user_chose_otherwise(recipe):
    default = run(recipe, "fit").trainer.checkpoint_callback
    assert (default.save_last, default.save_on_exception) == (True, True)
    callback = {"class_path": "ModelCheckpoint", "init_args": {"save_top_k": 0}}
    own = run(recipe, "fit", f"--trainer.callbacks={json.dumps([callback])}").trainer.checkpoint_callbacks
    assert [(callback.save_top_k, callback.save_last) for callback in own] == [(0, None)]
    assert run(recipe, "fit", "--trainer.enable_checkpointing=false").trainer.checkpoint_callbacks == []


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the resumed run has its own folder
@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before the epoch ended")
def test_an_interrupted_fit_says_how_to_resume_and_that_works(recipe, capsys):
    defaults = {"callbacks": [Interrupt(at_step=3)]}
    with pytest.raises(SystemExit):
        run(recipe, "fit", "--trainer.max_epochs=3", trainer_defaults=defaults)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "To resume" in line)
    config, checkpoint = "runs/toy/version_0/config.yaml", "runs/toy/version_0/checkpoints/last.ckpt"
    assert line == f"Interrupted. To resume: python {recipe} fit --config={config} --ckpt_path={checkpoint}"
    cli = run(recipe, *line.split(str(recipe))[1].split())
    assert cli.trainer.global_step == 6


def test_an_interrupt_before_any_checkpoint_says_so(recipe, capsys):
    with pytest.raises(SystemExit):
        run(
            recipe,
            "fit",
            "--trainer.enable_checkpointing=false",
            trainer_defaults={"callbacks": [Interrupt()]},
        )
    assert "Interrupted. There is no checkpoint yet" in capsys.readouterr().out


def compare(seeds: int, names: list[str] | None = None, ckpt_path: str | None = None):
    """Compares methods.

    Args:
        seeds: How many seeds.
        names: Which methods.
        ckpt_path: A checkpoint.
    """
    return seeds, names, ckpt_path


def test_a_function_becomes_a_subcommand(recipe, tmp_path):
    (tmp_path / "compare.yaml").write_text("names: [SET, RigL]")
    cli = run(recipe, "compare", "--config=compare.yaml", "--seeds=3", commands={"compare": compare})
    assert cli.result == (3, ["SET", "RigL"], None)
    assert not hasattr(cli, "trainer")


def test_a_commands_checkpoint_is_its_own_affair(recipe):
    run(recipe, "fit")
    checkpoint = (
        "runs/toy/version_0/checkpoints/last.ckpt"  # its hyper_parameters are no arguments of the command
    )
    args = ["compare", "--seeds=1", f"--ckpt_path={checkpoint}"]
    assert run(recipe, *args, commands={"compare": compare}).result[2] == checkpoint


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--help"], ["A toy that trains a line", "Compares methods.", "fit"]),
        (["compare", "--help"], ["How many seeds. (required, type: int)", "Which methods."]),
        (["fit", "--help"], ["A linear layer", "Learning rate. (type: float, default: 0.5)", "--wandb"]),
    ],
)
def test_the_help_reads_well(recipe, capsys, args, expected):
    with pytest.raises(SystemExit) as stopped:
        run(recipe, *args, commands={"compare": compare})
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in expected:
        assert words in text


def test_wrong_arguments_of_a_command_end_in_one_line(recipe, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(recipe, "compare", "--seeds=many", commands={"compare": compare})
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ": error: seeds: expected int, given 'many'; for all options: python " in line
    assert line.endswith(" compare --help")


def test_wrong_settings_of_the_recipe_itself_raise(recipe):
    with pytest.raises(MisconfigurationException, match=r"commands=\['fit'\]"):
        run(recipe, "fit", commands={"fit": compare})
    with pytest.raises(MisconfigurationException, match="script=__file__"):
        PlasticityCLI(Net, BoringDataModule, args=["fit"])


def test_without_run_the_yaml_beside_the_script_counts_too(recipe):
    cli = run(recipe, run=False)
    assert cli.config["model"]["lr"] == 0.5
    assert cli.trainer.max_epochs == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--model.fail=true"], "fail=True is not possible"), (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt")],
)
def test_a_users_mistake_on_the_command_line_ends_in_one_line(recipe, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", [str(recipe), "fit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        PlasticityCLI(Net, BoringDataModule, script=recipe)
    assert stopped.value.code.startswith("toy.py: error: ")
    assert message in stopped.value.code
    assert "\n" not in stopped.value.code


class FailsInFit(Net):
    """Raises in `training_step`, as a user's own model may."""

    def training_step(self, batch, batch_idx):
        raise ValueError("my own mistake")


def from_shell(monkeypatch, recipe, *arguments, model=Net):
    """What the command line ends with."""
    monkeypatch.setattr(sys, "argv", [str(recipe), *arguments])
    with pytest.raises(SystemExit) as stopped:
        PlasticityCLI(model, BoringDataModule, script=recipe)
    return stopped.value.code


@pytest.mark.parametrize("kind", ["text", "folder", "archive"])
def test_what_is_no_checkpoint_of_this_model_is_said_to_be_none(recipe, monkeypatch, tmp_path, kind):
    path = tmp_path / kind
    if kind == "text":
        path.write_text("no checkpoint")
    elif kind == "folder":
        path.mkdir()
    else:
        torch.save({"hyper_parameters": {"width": 3}, "state_dict": {}}, path)
    line = from_shell(monkeypatch, recipe, "fit", f"--ckpt_path={path}")
    reason = (
        "of this recipe's model: " if kind == "archive" else "checkpoint: a run's last one is <run>/checkp"
    )
    assert line.startswith(f"toy.py: error: ckpt_path={path} is no")
    assert reason in line
    assert "\n" not in line


def test_a_checkpoints_settings_win_and_are_told(recipe, capsys):
    run(recipe, "fit", "--model.lr=0.25")
    last = "runs/toy/version_0/checkpoints/last.ckpt"
    capsys.readouterr()
    cli = run(recipe, "fit", "--model.lr=0.5", f"--ckpt_path={last}", "--trainer.max_epochs=2")
    assert "As in the checkpoint: model.lr=0.25, not 0.5\n" in capsys.readouterr().out
    assert cli.model.hparams.lr == 0.25
    run(recipe, "fit", "--model.lr=0.25", f"--ckpt_path={last}", "--trainer.max_epochs=3")
    assert "As in the checkpoint" not in capsys.readouterr().out


def test_a_wrong_seed_and_two_callbacks_of_one_kind(recipe, monkeypatch):
    assert "-1 is not in bounds" in from_shell(monkeypatch, recipe, "fit", "--seed_everything=-1")
    twice = ["--trainer.callbacks+=GraNet"] * 2
    assert "more than one stateful callback of type `GraNet`" in from_shell(
        monkeypatch, recipe, "fit", *twice
    )


def test_a_full_disk_ends_in_one_line(recipe, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "last.ckpt")

    monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", full)
    said = "toy.py: error: [Errno 28] No space left on device: 'last.ckpt' (python -X dev shows where)"
    assert from_shell(monkeypatch, recipe, "fit") == said


def test_a_folder_that_is_not_writable_says_where_to_go(recipe, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "runs")

    monkeypatch.setattr("lightning_plasticity.cli.run_loggers", refuse)
    line = from_shell(monkeypatch, recipe, "fit")
    assert "denied: 'runs' (run it in a folder that you may write to)" in line


def test_only_this_packages_own_words_hide_where_an_error_came_from(recipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(recipe), "fit"])
    with pytest.raises(ValueError, match="my own mistake"):
        PlasticityCLI(FailsInFit, BoringDataModule, script=recipe)

    def refuse(*_, **__):
        require_at_least(3, devices=2)

    monkeypatch.setattr(Net, "on_fit_start", refuse)
    assert from_shell(monkeypatch, recipe, "fit") == "toy.py: error: devices=2 must be 3 or more"
    assert "Interrupted" not in capsys.readouterr().out


def test_an_error_amid_a_run_says_how_to_go_on(recipe, monkeypatch, capsys):
    monkeypatch.setattr(Net, "on_train_epoch_end", lambda self: Path("nowhere").read_text())
    line = from_shell(monkeypatch, recipe, "fit")
    assert line == "toy.py: error: [Errno 2] No such file or directory: 'nowhere' (python -X dev shows where)"
    assert "Failed. To resume: python" in capsys.readouterr().out


@pytest.mark.usefixtures("_hears_interrupts")
def test_workers_that_end_with_a_ctrl_c_are_no_failure(recipe, monkeypatch, capsys):
    """They hear the signal too, so that their loader fails before the next batch comes."""

    def interrupted(self, *_):
        signal.raise_signal(signal.SIGINT)

    def failed(self, *_):
        raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly")

    monkeypatch.setattr(Net, "on_before_zero_grad", interrupted)
    monkeypatch.setattr(Net, "on_train_batch_end", failed)
    assert from_shell(monkeypatch, recipe, "fit") == 1
    told = capsys.readouterr()
    assert "Interrupted. To resume: python" in told.out
    assert "Stopping after this batch; once more to stop at once." in told.err


def test_pythons_development_mode_shows_everything(tmp_path):
    code = "from lightning_plasticity.mistakes import *\nwith one_line_errors(OSError): open('nowhere')"
    command = [sys.executable, "-X", "dev", "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr.startswith("Traceback")


def test_jsonargparses_debugging_shows_everything(recipe, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    monkeypatch.setattr(sys, "argv", [str(recipe), "fit", "--model.rate=3"])
    with pytest.raises(ArgumentError):
        PlasticityCLI(Net, BoringDataModule, script=recipe)


def test_the_same_mistake_from_python_raises_itself(recipe):
    with pytest.raises(ValueError, match="fail=True is not possible"):
        run(recipe, "fit", "--model.fail=true")


def test_a_missing_extra_names_the_command_that_installs_it(recipe, monkeypatch):
    monkeypatch.setattr("lightning_plasticity.parsing.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", [str(recipe), "fit"])
    with pytest.raises(SystemExit, match=r"toy.py: error: .*pip install 'lightning-plasticity\[recipes\]'"):
        PlasticityCLI(Net, BoringDataModule, script=recipe)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ft"], "invalid choice: 'ft' (choose from "),
        (["fit", "--model.rate=3"], "unrecognized arguments: --model.rate=3;"),
        (["fit", "--trainer.maxepochs=3"], "similar: --trainer.max_epochs"),
        (["fit", "--model.lr=fast"], "model.lr: expected float, given 'fast'"),
        (["fit", "--trainer.callbacks+=GraNett"], "expected a class by name or import path, given 'GraNett'"),
        (
            ["fit", "--trainer.callbacks=GraNet", "--trainer.callbacks.sparsity=high"],
            "expected float or Mapping",
        ),
        (["fit", "--config=nowhere.yaml"], "config: File does not exist"),
        (["fit", "--config=torn.yaml"], "error: torn.yaml: Problems parsing config: while parsing"),
        (
            ["fit", "--config=known.yaml", "--config=unknown.yaml"],
            "error: unknown.yaml: Subcommand 'fit'",
        ),
        (["fit", "--config=known.yaml", "--model.lrr=3"], "toy.py: error: unrecognized arguments"),
        (["fit", "--config=slow.yaml"], "error: slow.yaml: model.lr: expected float, given 'slow'"),
    ],
)
def test_an_option_that_is_wrong_ends_in_one_line(recipe, monkeypatch, capsys, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("torn.yaml").write_text("model: {lr: 3")
    Path("known.yaml").write_text("model: {lr: 3}")
    Path("unknown.yaml").write_text("model: {lrr: 3}")
    Path("slow.yaml").write_text("model: {lr: slow}")
    monkeypatch.setattr(sys, "argv", [str(recipe), *arguments])
    with pytest.raises(SystemExit) as stopped:
        PlasticityCLI(Net, BoringDataModule, script=recipe)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    command = f" {arguments[0]}" if arguments[0] == "fit" else ""
    assert line.endswith(f"; for all options: python {recipe}{command} --help")


class Linked(PlasticityCLI):
    """The seed of the data, whose class is chosen, is a link's."""

    def add_arguments_to_parser(self, parser):
        super().add_arguments_to_parser(parser)
        parser.link_arguments("model.lr", "data.init_args.size")
        parser.link_arguments("seed_everything", "model.size")


class Sized(BoringDataModule):
    def __init__(self, size: float = 1):
        super().__init__()


class SizedNet(Net):
    def __init__(self, lr: float = 0.1, size: bool | int | None = 1):
        super().__init__(lr)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--data.size=3", 'Linked "data.size" must be given via "model.lr"'),
        ("--data.init_args.size=3", 'Linked "data.init_args.size" must be given via "model.lr"'),
        ("--model.size=3", 'Linked "model.size" must be given via "seed_everything"'),
    ],
)
def test_what_a_link_sets_cannot_be_given(recipe, monkeypatch, capsys, argument, said):
    monkeypatch.setattr(sys, "argv", [str(recipe), "fit", "--data=Sized", argument])
    with pytest.raises(SystemExit):
        Linked(SizedNet, script=recipe, datamodule_class=Sized, subclass_mode_data=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"toy.py: error: {said}; for all options: python")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {lr: 3", "Problems parsing config: while"),
        ("model: {lrr: 3}", "Subcommand 'fit' does not accept"),
    ],
)
def test_a_wrong_file_of_defaults_is_named(recipe, monkeypatch, capsys, text, said):
    recipe.with_suffix(".yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", [str(recipe), "fit"])
    with pytest.raises(SystemExit):
        PlasticityCLI(Net, BoringDataModule, script=recipe)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"toy.py: error: {recipe.with_suffix('.yaml')}: {said}")


def test_a_recipe_that_is_one_function(monkeypatch, capsys, tmp_path):
    def double(size: int, refuse: bool = False) -> int:
        """Double a size."""
        if refuse:
            raise ValueError(f"refuse={refuse} is\nnot for {size}")
        return 2 * size

    script = tmp_path / "double.py"
    script.with_suffix(".yaml").write_text("size: 4")
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert run_function(double, script) == 8
    monkeypatch.setattr(sys, "argv", [str(script), "--refuse=true"])
    with pytest.raises(SystemExit, match=r"^double\.py: error: refuse=True is not for 4$"):
        run_function(double, script)
    monkeypatch.setattr(sys, "argv", [str(script), "--sizes=3"])
    with pytest.raises(SystemExit):
        run_function(double, script)
    said = "double.py: error: unrecognized arguments: --sizes=3; similar: --size; for all options: python"
    assert capsys.readouterr().err == f"{said} {script} --help\n"


def test_what_nobody_here_can_mend_is_left_out(caplog):
    hush_others()
    hush_others()
    warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use another", FutureWarning, stacklevel=1)
    with caplog.at_level(logging.INFO, logger=rank_zero.log.name):
        rank_zero_info("💡 Tip: For seamless cloud logging and experiment tracking, try something")
        rank_zero_info("Tip: everything else is told")
    assert [record.getMessage() for record in caplog.records] == ["Tip: everything else is told"]
    with pytest.raises(FutureWarning):
        warnings.warn("anything else is deprecated", FutureWarning, stacklevel=1)


def test_runs_that_start_together_get_a_folder_each(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: reserve_folder(tmp_path / "runs"), range(64)))
    assert sorted(int(folder.name.removeprefix("version_")) for folder in folders) == list(range(64))


def test_a_taken_run_id_counts_up_and_an_old_run_is_never_reused(tmp_path):
    assert [reserve_folder(tmp_path, "abc").name for _ in range(3)] == ["abc", "abc_1", "abc_2"]
    (tmp_path / "version_7").mkdir()
    (tmp_path / "version_old").mkdir()
    assert reserve_folder(tmp_path).name == "version_8"


def test_under_an_agent_the_run_id_names_the_folder_and_the_agent_names_the_run(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    csv_logger, wandb_logger = run_loggers(tmp_path, "toy")
    assert Path(csv_logger.log_dir) == tmp_path / "toy" / "abc123"
    assert wandb_logger._wandb_init["name"] is None
    assert wandb_logger._wandb_init["group"] == "toy"


def test_checkpoints_become_artifacts_on_request(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert [run_loggers(tmp_path, "toy", wandb=wish)[1]._log_model for wish in ("artifacts", True)] == [
        True,
        False,
    ]


def test_other_ranks_reserve_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero_only.rank", 1)
    assert [type(logger) for logger in run_loggers(tmp_path, "toy")] == [CSVLogger]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "0" * 40}, "online"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "token"}, "online"),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "offline"}, "offline"),
    ],
)
def test_wandb_is_online_only_with_a_login(monkeypatch, environment, mode):
    monkeypatch.delenv("WANDB_MODE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode() == mode


def test_a_login_in_netrc_counts_for_its_server_only(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine wandb.example\n  login user\n  password word\n")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert wandb_mode() == "online"


def test_online_without_a_login_is_an_error_and_not_a_prompt(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(MisconfigurationException, match=r"wandb login"):
        wandb_mode()


def test_wandb_is_left_out_on_request_when_disabled_and_when_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert [type(logger) for logger in run_loggers(tmp_path, "toy")] == [CSVLogger, WandbLogger]
    assert [type(logger) for logger in run_loggers(tmp_path, "toy", wandb=False)] == [CSVLogger]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert [type(logger) for logger in run_loggers(tmp_path, "toy")] == [CSVLogger]
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    assert [type(logger) for logger in run_loggers(tmp_path, "toy")] == [CSVLogger]
    with pytest.raises(MisconfigurationException, match=r"pip install 'lightning-plasticity\[recipes\]'"):
        run_loggers(tmp_path, "toy", wandb=True)


CHILD = """
'''A recipe that never ends by itself.'''
import sys
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning_plasticity.cli import PlasticityCLI

class Net(BoringModel):
    def on_train_epoch_end(self):
        if self.trainer.is_global_zero:
            print("epoch", self.current_epoch, flush=True)

if __name__ == "__main__":
    PlasticityCLI(Net, BoringDataModule, script=__file__)
"""


def hear_interrupts():
    """A process started in the background of a shell is deaf to Ctrl-C, and so are its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop_an_endless_recipe(folder, sent, text=CHILD, **trainer):
    """Starts the recipe, sends all its processes a signal in the fourth epoch; its checkpoint, loaded."""
    (folder / "endless.py").write_text(text)
    (folder / "endless.yaml").write_text(yaml.safe_dump({"trainer": QUICK | {"max_epochs": -1} | trainer}))
    environment = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "endless.py", "fit"]
    options = {"stdout": subprocess.PIPE, "env": environment, "text": True, "start_new_session": True}
    with subprocess.Popen(command, preexec_fn=hear_interrupts, **options) as child:
        try:
            assert any(line.startswith("epoch 3") for line in child.stdout)
            os.killpg(child.pid, sent)
            output, _ = child.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    (hint,) = (line for line in output.splitlines() if "To resume: python" in line)
    # which is not last.ckpt if the signal came between two files of one checkpoint
    return torch.load(folder / hint.partition("--ckpt_path=")[2], weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_real_signal_leaves_a_checkpoint_and_the_offline_wandb_run(tmp_path, sent):
    checkpoint = stop_an_endless_recipe(tmp_path, sent)
    assert checkpoint["global_step"] >= 8
    folder = tmp_path / "runs" / "endless" / "version_0"
    assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == 1


SLOW_SECOND = CHILD.replace(
    "class Net(BoringModel):",
    """class Net(BoringModel):
    def on_before_backward(self, loss):
        if self.global_rank == 1:
            time.sleep(0.3)
""",
).replace("import sys", "import sys, time")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_stops_all_processes_after_the_same_batch(tmp_path, sent):
    """The first waits for the second inside a collective by then; each by itself they wait for ever."""
    checkpoint = stop_an_endless_recipe(tmp_path, sent, SLOW_SECOND, strategy="ddp", devices=2)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert checkpoint["global_step"] == progress["completed"] >= 8


def test_forked_processes_know_their_checkpoint_and_the_first_one_does_not(tmp_path):
    trainer = Trainer(devices=2, strategy="ddp_fork", default_root_dir=tmp_path, **QUICK, logger=False)
    assert cli._resume_hint(trainer, Path("toy.py")) == (
        f"The last checkpoint of an epoch, if there is one, is in {tmp_path / 'checkpoints'}."
    )


def test_a_wrong_value_for_a_command_ends_in_one_line(monkeypatch):
    def refuse(share: float = 0.5) -> None:
        """Refuse."""
        raise ValueError(f"share={share} must be below 1")

    monkeypatch.setattr(sys, "argv", ["recipe.py", "refuse", "--share=2"])
    with pytest.raises(SystemExit, match=r"recipe.py: error: share=2.0 must be below 1"):
        PlasticityCLI(BoringModel, name="boring", commands={"refuse": refuse})
