"""Compare methods at equal sparsity and budget over seeds: one table, one figure, one CSV.

python recipes/sparse_training.py compare --seeds=5 --sparsity=0.98
"""

import csv
from functools import partial
from pathlib import Path
from statistics import mean, stdev

from lightning.pytorch import Trainer, seed_everything

from lightning_plasticity.callbacks import SET, GradualPruning, GraNet, RigL, StaticSparsity
from lightning_plasticity.data import ImageData
from lightning_plasticity.figures import save_figure
from lightning_plasticity.mistakes import require_at_least
from lightning_plasticity.models import ImageClassifier
from lightning_plasticity.runs import quiet
from lightning_plasticity.sparsity.figures import methods_compared

METHODS = {
    "dense": lambda s, every, seed: StaticSparsity(0.0),
    "static ERK": lambda s, every, seed: StaticSparsity(s, seed=seed),
    "SET": lambda s, every, seed: SET(s, every, seed=seed),
    "RigL": lambda s, every, seed: RigL(s, every, seed=seed),
    "GMP": lambda s, every, seed: GradualPruning(s, update_every=every, seed=seed),
    "GraNet": lambda s, every, seed: GraNet(s, update_every=every, seed=seed),
    "GraNet from 50 %": lambda s, every, seed: GraNet(s, initial_sparsity=0.5, update_every=every, seed=seed),
}


def compare(
    seeds: int = 5,
    sparsity: float = 0.98,
    epochs: int = 20,
    update_every: int = 20,
    model: str = "lenet300",
    dataset: str = "mnist5k",
    data_dir: str = "data",
    download: bool = False,
    lr: float = 0.05,
    first_seed: int = 0,
    output: str = "runs/sparse_training/compare",
) -> list[dict]:
    """Compares dense, static ERK, SET, RigL, GMP and GraNet at equal sparsity and budget over several seeds.

    Args:
        seeds: Runs per method; a seed changes the initial weights, the order of the data and the masks.
        sparsity: Final sparsity of every method but dense.
        epochs: Epochs of every run.
        update_every: Optimizer steps between mask updates.
        model: Network, as in ImageClassifier.
        dataset: Data, as in ImageData.
        data_dir: Where torchvision's sets are.
        download: Whether torchvision may fetch them.
        lr: Full learning rate, divided by 10 at half and three quarters of the run.
        first_seed: Where seeds begin, to share the work among processes.
        output: Folder for results.csv, table.md and compare.png.
    """
    require_at_least(1, seeds=seeds, epochs=epochs, update_every=update_every)
    data = partial(ImageData, dataset, data_dir, download=download)
    runs = []
    for seed in range(first_seed, first_seed + seeds):
        for method, callback in METHODS.items():
            sparse = callback(sparsity, update_every, seed)
            with quiet():
                runs.append(run(method, sparse, seed, epochs, model, data(seed=seed), lr))
            print(f"seed {seed}, {method}: test accuracy {runs[-1]['accuracy']:.4f}", flush=True)
            write(runs, Path(output), sparsity)
    print(table(runs))
    print(f"Written to {output}: results.csv, table.md, compare.png")
    return runs


def run(method, callback, seed, epochs, model, data, lr) -> dict:
    """Train and test once."""
    seed_everything(seed, verbose=False)
    trainer = Trainer(
        max_epochs=epochs, callbacks=[callback], logger=False, enable_checkpointing=False,
        limit_val_batches=0, num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    net = ImageClassifier(model, data.num_classes, data.shape[0], lr=lr)
    trainer.fit(net, data)
    accuracy = trainer.test(net, data, verbose=False)[0]["test/accuracy"]
    flops = callback.flops()
    return {
        "method": method, "seed": seed, "accuracy": accuracy, "density": callback.density,
        "train_flops": flops["training"], "test_flops": flops["forward"],
    }  # fmt: skip


def table(runs) -> str:
    """The comparison as a Markdown table: mean and standard deviation over seeds."""
    rows = [
        "| method | test accuracy (%) | density | train FLOPs | test FLOPs | runs |",
        "|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        values = [100 * run["accuracy"] for run in mine]
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        density, train, test = (
            mean(run[key] for run in mine) for key in ("density", "train_flops", "test_flops")
        )
        cells = [method, f"{mean(values):.2f}{spread}", f"{density:.4f}", f"{train:.3f}x", f"{test:.3f}x"]
        rows.append(f"| {' | '.join(cells)} | {len(mine)} |")
    return "\n".join(rows)


def write(runs, folder: Path, sparsity: float) -> None:
    """Write what there is so far, so that nothing is lost if the comparison is stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, runs[0])
        writer.writeheader()
        writer.writerows(runs)
    (folder / "table.md").write_text(table(runs) + "\n")
    save_figure(
        methods_compared(runs, title=f"Equal budget, {100 * sparsity:g} % sparse"), folder / "compare.png"
    )
