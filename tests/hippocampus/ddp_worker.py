"""One of two gloo processes: `python -m tests.hippocampus.ddp_worker rank port folder`."""

import logging
import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy

from lightning_plasticity.data import TrackData
from lightning_plasticity.hippocampus import HippocampalFormation

CHUNKS = 6


class Save(L.Callback):
    """Saves after the third chunk."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)


def fit(folder, sync, sync_every="chunk", ckpt_path=None, reduction="mean", cut=(), runs=1):
    """A run of both processes; what this one has at its end."""
    seed = 0 if ckpt_path is None else 9
    model = HippocampalFormation("track", seed=seed, sync=sync, sync_every=sync_every, reduction=reduction)
    model = model.double()
    data = TrackData(minutes=CHUNKS * 0.2 / 60, chunk_seconds=0.2, seed=seed)
    if cut:
        model.lesion(*cut)
    for _ in range(runs):
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"),
            precision="64-true", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[] if cut or runs > 1 else [Save(folder / f"{sync}_{sync_every}.ckpt")],
        )  # fmt: skip
        trainer.fit(model, data, ckpt_path=ckpt_path)
    return {
        "weights": {name: weight.detach() for name, weight in model.weights.items()},
        "induction": {name: trainer.optimizers[0].induction(name) for name in model.weights},
        "state": model.state.tensors(),
        "environment": model.environment.tensors(),
        "step": trainer.global_step,
        "steps": model.state.step,
    }


def main(rank, port, folder):
    """Every scenario, one after the other."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank,
        "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    folder = Path(folder)
    found = {
        "mean_step": fit(folder, "mean", "step"),
        "sum_step": fit(folder, "sum", "step"),
        "mean_chunk": fit(folder, "mean"),
        "none_chunk": fit(folder, "none"),
        "cut": fit(folder, "none", cut=("mec_left",)),
        "twice": fit(folder, "mean", runs=2),
    }
    try:
        fit(folder, "none", runs=2)
    except MisconfigurationException as error:
        found["none_twice"] = str(error)
    for name in ("mean_chunk", "none_chunk"):
        found[f"{name}_resumed"] = fit(folder, name.split("_")[0], ckpt_path=folder / f"{name}.ckpt")
    torch.save(found, folder / f"result.{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
