"""PlasticityCLI: a recipe in forty lines.

A :class:`~lightning.pytorch.cli.LightningCLI` that gives every run a folder of its own, with its metrics, its
configuration, its figures and its checkpoints, that adds Weights & Biases where it is installed, and that
takes subcommands which are plain functions. A recipe is a script with a YAML of the same name beside it::

    from lightning_plasticity.cli import PlasticityCLI

    def compare(seeds: int = 5) -> None:
        "Compares the methods over several seeds."

    if __name__ == "__main__":
        PlasticityCLI(ImageClassifier, ImageData, script=__file__, commands={"compare": compare})
"""

from __future__ import annotations

import ast
import shlex
import sys
from argparse import ArgumentError, Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_only

from lightning_plasticity.callbacks.interrupts import FinishBatch
from lightning_plasticity.callbacks.support import callbacks_of, leaves_no_trace
from lightning_plasticity.mistakes import USER_ERRORS, check_checkpoint, one_line, one_line_errors
from lightning_plasticity.parsing import RecipeParser, require_jsonargparse
from lightning_plasticity.parsing import run_function as run_function
from lightning_plasticity.runs import hush_others, run_folder, run_loggers


class PlasticityCLI(LightningCLI):
    """LightningCLI with a folder per run, loggers, a resume hint, and plain functions as subcommands.

    - **Folder**: `runs/<recipe>/version_<n>/`, or `runs/<recipe>/<run id>/` under a W&B agent. Runs that
      start at the same time never share one. `--trainer.default_root_dir` puts it elsewhere.
    - **Loggers**: a CSV logger always and, where wandb is installed, a W&B logger beside it. W&B stays
      offline unless a login or `WANDB_MODE` says otherwise, and never asks. `--wandb=false` leaves it out,
      `--wandb=artifacts` sends it the checkpoints, too. A
      `trainer.logger` of your own replaces both.
    - **Checkpoints**: unless a checkpoint callback is configured, the last one is kept, also after an
      interrupt. An interrupted fit says how to go on.
    - **Seed**: 0, so that a run can be repeated; `--seed_everything=1` for another.

    Args:
        model_class: The LightningModule, as in LightningCLI.
        datamodule_class: The LightningDataModule, as in LightningCLI.
        script: The recipe's own path, `__file__`; a YAML file of the same name beside it holds its defaults.
        name: Name of the recipe, by default the script's.
        commands: Further subcommands: name -> function. Its arguments are parsed by their type hints and
            documented by its docstring; its result is the CLI's `result`.
        **kwargs: Any other argument of LightningCLI.

    Raises:
        MisconfigurationException: If neither `script` nor `name` is given, or a command has the name of
            another.
        SystemExit: With one line of text, if a command line ends in an error that its user can mend.
    """

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        datamodule_class: type[LightningDataModule] | Callable[..., LightningDataModule] | None = None,
        *,
        script: str | Path | None = None,
        name: str | None = None,
        commands: Mapping[str, Callable[..., Any]] | None = None,
        args: ArgsType = None,
        **kwargs: Any,
    ) -> None:
        if not name and script is None:
            raise MisconfigurationException(
                "PlasticityCLI needs script=__file__ or name='...' for its folder"
            )
        taken = sorted(set(commands or ()) & set(self.subcommands()))
        if taken:
            raise MisconfigurationException(f"commands={taken} are LightningCLI's own: give them other names")
        self.recipe = name or Path(str(script)).stem
        self.script = None if script is None else Path(script)
        self.commands = dict(commands or {})
        self.result: Any = None
        kwargs.setdefault("seed_everything_default", 0)
        if "save_config_callback" not in kwargs:
            kwargs |= {
                "save_config_callback": SaveRunConfig,
                "save_config_kwargs": {"save_to_log_dir": False},
            }
        self._linked: dict[str, Any] = {}
        kwargs.setdefault("parser_class", partial(RecipeParser, commands=self.commands, linked=self._linked))
        kwargs["parser_kwargs"] = self._defaults_of_script(
            kwargs.get("parser_kwargs"), kwargs.get("run", True)
        )
        self._from_shell = args is None
        hush_others()
        with one_line_errors(*USER_ERRORS, active=self._from_shell):
            require_jsonargparse()
            try:
                super().__init__(model_class, datamodule_class, args=args, **kwargs)
                return
            except _CommandChosen as chosen:
                self.subcommand, arguments = chosen.command, chosen.arguments
            with one_line_errors(ValueError, active=self._from_shell):
                self.result = self.commands[self.subcommand](**arguments)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the command line; a command of the recipe's own ends the rest of LightningCLI here."""
        for word in sys.argv[1:] if args is None else args if isinstance(args, list) else ():
            name = str(word).partition("=")[0].removeprefix("--")
            if name in self._linked:
                parser.error(f'Linked "{name}" must be given via "{self._linked[name]}"')
        super().parse_arguments(parser, args)
        command = self.config.get("subcommand")
        if command in self.commands:
            arguments = parser.instantiate_classes(self.config)[command].as_dict()
            arguments.pop("config", None)
            raise _CommandChosen(command, arguments)

    def _parse_ckpt_path(self) -> None:
        """Says of a file that is no checkpoint, or of one of another model, what it is."""
        subcommand = self.config.get("subcommand")
        path = self.config[subcommand].get("ckpt_path") if subcommand else None
        check_checkpoint(path)
        given = self.config.clone()
        # its own line would not say that it is about the checkpoint
        exits, self.parser.exit_on_error = self.parser.exit_on_error, False
        try:
            super()._parse_ckpt_path()
        except ArgumentError as error:
            raise MisconfigurationException(
                f"ckpt_path={path} is not of this recipe's model: {one_line(str(error))}"
            ) from error
        finally:
            self.parser.exit_on_error = exits
        if subcommand and getattr(rank_zero_only, "rank", 0) == 0:
            for line in _differences(given[subcommand].get("model"), self.config[subcommand].get("model")):
                print(f"As in the checkpoint: {line}", flush=True)

    def _set_seed(self) -> None:
        with one_line_errors(ValueError, active=self._from_shell):
            super()._set_seed()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `--wandb`; call `super()` when overriding."""
        parser.add_argument(
            "--wandb",
            type=bool | Literal["auto", "artifacts"],
            default="auto",
            help="W&B logger beside the CSV logger: true, false, auto (where wandb is installed), or "
            "artifacts (with the checkpoints)",
        )

    def instantiate_classes(self) -> None:
        """Instantiates everything; here a ValueError is a wrong setting and ends a command line."""
        with one_line_errors(ValueError, active=self._from_shell):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the run's loggers and the checkpoint that an interrupted fit resumes from."""
        config = self._get(self.config_init, "trainer")
        if config.get("logger") is None or config.get("logger") is True:
            kwargs.setdefault("logger", self._run_loggers(config))
        elif (wish := self._get(self.config, "wandb")) in (True, "artifacts"):
            raise MisconfigurationException(
                f"wandb={wish} adds to the default loggers, but trainer.logger is set: "
                "put a WandbLogger there"
            )
        callbacks = kwargs.setdefault("callbacks", _as_list(config.get("callbacks")))
        keeps = config.get("enable_checkpointing") is not False and not config.get("fast_dev_run")
        if keeps and not _has_checkpoint(callbacks):
            callbacks.append(ModelCheckpoint(save_last=True, save_on_exception=True))
        self._interrupts = FinishBatch()
        callbacks.insert(0, self._interrupts)
        with one_line_errors(RuntimeError, active=self._from_shell):  # as of two callbacks of one state
            return super().instantiate_trainer(**kwargs)

    def fit(self, **arguments: Any) -> None:
        """Runs `trainer.fit` and says where the run's files are, or how to go on after an interrupt."""
        with one_line_errors(ValueError, active=self._from_shell, only_ours=True):
            try:
                self.trainer.fit(**arguments)
            except SystemExit:  # how Lightning ends on Ctrl-C and SIGTERM, once the checkpoint is saved
                self._print(f"Interrupted. {self._resume_hint()}")
                raise
            except Exception as error:
                if self._interrupts.asked:  # it came from what the Ctrl-C ended, such as a loader's workers
                    self._print(f"Interrupted. {self._resume_hint()}")
                    raise SystemExit(1) from error
                if _newest_checkpoint(self.trainer) is not None:
                    self._print(f"Failed. {self._resume_hint()}")
                raise
        self._print(f"This run's files: {run_folder(self.trainer)}")

    def _resume_hint(self) -> str:
        return _resume_hint(self.trainer, self.script or Path(sys.argv[0]))

    def _run_loggers(self, trainer_config: Mapping[str, Any]) -> Any:
        root = trainer_config.get("default_root_dir") or "runs"
        if trainer_config.get("fast_dev_run"):
            return CSVLogger(root, name=self.recipe)  # nothing is logged: no folder
        return run_loggers(root, self.recipe, wandb=self._get(self.config, "wandb"))

    def _print(self, line: str) -> None:
        if self.trainer.is_global_zero and not leaves_no_trace(self.trainer):
            print(line, flush=True)

    def _defaults_of_script(self, parser_kwargs: Mapping[str, Any] | None, run: bool) -> dict[str, Any]:
        merged = dict(parser_kwargs or {})
        if self.script is None:
            return merged
        merged.setdefault("description", ast.get_docstring(ast.parse(self.script.read_text())))
        files = {"default_config_files": [str(self.script.with_suffix(".yaml"))]}
        if not run:
            return {**files, **merged}
        return merged | {command: {**files, **merged.get(command, {})} for command in self.subcommands()}


