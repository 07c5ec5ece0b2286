"""Overhead of GraNet over plain training, per step: python tests/benchmarks/bench_training.py [--rounds 5]

ResNet-20 on 32 x 32 images, batch 128, an update every 100 steps, plain and sparse blocks of steps in turn
under a real Trainer. Printed are the ratio of each pair, the time spent in our hooks as a share of the sparse
step, which is steadier on a busy machine, and the bytes that masks keep.
"""

import argparse
import logging
import statistics
import time
from functools import wraps

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_plasticity.callbacks import GraNet
from lightning_plasticity.models import ImageClassifier

HOOKS = (
    "on_before_optimizer_step",
    "_begin_step",
    "_after_step",
    "on_train_batch_start",
    "on_train_batch_end",
)


class Clock(Callback):
    """Seconds from the end of the first ten steps to the end of training."""

    def __init__(self, skip: int = 10) -> None:
        self.skip, self.start, self.seconds, self.steps = skip, 0.0, 0.0, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        now = time.perf_counter()
        if batch_idx + 1 == self.skip:
            self.start = now
        elif batch_idx + 1 > self.skip:
            self.seconds, self.steps = now - self.start, batch_idx + 1 - self.skip


def timed(callback: Callback) -> dict[str, float]:
    """Sum up the time that a callback's hooks take."""
    spent = dict.fromkeys(HOOKS, 0.0)
    for name in HOOKS:
        hook = getattr(callback, name)

        @wraps(hook)
        def wrapper(*args, hook=hook, name=name, **kwargs):
            start = time.perf_counter()
            result = hook(*args, **kwargs)
            spent[name] += time.perf_counter() - start
            return result

        setattr(callback, name, wrapper)
    return spent


def block(steps: int, data: DataLoader, model: str, callbacks: list[Callback]) -> Clock:
    """Train for some steps and give the clock."""
    torch.manual_seed(0)
    clock = Clock()
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", callbacks=[*callbacks, clock], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(ImageClassifier(model, 10, 3), data)
    return clock


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    images = torch.randn(arguments.batch * (arguments.steps + 1), 3, 32, 32)
    data = DataLoader(TensorDataset(images, torch.randint(10, (len(images),))), arguments.batch)
    ratios, shares, block_of = [], [], {}
    for _ in range(arguments.rounds):
        granet = GraNet(0.9, initial_sparsity=0.5, update_every=100)
        plain = block(arguments.steps, data, arguments.model, [])
        spent = timed(granet)
        sparse = block(arguments.steps, data, arguments.model, [granet])
        ratios.append((sparse.seconds / sparse.steps) / (plain.seconds / plain.steps))
        shares.append(sum(spent.values()) / (sparse.seconds * arguments.steps / sparse.steps))
        block_of = {name: 1e3 * seconds / arguments.steps for name, seconds in spent.items()}
        step = {"plain": 1e3 * plain.seconds / plain.steps, "GraNet": 1e3 * sparse.seconds / sparse.steps}
        print(", ".join(f"{name} {milliseconds:.1f} ms a step" for name, milliseconds in step.items()))
    print(f"GraNet / plain over {arguments.rounds} pairs: {spread(ratios)}")
    print(f"time in our hooks as a share of a step: {spread(shares)}")
    print("  " + ", ".join(f"{name} {milliseconds:.3f} ms" for name, milliseconds in block_of.items()))
    masks = sum(mask.untyped_storage().nbytes() for mask in granet.masks.values())
    weights = sum(mask.numel() for mask in granet.masks.values())
    print(f"masks: {masks / weights:.2f} bytes a weight")


if __name__ == "__main__":
    main()
