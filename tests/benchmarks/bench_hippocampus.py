"""Steps per second of the hippocampal model on one core, beside a plain NumPy loop; memory over an hour.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_hippocampus.py

Two plain NumPy loops stand in for the authors' code, which runs at 970 to 1137 steps per second on such a
core: the model's equations alone, with all inputs given (`tests/hippocampus/reference.py`), beside the kernel
alone; and their whole loop restated, with walk, place fields, noise and histories (`hippocampus_loop.py`),
beside "whole", a training run as a user has it: walks, place fields, noise, the Trainer and its logging. Each
figure is the worst and the best of several runs.
"""

import logging
import resource
import sys
import time
import warnings
from pathlib import Path

import lightning.pytorch as L
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lightning_plasticity.data import TrackData
from lightning_plasticity.hippocampus import HippocampalFormation, LocalPlasticity, dynamics, native
from lightning_plasticity.hippocampus.environment import make_environment
from tests.benchmarks.hippocampus_loop import AuthorsLoop
from tests.hippocampus.reference import run_reference
from tests.hippocampus.worlds import part, world


def rates(run, steps, repeats):
    """Worst and best steps per second."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(steps / (time.perf_counter() - start))
    return min(found), max(found)


def show(name, found, models=1, baseline=None, what=""):
    """One line; ratios are to the baseline's best."""
    low, high = (models * value for value in found)
    ratio = "" if baseline is None else f"{low / baseline[1]:6.0f} to {high / baseline[1]:.0f} x {what}"
    print(f"{name:<44}{low:>12,.0f} to {high:>9,.0f} model-steps/s{ratio}", flush=True)


def centres(settings):
    """Of the place fields of seed 0."""
    return make_environment(settings, [0]).centres[0].numpy()


def train(preset, minutes, models):
    """A whole run."""
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(HippocampalFormation(preset, models=models), TrackData(minutes=minutes, models=models))


def main():
    """Everything, in about two minutes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for preset in ("track", "track_tuned"):
        settings, weights, state, inputs = world(preset, 800)
        numpy = rates(lambda: run_reference(settings, weights, inputs), 800, 5)  # noqa: B023
        show(f"{preset}: NumPy, equations alone", numpy)
        loop = AuthorsLoop(settings, {k: w[0] for k, w in weights.items()}, centres(settings))
        authors = rates(lambda: loop.run(800), 800, 5)  # noqa: B023
        show(f"{preset}: NumPy, the authors' loop restated", authors)
        for models in (1, 32):
            settings, weights, state, inputs = world(preset, 400, models, dtype=torch.float32)
            rule = LocalPlasticity.of(settings, weights)
            repeats = 24 // models + 6
            found = rates(lambda: native.unroll(settings, weights, state, inputs, rule), 400, repeats)  # noqa: B023
            show(f"{preset}: compiled kernel, {models} models", found, models, numpy, "equations alone")
            short = part(inputs, 0, 80)
            found = rates(lambda: dynamics.unroll(settings, weights, state, short, rule.accumulate), 80, 3)  # noqa: B023
            show(f"{preset}: plain torch, {models} models", found, models, numpy, "equations alone")
        minutes = 10
        for models in (1, 32):
            found = rates(lambda: train(preset, minutes, models), minutes * 2400, 3)  # noqa: B023
            show(f"{preset}: whole run, {models} models", found, models, authors, "the authors' loop")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train("track", 60, 1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"peak memory over a simulated hour, after ten minutes: + {grown / 1024:.1f} MiB")


if __name__ == "__main__":
    main()
