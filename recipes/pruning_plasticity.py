"""Pruning plasticity: how well a net recovers from a cut, over training time (Liu et al., NeurIPS 2021).

    python recipes/pruning_plasticity.py fit                      a few minutes on 2 cores, offline
    python recipes/pruning_plasticity.py grid --config recipes/pruning_plasticity_filters.yaml

A run is branched at the end of chosen epochs; each branch cuts a share of the active connections and trains
on at the learning rate of that moment. `fit` measures one run with two callbacks, without and with
regeneration; `grid` does it for nets pre-trained at several sparsities.
"""

from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from lightning_plasticity.callbacks import PruningPlasticity, StaticSparsity
from lightning_plasticity.cli import PlasticityCLI
from lightning_plasticity.data import ImageData
from lightning_plasticity.figures import save_figure
from lightning_plasticity.mistakes import require_at_least
from lightning_plasticity.models import ImageClassifier
from lightning_plasticity.sparsity.figures import plasticity_grid, write_records


def grid(
    pretrained: list[float] = [0.0, 0.9],  # noqa: B006  (a plain default, so that --help shows it)
    rates: list[float] = [0.2, 0.5, 0.9, 0.98],  # noqa: B006
    granularity: str = "weight",
    scope: str = "global",
    epochs: int = 12,
    every_n_epochs: int = 4,
    continue_epochs: int = 2,
    seeds: int = 1,
    model: str = "small_convnet",
    dataset: str = "mnist5k",
    data_dir: str = "data",
    download: bool = False,
    lr: float = 0.05,
    output: str = "runs/pruning_plasticity/grid",
) -> list[dict]:
    """Measures plasticity of nets pre-trained at several sparsities, without and with regeneration.

    Args:
        pretrained: Sparsities of the run that is branched (static masks; the paper: 0, .5, .9, .98).
        rates: Shares of the active connections that are cut.
        granularity: "weight" or "filter".
        scope: "global" or "layer".
        epochs: Epochs of the run.
        every_n_epochs: Branch off after every so many epochs.
        continue_epochs: Epochs of continued training (the paper: 30).
        seeds: Runs of each pre-trained sparsity.
        model: Network, as in ImageClassifier.
        dataset: Data, as in ImageData.
        data_dir: Folder of torchvision's sets.
        download: Whether torchvision may fetch them.
        lr: Full learning rate; it drops by 10 at half and three quarters of the run.
        output: Folder for records.csv and pruning_plasticity.png.
    """
    require_at_least(1, seeds=seeds, epochs=epochs)
    records: list[dict] = []
    for seed in range(seeds):
        for sparsity in pretrained:
            seed_everything(seed, verbose=False)
            cut = {"rates": rates, "every_n_epochs": every_n_epochs, "continue_epochs": continue_epochs}
            cut |= {"granularity": granularity, "scope": scope}
            probes = [PruningPlasticity(regrow=way, **cut) for way in (False, True)]
            masks = StaticSparsity(sparsity, granularity=granularity, seed=seed)
            data = ImageData(dataset, data_dir, download=download, seed=seed)
            Trainer(
                max_epochs=epochs, callbacks=[masks, *probes], logger=False, enable_checkpointing=False
            ).fit(ImageClassifier(model, data.num_classes, data.shape[0], lr=lr), data)
            found = [record for probe in probes for record in probe.records]
            records += [{"seed": seed, "pretrained": sparsity, **record} for record in found]
            write_records(records, Path(output, "records.csv"))
    save_figure(plasticity_grid(records), Path(output, "pruning_plasticity.png"))
    print(f"Written to {output}: records.csv, pruning_plasticity.png")
    return records


if __name__ == "__main__":
    PlasticityCLI(ImageClassifier, ImageData, script=__file__, commands={"grid": grid})
