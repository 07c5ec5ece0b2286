"""Presets, ablations and baselines over seeds: tables, a CSV and figures.

python recipes/hippocampus.py compare --seeds=10

The baselines are ours: none of them is in the authors' code or in the figures that were available.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Trainer

from lightning_plasticity.callbacks import Remap
from lightning_plasticity.data import LatentData, TrackData
from lightning_plasticity.data.latents import Signals
from lightning_plasticity.figures import save_figure
from lightning_plasticity.hippocampus import HippocampalFormation, analysis, figures, report
from lightning_plasticity.hippocampus.baselines import Autoencoder, hand_set_ring
from lightning_plasticity.hippocampus.latents import wake_and_sleep
from lightning_plasticity.metrics.latent_statistics import AutocorrelationError
from lightning_plasticity.metrics.ring_score import ring_score
from lightning_plasticity.mistakes import require_at_least
from lightning_plasticity.runs import quiet


@dataclass
class Row:
    """One line of the table: a preset, its changes, and what is done to the model before it learns."""

    preset: str = "track_tuned"
    minutes: float = 60
    overrides: dict = field(default_factory=dict)
    prepare: Callable[[HippocampalFormation], object] = lambda model: None


def mode(name):
    """Changes the gate of both layers."""
    return lambda model: setattr(model, "mode", name)


PRESETS = {
    "track (paper's settings)": Row("track", 30),
    "remap (paper's, W_gB = I)": Row("remap", 30),
    "track_tuned (ours)": Row(),
}
ABLATIONS = {
    "tuned, lag of the reference": Row(overrides={"lag": True}),
    "tuned, 30 min": Row(minutes=30),
    "tuned, constant eta": Row(overrides={"anneal_to": 1.0}),
    "tuned, gate 4 + 4": Row(overrides={"sleep_steps": 4, "wake_steps": 4}),
    "tuned, W_gB = 1 I": Row(overrides={"basal_gain": 1.0}),
    "tuned, threshold 1": Row(overrides={"threshold": 1.0}),
    "tuned, full speed 0.5 m/s": Row(overrides={"full_speed": 0.5}),
    "tuned, W_gB learned": Row(overrides={"basal_gain": None, "eta": {"mec_basal": 0.01}}),
    "tuned, W_gB plastic from 3 I": Row(overrides={"eta": {"mec_basal": 0.01}}),
}
BASELINES = {
    "no theta (k = 0.5)": Row(prepare=mode(0.5)),
    "slow theta (0.5 Hz)": Row(overrides={"sleep_steps": 60, "wake_steps": 20}),
    "shuffled theta": Row(prepare=mode("shuffled")),
    "frozen random MEC": Row(prepare=lambda model: model.freeze("mec_recurrent", "mec_right", "mec_left")),
    "static bump (no velocity)": Row(prepare=lambda model: model.lesion("mec_right", "mec_left")),
    "ring set by hand": Row(prepare=hand_set_ring),
}
OPEN = {  # what nobody has reached: longer than a minute, and a learned W_gB
    "tuned": Row(),
    "tuned, 2 h": Row(minutes=120),
    "tuned, 4 h": Row(minutes=240),
    "tuned, W_gB learned slowly (eta .001)": Row(overrides={"basal_gain": None, "eta": {"mec_basal": 0.001}}),
    "tuned, W_gB plastic from 3 I, slowly": Row(overrides={"eta": {"mec_basal": 0.001}}),
}
GROUPS = {"presets": PRESETS, "ablations": ABLATIONS, "baselines": BASELINES, "open": OPEN}
SPEEDS = torch.linspace(-1.2, 1.2, 25)


def compare(
    seeds: int = 10,
    first_seed: int = 0,
    what: Literal["all", "presets", "ablations", "baselines", "open", "transfer", "latents"] = "all",
    seconds: float = 60.0,
    tests: int = 20,
    output: str = "runs/hippocampus/compare",
) -> None:
    """Prints path integration of presets, ablations and baselines, transfer, and the latent task, over seeds.

    Args:
        seeds: models of each row, run at once.
        first_seed: seed of the first.
        what: one of the tables, or all but `open`, which takes as long as the others together.
        seconds: in the dark; five times as long for what is open.
        tests: walks of every model.
        output: folder for CSV files and figures.
    """
    require_at_least(1, seeds=seeds, tests=tests)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for group, rows in GROUPS.items():
        if what == group or (what == "all" and group != "open"):
            dark = 5 * seconds if group == "open" else seconds
            compare_tracks(group, rows, seeds, first_seed, dark, tests, folder)
    if what in ("all", "transfer"):
        compare_transfer(seeds, first_seed, folder)
    if what in ("all", "latents"):
        compare_latents(seeds, first_seed, folder)
    print(f"Written to {folder}")


def compare_tracks(group, rows, seeds, first_seed, seconds, tests, folder):
    """Trains each row, turns the light off, and prints the errors in the dark."""
    errors, bumps, table = {}, {}, []
    for name, row in rows.items():
        model = trained(row, seeds, first_seed)
        decoder = analysis.fit_decoder(model)
        for noise in (False, True) if group == "presets" else (False,):
            title = name + (", noise on" if noise else "")
            dark = analysis.walk_into_the_dark(model, seconds, tests, noise=noise, decoder=decoder)
            errors[title] = dark.error
            table += track_rows(title, model, dark.error, first_seed)
        if group == "presets":
            bumps[name] = analysis.bump_speed(model, SPEEDS)
        print(f"\n{name}\n{report.track_summary(model)}", flush=True)
        write(table, folder / f"{group}.csv")
    print("\n" + report.dark_table(errors, model.settings.dt) + "\n", flush=True)
    curves = {name: error.mean(1) for name, error in errors.items() if "noise" not in name}
    dt, length = model.settings.dt, model.settings.circumference
    drawn = figures.darkness_figure(curves, dt, length, f"In the dark: {group}")
    save_figure(drawn, folder / f"{group}.png")
    if bumps:
        save_figure(figures.bump_speed_figure(SPEEDS, bumps), folder / "bump_speed.png")


def trained(row, seeds, first_seed, callbacks=()):
    """A model of every seed after its walk."""
    model = HippocampalFormation(row.preset, models=seeds, seed=first_seed, overrides=row.overrides)
    row.prepare(model)
    fit(model, TrackData(row.minutes, seed=first_seed, models=seeds), callbacks)
    return model


def track_rows(name, model, error, first_seed):
    """One line for each seed."""
    times = [time for time in report.TIMES if round(time / model.settings.dt) <= error.shape[-1]]
    found = analysis.errors_at(error, model.settings.dt, tuple(times))
    live = analysis.live_cells(model)
    for index in range(model.models):
        scores = ring_score(*analysis.sorted_ring(model, index))
        yield {
            "method": name, "seed": first_seed + index,
            **{f"dark_error_{time}s": f"{value:.4f}" for time, value in zip(times, found[index],
            strict=True)}, "prediction_error_hpc": f"{model.error[index, 0]:.4f}",
            "prediction_error_mec": f"{model.error[index, 1]:.4f}",
            "live_cells": int(live[index]),
            **{key: f"{value:.3f}" for key, value in scores.items() if key != "score"},
        }  # fmt: skip


def compare_transfer(seeds, first_seed, folder):
    """The authors' transfer and ours: error a second into the dark, before and after."""
    table = []
    for preset, minutes in {"remap": 30, "remap_anchored": 60}.items():
        remap = Remap(minutes)
        model = trained(Row(preset, minutes + 30), seeds, first_seed, [remap])
        late = analysis.errors_at(analysis.walk_into_the_dark(model).error, model.settings.dt, (20,))
        print(f"\ntransfer, {preset}\n{report.transfer_table(remap.errors)}")
        print(f"20 s into the dark afterwards {report.mean_and_spread(late)} m", flush=True)
        for index in range(seeds):
            errors = {key: f"{value[index]:.4f}" for key, value in remap.errors.items()}
            row = {"method": preset, "seed": first_seed + index, **errors}
            table.append(row | {"after_20s_in_the_dark": f"{late[index, 0]:.4f}"})
    write(table, folder / "transfer.csv")


