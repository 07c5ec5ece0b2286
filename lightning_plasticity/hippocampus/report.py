"""Tables in text: what a fit and a comparison end with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_plasticity.hippocampus.analysis import errors_at, live_cells, sorted_ring
from lightning_plasticity.metrics.circular_decoding import horizon
from lightning_plasticity.metrics.ring_score import ring_score

if TYPE_CHECKING:
    from lightning_plasticity.hippocampus.latents import WakeAndSleep
    from lightning_plasticity.hippocampus.module import HippocampalFormation

TIMES = (1, 2, 5, 10, 20, 40, 60, 120, 300)


def dark_table(errors: Mapping[str, Tensor], dt: float) -> str:
    """Decoding error by time in the dark: mean over all walks, and its spread over walks or models.

    Args:
        errors: name -> `[M, tests, T]` in metres; the spread is over models if there are several.
        dt: seconds of a step.

    Example:
        >>> print(dark_table({"ours": torch.full((3, 4, 80), 0.02)}, dt=0.025))
        error (m) in the dark after         1 s           2 s   above 0.1 m after
        ours                      0.020 ± 0.000 0.020 ± 0.000   never in 2 s
    """
    longest = max(error.shape[-1] for error in errors.values())
    times = [time for time in TIMES if round(time / dt) <= longest]
    lines = [f"{'error (m) in the dark after':<25}" + "".join(f"{f'{t} s':>12}  " for t in times)]
    lines[0] = lines[0].rstrip() + "   above 0.1 m after"
    for name, error in errors.items():
        cells = []
        for time in times:
            values = errors_at(error, dt, (time,))[..., 0] if len(error) > 1 else None
            single = error[0, :, round(time / dt) - 1]
            cells.append(f"{mean_and_spread(single if values is None else values):<13}")
        lasts = float(horizon(error.mean((0, 1)), dt))
        end = f"never in {longest * dt:g} s" if lasts >= longest * dt - 1e-6 else f"{lasts:.1f} s"
        lines.append(f"{name:<25} " + " ".join(cells) + f"   {end}")
    return "\n".join(lines)


def mean_and_spread(values: Tensor) -> str:
    """Mean and standard deviation, to three digits; one value alone has no spread."""
    mean = f"{float(values.mean()):.3f}"
    return f"{mean} ± {float(values.std()):.3f}" if values.numel() > 1 else mean


def track_summary(model: "HippocampalFormation") -> str:
    """Prediction errors, live cells and the ring's score, mean and spread over models."""
    scores = [ring_score(*sorted_ring(model, index)) for index in range(model.models)]
    rows = {
        "prediction error, HPC": model.error[:, 0],
        "prediction error, MEC": model.error[:, 1],
        "live MEC cells": live_cells(model).float(),
        "ring: mass at the centre": torch.stack([score["centre_mass"] for score in scores]),
        "ring: antisymmetry": torch.stack([score["antisymmetry"] for score in scores]),
    }
    return "\n".join(f"{name:<25} {mean_and_spread(values.cpu())}" for name, values in rows.items())


def latent_summary(found: "WakeAndSleep") -> str:
    """Scores of the latent task, mean and spread over models."""
    rows = {
        "R2 of HPC's apical for its basal rates, awake": found.r2_prediction,
        "R2 of the features from MEC, awake": found.r2_features,
        "autocorrelation asleep, correlation with data": found.autocorrelation_correlation,
        "autocorrelation asleep, squared difference": found.autocorrelation_mse,
        "standard deviation of MEC asleep": found.std[:, 0],
        "standard deviation of the features": found.std[:, 1],
    }
    return "\n".join(f"{name:<46} {mean_and_spread(values.cpu())}" for name, values in rows.items())


def transfer_table(errors: Mapping[str, Tensor]) -> str:
    """Error a second into the dark around a remapping, and in how many models it came back within 20 %."""
    lines = [f"{name.replace('_', ' '):<12} {mean_and_spread(value)} m" for name, value in errors.items()]
    if {"before", "after"} <= set(errors):
        back = errors["after"] <= 1.2 * errors["before"]
        lines.append(f"within 20 % of before in {int(back.sum())} of {len(back)} models")
    return "\n".join(lines)


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of one form as a Markdown table."""
    names = list(rows[0])
    body = ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(names) + " |", "|" + "---|" * len(names), *body])