class SaveRunConfig(SaveConfigCallback):
    """Saves a run's configuration in the run's folder and in its loggers, and never over another one.

    Lightning's own callback refuses to run a second time in a folder, such as the second trial of a sweep.
    """

    path: Path | None = None

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes `config.yaml`, or `config_1.yaml` and so on where that name is taken."""
        text = self.parser.dump(self.config, skip_none=False)
        self.path = _write_new(run_folder(trainer) / self.config_filename, text)
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # which has the file beside it
                logger.log_hyperparams(yaml.safe_load(text))


class _CommandChosen(Exception):
    """Leaves LightningCLI's constructor once the command line turns out to ask for a plain function."""

    def __init__(self, command: str, arguments: dict[str, Any]) -> None:
        super().__init__(command)
        self.command = command
        self.arguments = arguments


def _resume_hint(trainer: Trainer, script: Path) -> str:
    checkpoint = _newest_checkpoint(trainer)
    if checkpoint is None and isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        # the run was of other processes: what they saved isn't known here
        return (
            f"The last checkpoint of an epoch, if there is one, is in {run_folder(trainer) / 'checkpoints'}."
        )
    if checkpoint is None:
        return "There is no checkpoint yet, so nothing to resume."
    saved = [callback.path for callback in callbacks_of(trainer) if isinstance(callback, SaveRunConfig)]
    config = [f"--config={path}" for path in saved if path is not None]
    command = ["python", str(script), "fit", *config, f"--ckpt_path={checkpoint}"]
    return f"To resume: {shlex.join(command)}"


def _newest_checkpoint(trainer: Trainer) -> Path | None:
    callbacks = [
        callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)
    ]
    names = [name for callback in callbacks for name in (callback.last_model_path, callback.best_model_path)]
    paths = [Path(name) for name in names if name and Path(name).exists()]
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


def _write_new(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        candidate = path if number == 0 else path.with_stem(f"{path.stem}_{number}")
        try:
            with candidate.open("x") as file:  # fails if another run has just written it
                file.write(text)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("there is always a next number")


def _differences(given: Any, taken: Any, name: str = "model") -> Iterator[str]:
    """What a checkpoint's hyper-parameters change in a configuration."""
    if isinstance(given, Namespace) and isinstance(taken, Namespace):
        for key in vars(taken):
            yield from _differences(given.get(key), taken.get(key), f"{name}.{key}")
    elif given != taken:
        yield f"{name}={taken!r}, not {given!r}"


def _as_list(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list) else [callbacks]


def _has_checkpoint(callbacks: list[Any]) -> bool:
    return any(isinstance(callback, Checkpoint) for callback in callbacks)