def compare_latents(seeds, first_seed, folder, minutes=30, repeats=10):
    """The latent task, beside autoencoders of its size, trained by backpropagation on the same stream."""
    model = HippocampalFormation("latents", models=seeds, seed=first_seed)
    fit(model, LatentData(minutes, seed=first_seed, models=seeds))
    found = [wake_and_sleep(model, seed=seed) for seed in range(repeats)]
    minute = found[0]
    asleep = torch.stack([one.autocorrelation_correlation for one in found])
    print(f"\nlatents, a minute awake and one asleep\n{report.latent_summary(minute)}")
    print(f"prediction error, HPC {report.mean_and_spread(model.error[:, 0])}")
    print(f"prediction error, MEC {report.mean_and_spread(model.error[:, 1])}")
    print(f"autocorrelation, mean of {repeats} minutes {report.mean_and_spread(asleep.mean(0))}")
    attainable = between_minutes(found)
    print(
        f"... of the data with other minutes of themselves {report.mean_and_spread(attainable)}", flush=True
    )
    steps, own = round(minutes * 60 / model.settings.dt), model.seeds
    stream = Signals(own, 1, model.settings.latents, steps, model.settings.dt, 1.0).take(steps)
    unseen = Signals([seed + 10**6 for seed in own], 1, 5, 24_000, model.settings.dt, 1.0).take(24_000)
    train, test = (model.features(part)[0][..., 0] for part in (stream, unseen))
    table = []
    for index, seed in enumerate(own):
        nets = [Autoencoder(variational=variational, seed=seed) for variational in (False, True)]
        scores = [net.fit(train[:, index], seed=seed).r2(test[:, index]) for net in nets]
        table.append({
            "seed": seed, "prediction_error_hpc": f"{model.error[index, 0]:.4f}",
            "prediction_error_mec": f"{model.error[index, 1]:.4f}",
            "r2_prediction": f"{minute.r2_prediction[index]:.4f}",
            "r2_features": f"{minute.r2_features[index]:.4f}",
            "autocorrelation": f"{minute.autocorrelation_correlation[index]:.4f}",
            "autocorrelation_mean": f"{asleep[:, index].mean():.4f}",
            "autocorrelation_of_data": f"{attainable[index]:.4f}",
            "std_asleep": f"{minute.std[index, 0]:.3f}", "std_features": f"{minute.std[index, 1]:.3f}",
            "r2_autoencoder": f"{scores[0]:.4f}", "r2_vae": f"{scores[1]:.4f}",
        })  # fmt: skip
    for name in ("r2_autoencoder", "r2_vae"):
        values = torch.tensor([float(row[name]) for row in table])
        print(f"{name:<46} {report.mean_and_spread(values)}", flush=True)
    write(table, folder / "latents.csv")


def between_minutes(found):
    """How well a minute of the features matches the next in autocorrelation `[M]`: what can be attained."""
    pairs = [(one.sleep_features, other.sleep_features) for one, other in pairwise(found)]
    scores = []
    for index in range(found[0].sleep_features.shape[1]):
        score = AutocorrelationError()
        for one, other in pairs:
            score.update(one[:, index], other[:, index])
        scores.append(score.compute()["correlation"])
    return torch.stack(scores)


def fit(model, data, callbacks=()) -> None:
    """Trains on the whole stream."""
    with quiet():
        Trainer(
            max_epochs=1, accelerator="cpu", callbacks=list(callbacks), logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(model, data)  # fmt: skip


def write(table, path: Path) -> None:
    """Write what there is so far, so that nothing is lost if the comparison is stopped."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
