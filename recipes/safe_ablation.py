"""Compare SAFE with each part taken out, and with its baselines, over class orders: a table, a figure, a CSV.

python recipes/safe.py ablation --orders=5
"""

import csv
import tempfile
from pathlib import Path
from statistics import mean, stdev

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_plasticity.continual.baselines import RUNS, VARIANTS, key, predictions, settings
from lightning_plasticity.continual.figures import comparison_figure, seen_accuracies
from lightning_plasticity.continual.settings import Losses, Optimization, Prediction
from lightning_plasticity.continual.shadows import ShadowedSAFE
from lightning_plasticity.data import ClassIncrementalData
from lightning_plasticity.data.preparation import Preparation
from lightning_plasticity.figures import save_figure
from lightning_plasticity.mistakes import require_at_least
from lightning_plasticity.runs import quiet

COLUMNS = ("final_micro", "average_incremental", "forgetting", "old", "new")
DRAWN = ("SAFE", "slow only", "fast only", "stale statistics", "RanPAC", "frozen + ridge", "naive sequential")
LOSSES = Losses(alignment=1.0, slow_to_fast=0.0, fast_to_slow=0.0)
AUGMENTED = Preparation(augment="resized_crop", scale=(0.6, 1.0))


def ablation(
    orders: int = 5,
    first_order: int = 0,
    runs: list[str] = list(RUNS),  # noqa: B006 - never changed
    sessions: list[int] = [4, 2, 2, 2],  # noqa: B006
    epochs: list[int] = [6, 3, 3, 3],  # noqa: B006
    dataset: str = "mnist5k",
    image_size: int = 32,
    backbone: str = "efficientnet_lite0_package",
    losses: Losses = LOSSES,
    optimization: Optimization = Optimization(),  # noqa: B008
    prediction: Prediction = Prediction(random_features=2000),  # noqa: B008
    preparation: Preparation = AUGMENTED,
    evaluate: str = "test",
    output: str = "runs/safe/ablation",
) -> list[dict]:
    """Compares SAFE without each of its parts, and its baselines, over several orders of the classes.

    Args:
        orders: Class orders; each is a seed of the data and of the model.
        first_order: Where they begin; settings were chosen on orders from 100 on, and on validation images.
        runs: Trainings: SAFE, crossed, not aligned, RanPAC, no transfer, frozen, joint.
        sessions: Classes of each session.
        epochs: Epochs of each session.
        dataset: Data, as in ClassIncrementalData.
        image_size: Side of the images in pixels.
        backbone: As in SAFE.
        losses: As in SAFE.
        optimization: As in SAFE.
        prediction: As in SAFE.
        preparation: As in ClassIncrementalData.
        evaluate: test, or val to choose settings.
        output: Folder for results.csv, table.md and ablation.png.
    """
    require_at_least(1, orders=orders)
    if unknown := sorted(set(runs) - set(RUNS)):
        raise ValueError(f"runs={unknown}: there are {', '.join(RUNS)}")
    rows = []
    for order in range(first_order, first_order + orders):
        with tempfile.TemporaryDirectory() as folder:
            for run in runs:
                seed_everything(order, verbose=False)
                sizes, lengths = ([sum(sessions)], epochs[:1]) if RUNS[run].joint else (sessions, epochs)
                data = ClassIncrementalData(
                    dataset, sizes, lengths, image_size=image_size, seed=order,
                    preparation=preparation, with_index=True,
                )  # fmt: skip
                model = ShadowedSAFE(
                    shadows=predictions(run, prediction), backbone=backbone, num_classes=data.num_classes,
                    optimization=optimization, prediction=prediction, evaluate=evaluate,
                    image_size=image_size, seed=order, **settings(run, losses),
                )  # fmt: skip
                with quiet():
                    fit(model, data, RUNS[run].starts_as, Path(folder), run)
                rows += read(model, run, order)
                write(rows, Path(output))
    print(table(rows))
    print(f"Written to {output}: results.csv, table.md, ablation.png")
    return rows


def fit(model, data, starts_as, folder: Path, run: str) -> None:
    """Train; the end of the first session is kept for runs that begin alike."""
    first, total = data.epochs_per_session[0], sum(data.epochs_per_session)
    keep = ModelCheckpoint(folder, f"{run}-{{epoch}}", every_n_epochs=first, save_top_k=-1)
    trainer = Trainer(
        max_epochs=total, reload_dataloaders_every_n_epochs=1, callbacks=[keep], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    begun = None if starts_as is None else folder / f"{starts_as}-epoch={first - 1}.ckpt"
    trainer.fit(model, data, ckpt_path=begun if begun is not None and begun.exists() else None)


def read(model, run: str, order: int) -> list[dict]:
    """All variants that a run answers for."""
    rows = []
    for name, variant in VARIANTS.items():
        if variant.run == run:
            record = model.records[key(variant)]
            summary = record.summary(variant.learner)
            curve = " ".join(f"{value:.2f}" for value in seen_accuracies(record, variant.learner))
            rows.append(
                {"variant": name, "order": order} | {c: summary[c] for c in COLUMNS} | {"curve": curve}
            )
            print(f"order {order}, {name}: {100 * summary['final_micro']:.1f} %  ({curve})", flush=True)
    return rows


def table(rows) -> str:
    """Mean and standard deviation over class orders, as Markdown."""
    lines = [
        "| variant (%) | final | incremental | forgetting | old | new | orders |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in [name for name in VARIANTS if any(row["variant"] == name for row in rows)]:
        mine = [row for row in rows if row["variant"] == name]
        cells = []
        for column in COLUMNS:
            values = [100 * row[column] for row in mine]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 and column == "final_micro" else ""
            cells.append("" if values[0] != values[0] else f"{mean(values):.1f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} | {len(mine)} |")
    return "\n".join(lines)


def write(rows, folder: Path) -> None:
    """Write what there is so far, so that nothing is lost if the comparison is stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "table.md").write_text(table(rows) + "\n")
    save_figure(figure(rows), folder / "ablation.png")


def figure(rows):
    """Curves of the main variants, and the final accuracies of all."""
    by_name = {name: [row for row in rows if row["variant"] == name] for name in VARIANTS}
    present = {name: mine for name, mine in by_name.items() if mine}
    finals = {name: [100 * row["final_micro"] for row in mine] for name, mine in present.items()}
    curves = {
        name: [[float(value) for value in row["curve"].split()] for row in present[name]]
        for name in [name for name in DRAWN if name in present]
        or [name for name in present if name != "joint"]
    }
    return comparison_figure(curves, finals, mean(finals["joint"]) if "joint" in finals else None)
