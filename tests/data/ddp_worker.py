"""One of two processes: a run, the same stopped inside an epoch, and resumed. Started by test_resumable."""

import os
import sys
import warnings
from pathlib import Path

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from lightning_plasticity.data import DriftData, ImageData
from tests.data.test_resumable import Linear, SaveOnException


class Stopped(RuntimeError):
    """Not a mistake."""


class Listening(Linear):
    """Remembers its batches outside its state, since each process has others."""

    def __init__(self, interrupt=None):
        super().__init__(64, interrupt)
        del self.learned
        self.batches = []

    def training_step(self, batch, batch_idx):
        at = (self.trainer.current_epoch, batch_idx)
        if at == self.interrupt:
            raise Stopped
        self.batches.append([*at, float(batch[0].double().sum())])
        return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def on_load_checkpoint(self, checkpoint):
        pass


def fit(data, path, interrupt=None, ckpt_path=None):
    """Three epochs, or until the interrupt."""
    strategy = DDPStrategy(process_group_backend="gloo", cluster_environment=LightningEnvironment())
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=3, callbacks=[SaveOnException(path)],
        limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    module = Listening(interrupt)
    try:
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    except Stopped:
        assert interrupt is not None
    return {"batches": module.batches, "weight": module.layer.weight.detach()}


def main(rank, port, folder):
    """Both kinds of data; results go to a file of this process."""
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "LOCAL_RANK": rank}
    os.environ.update(names)
    warnings.simplefilter("ignore")
    for name, make in {
        "images": lambda: ImageData("digits", augment=True, batch_size=80, num_workers=1),
        "drift": lambda: DriftData(phases=4, steps_per_phase=3, batch_size=8, dataset="digits"),
    }.items():
        path = Path(folder, f"{name}.ckpt")
        runs = [fit(make(), path), fit(make(), path, (1, 3)), fit(make(), path, ckpt_path=path)]
        torch.save(
            dict(zip(("whole", "stopped", "resumed"), runs, strict=True)), f"{folder}/{name}.{rank}.pt"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
