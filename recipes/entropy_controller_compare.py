"""Compare controllers with constant learning rates on a drifting stream, over seeds.

python recipes/entropy_controller.py compare --seeds=5 --kind=classes
"""

import csv
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_plasticity.callbacks import EntropyController
from lightning_plasticity.data import DriftData
from lightning_plasticity.figures import legend_below, new_figure, save_figure
from lightning_plasticity.mistakes import require_at_least
from lightning_plasticity.models import ImageClassifier
from lightning_plasticity.runs import quiet

METHODS = {
    "constant": lambda: None,
    "a third": lambda: None,
    "a tenth": lambda: None,
    "predictive, rate": lambda: EntropyController("predictive"),
    "agreement, rate": lambda: EntropyController("agreement"),
    "predictive, consolidation": lambda: EntropyController("predictive", "consolidation"),
    "agreement, consolidation": lambda: EntropyController("agreement", "consolidation"),
}
SHARE = {"a third": 1 / 3, "a tenth": 0.1}


class StreamAccuracy(Callback):
    """Measures accuracy on the test images of both conditions along the stream.

    Logs `stream/present` and `stream/other`.

    Args:
        every: Optimizer steps between measurements.
    """

    def __init__(self, every: int = 25):
        require_at_least(1, every=every)
        self.every, self.rows = every, []  # step, condition that rules, accuracy on it and on the other

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, *_):
        """Measure, if it is time."""
        step, data = trainer.global_step, trainer.datamodule
        if step % self.every == 0 and (not self.rows or self.rows[-1][0] != step):
            pl_module.eval()
            accuracy = [
                float((pl_module(x.to(pl_module.device)).argmax(1).cpu() == y).float().mean())
                for x, y in (data.test_set(0), data.test_set(1))
            ]
            pl_module.train()
            now = data.condition_at(step - 1)
            self.rows.append([step, now, accuracy[now], accuracy[1 - now]])
            pl_module.log("stream/present", accuracy[now])
            pl_module.log("stream/other", accuracy[1 - now])

    def means(self):
        """Mean accuracy on the present and on the other condition, from the second phase on."""
        first = next((row[0] for row in self.rows if row[1] == 1), 0)
        rows = [row for row in self.rows if row[0] >= first]
        return mean(row[2] for row in rows), mean(row[3] for row in rows)

    def state_dict(self):
        """The measurements."""
        return {"rows": [list(row) for row in self.rows]}

    def load_state_dict(self, state_dict):
        """Go on from there."""
        self.rows = [list(row) for row in state_dict["rows"]]


def compare(
    seeds: int = 5, first_seed: int = 0, kind: str = "classes", lr: float = 0.05, old_share: float = 0.1,
    phases: int = 4, steps_per_phase: int = 150, output: str = "runs/entropy_controller/compare",
) -> list[dict]:  # fmt: skip
    """Compares controllers with constant learning rates on a drifting stream, over several seeds.

    Args:
        seeds: Runs per method; a seed changes the initial weights and the stream.
        first_seed: Where seeds begin.
        kind: What shifts: classes or contrast.
        lr: Full learning rate of every method; the constant ones also take a third and a tenth of it.
        old_share: Share of a batch that comes from the other condition.
        phases: Phases of the stream.
        steps_per_phase: Batches of a phase.
        output: Folder for <kind>.csv, <kind>.md and <kind>.png.
    """
    require_at_least(1, seeds=seeds, phases=phases, steps_per_phase=steps_per_phase)
    folder, runs, curves = Path(output), [], {}
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first_seed, first_seed + seeds):
        for method, make in METHODS.items():
            data = DriftData(kind, phases, steps_per_phase, old_share=old_share, seed=seed)
            with quiet():
                measured = run(make(), data, lr * SHARE.get(method, 1.0), seed)
            now, other = measured.means()
            row = {"method": method, "seed": seed, "present": now, "other": other, "both": (now + other) / 2}
            runs.append(row)
            curves.setdefault(method, []).append(measured.rows)
            print(f"seed {seed}, {method}: present {now:.3f}, other {other:.3f}", flush=True)
            with (folder / f"{kind}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
                writer.writerows(runs)
    (folder / f"{kind}.md").write_text(table(runs) + "\n")
    save_figure(stream_figure(curves, data), folder / f"{kind}.png")
    print(table(runs), f"Written to {folder}: {kind}.csv, {kind}.md, {kind}.png", sep="\n")
    return runs


def run(controller, data, lr, seed):
    """Once through the stream."""
    seed_everything(seed, verbose=False)
    measured = StreamAccuracy()
    callbacks = [measured] if controller is None else [measured, controller]
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=callbacks, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(ImageClassifier("lenet300", 10, 1, lr=lr, schedule="constant"), data)
    return measured


def table(runs) -> str:
    """Mean and standard deviation over seeds, in percent, as a Markdown table."""
    rows = ["| method | present condition | other condition | both | runs |", "|---|---|---|---|---|"]
    for method in dict.fromkeys(run["method"] for run in runs):
        cells = []
        for key in ("present", "other", "both"):
            values = [100 * run[key] for run in runs if run["method"] == method]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.1f}{spread}")
        rows.append(f"| {method} | {' | '.join(cells)} | {len(values)} |")
    return "\n".join(rows)


def stream_figure(curves, data):
    """Accuracy on both conditions along the stream: mean over seeds, one line per method."""
    title = "Accuracy along the drifting stream"
    labels = {"xlabel": "optimizer step", "ylabel": "accuracy (%)"}
    figure = new_figure(2, 1, title=title, height=8.4, sharex=True, sharey=True, **labels)
    for condition, axes in enumerate(figure.axes):
        looks = zip(cycle("os^DvPX*"), cycle(("-", "--", ":", "-.")), strict=False)
        for (method, seeds), (marker, dashes) in zip(curves.items(), looks, strict=False):
            points = zip(*seeds, strict=True)
            means = [(p[0][0], 100 * mean(r[2 + (r[1] != condition)] for r in p)) for p in points]
            axes.plot(*zip(*means, strict=True), label=method, marker=marker, linestyle=dashes)
        for phase in range(data.phases):
            if phase % 2 == condition:
                start = phase * data.steps_per_phase
                axes.axvspan(start, start + data.steps_per_phase, color="0.93", zorder=0)
        classes, contrast = data.conditions[condition]
        axes.set_title(f"test digits {classes[0]} to {classes[-1]}, contrast {contrast:g} (grey: they rule)")
    legend_below(figure.axes[0])
    return figure
