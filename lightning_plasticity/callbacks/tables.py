"""The tables of a run, such as the density of each layer: a file beside its metrics, and a table in W&B."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_plasticity.callbacks.support import leaves_no_trace
from lightning_plasticity.runs import run_folder

Table = Sequence[Mapping[str, Any]]
"""Rows of one table: column -> value, the same columns in each."""


@rank_zero_only
def log_table(trainer: Trainer, name: str, rows: Table) -> Path | None:
    """Writes one table to `<run folder>/tables/<name>.csv` and sends it to W&B as `tables/<name>`.

    Args:
        trainer: The trainer whose run it belongs to.
        name: Name of the table.
        rows: Numbers and texts by column.

    Returns:
        The path of the file; `None` if there are no rows, under `fast_dev_run`, which leaves no trace, and on
        ranks other than zero.
    """
    if leaves_no_trace(trainer) or not rows:
        return None
    columns = list(rows[0])
    path = run_folder(trainer) / "tables" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            data = [[row[column] for column in columns] for row in rows]
            logger.log_table(key=f"tables/{name}", columns=columns, data=data, step=trainer.global_step)
    return path
