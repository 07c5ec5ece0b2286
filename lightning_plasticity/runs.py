"""A run's folder and its loggers: metrics, configuration, figures and checkpoints of a run lie together."""

from __future__ import annotations

import logging
import netrc
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only


def run_folder(trainer: Trainer) -> Path:
    """Finds the folder of a trainer's run, without asking other ranks as `trainer.log_dir` does.

    It is the folder of the first CSV or TensorBoard logger; else `<save_dir>/<name>/<version>` of the first
    logger, which is where Lightning puts the checkpoints; else the trainer's `default_root_dir`.

    Args:
        trainer: A trainer, whose loggers know their version.

    Raises:
        MisconfigurationException: If the folder is not on a local disk.

    >>> run_folder(Trainer(logger=CSVLogger("logs", name="digits", version=3), accelerator="cpu")).as_posix()
    'logs/digits/version_3'
    """
    loggers = sorted(
        trainer.loggers, key=lambda logger: not isinstance(logger, CSVLogger | TensorBoardLogger)
    )
    folder = _logger_folder(loggers[0]) if loggers else None
    folder = str(trainer.default_root_dir) if folder is None else folder
    if "://" in folder:
        raise MisconfigurationException(
            f"the run's folder {folder!r} is not on a local disk; add a CSVLogger with a local "
            "`save_dir`, or set `default_root_dir` to a local folder"
        )
    return Path(folder)


def reserve_folder(parent: str | Path, name: str | None = None) -> Path:
    """Makes a new folder that no other run has, also when many runs start at the same moment.

    Args:
        parent: Folder of all runs.
        name: Name wanted, such as the id of a W&B run; if it is taken, `<name>_1`, `<name>_2` ... By default
            the next free of `version_0`, `version_1` ...

    Raises:
        OSError: If the folder cannot be made.
    """
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    for candidate in _candidates(parent, name):
        try:
            (parent / candidate).mkdir()  # atomic: of two processes only one succeeds
        except FileExistsError:
            continue
        return parent / candidate
    raise AssertionError("there is always a next number")


def run_loggers(
    root: str | Path, recipe: str, wandb: bool | Literal["auto", "artifacts"] = "auto"
) -> list[Logger]:
    """Reserves a run's folder `<root>/<recipe>/<version>` and makes its loggers: CSV first, then W&B.

    Args:
        root: Folder of all runs.
        recipe: Name of the recipe, which becomes the W&B group.
        wandb: Whether to add the W&B logger; `"auto"`: if wandb is installed and `WANDB_MODE` is not
            `disabled`; `"artifacts"`: with checkpoints as artifacts.

    Raises:
        MisconfigurationException: If W&B is asked for but not installed, or to be online without a login.
    """
    if wandb in (True, "artifacts") and not _wandb_installed():
        raise MisconfigurationException(
            f"wandb={wandb} needs wandb: pip install 'lightning-plasticity[recipes]'"
        )
    add_wandb = (
        _wandb_installed() and os.environ.get("WANDB_MODE") != "disabled" if wandb == "auto" else bool(wandb)
    )
    mode = wandb_mode() if add_wandb else None
    if getattr(rank_zero_only, "rank", 0) != 0:  # writes nothing: Lightning asks rank zero where things go
        return [CSVLogger(root, name=recipe)]
    folder = reserve_folder(Path(root, recipe), os.environ.get("WANDB_RUN_ID"))
    numbered = re.fullmatch(r"version_(\d+)", folder.name)
    csv = CSVLogger(root, name=recipe, version=int(numbered[1]) if numbered else folder.name)
    _ = csv.experiment  # opened while the folder is empty: it clears what it finds there, such as W&B's files
    return [csv] if mode is None else [csv, _wandb_logger(folder, recipe, mode, wandb == "artifacts")]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from telling the same of every run of a comparison."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def wandb_mode() -> str:
    """Chooses how W&B runs: as `WANDB_MODE` says, else online with a login and offline without.

    Raises:
        MisconfigurationException: If `WANDB_MODE=online` has no login, for which wandb would stop and ask.
    """
    wish = os.environ.get("WANDB_MODE")
    if wish is None:
        return "online" if _wandb_login() else "offline"
    if wish == "online" and not _wandb_login():
        raise MisconfigurationException(
            "WANDB_MODE=online needs a login: run `wandb login`, or unset WANDB_MODE"
        )
    return wish


def _wandb_logger(folder: Path, recipe: str, mode: str, artifacts: bool) -> WandbLogger:
    swept = "WANDB_SWEEP_ID" in os.environ  # then the agent names the run
    logger = WandbLogger(
        name=None if swept else f"{recipe}/{folder.name}",
        project=os.environ.get("WANDB_PROJECT", "lightning-plasticity"),
        save_dir=os.environ.get("WANDB_DIR", folder),
        group=recipe,
        mode=mode,
        log_model=artifacts,
    )
    getattr(logger, "_wandb_init", {}).pop("anonymous", None)  # Lightning's default, which wandb warns of
    return logger


def hush_others() -> None:
    """Leave out what the libraries below say of each other in every run, and nobody here can mend."""
    # Lightning 2.6 with torch >= 2.14: its own use of torch's pytree
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
    # a run that goes on has a folder of its own here
    warnings.filterwarnings("ignore", "The dirpath has changed from", UserWarning)
    log = getattr(import_module("lightning_utilities.core.rank_zero"), "log", None)
    if isinstance(log, logging.Logger):  # of whichever Lightning was imported last: all tell through it
        log.addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in str(record.msg)


def _wandb_installed() -> bool:
    found = find_spec("wandb")
    return found is not None and found.origin is not None  # a folder `wandb/` of offline runs has no origin


def _wandb_login() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _candidates(parent: Path, name: str | None) -> Iterator[str]:
    if name is None:
        taken = [path.name.removeprefix("version_") for path in parent.glob("version_*")]
        first = 1 + max((int(number) for number in taken if number.isdigit()), default=-1)
        return (f"version_{number}" for number in count(first))
    return (name if number == 0 else f"{name}_{number}" for number in count())


def _logger_folder(logger: Logger) -> str | None:
    if isinstance(logger, CSVLogger | TensorBoardLogger):
        return logger.log_dir
    if logger.save_dir is None:
        return None
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return str(Path(logger.save_dir, str(logger.name), version))
