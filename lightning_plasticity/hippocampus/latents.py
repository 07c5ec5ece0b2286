"""The latent task's scores: how well wake predicts, and whether sleep has the statistics of the data."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_plasticity.data.latents import Signals
from lightning_plasticity.data.splits import generator_for
from lightning_plasticity.hippocampus.dynamics import Dendrites
from lightning_plasticity.hippocampus.module import HippocampalFormation
from lightning_plasticity.metrics.latent_statistics import AutocorrelationError, LatentR2, autocorrelation


class WakeAndSleep(NamedTuple):
    """A minute awake and the next one asleep, of every model.

    Attributes:
        wake_apical: pA `[T, M, n_p]` in wake.
        wake_basal: pB, likewise.
        sleep_mec: g `[T, M, n_g]` in the last 50 s of sleep.
        sleep_features: z `[T, M, n_p]` in the same time, which the model did not see.
        r2_prediction: of pB by pA in wake, `1 - residual / total` `[M]`.
        r2_features: of z by a linear map of g in wake `[M]`.
        autocorrelation_mse: between sleeping g and z, lags to 4 s `[M]`.
        autocorrelation_correlation: likewise.
        std: of g in sleep and of z `[M, 2]`.
    """

    wake_apical: Tensor
    wake_basal: Tensor
    sleep_mec: Tensor
    sleep_features: Tensor
    r2_prediction: Tensor
    r2_features: Tensor
    autocorrelation_mse: Tensor
    autocorrelation_correlation: Tensor
    std: Tensor


def wake_and_sleep(model: HippocampalFormation, seconds: float = 60.0, seed: int = 0) -> WakeAndSleep:
    """Runs a model without learning, awake and then asleep, noise on, from where it is.

    Args:
        model: of task `latents`; it is left as it is.
        seconds: awake, and again asleep; more than 15.
        seed: of signals and noise.

    Raises:
        ValueError: if the model has no latents, or the time is too short.
    """
    settings = model.settings
    if settings.task != "latents" or not seconds > 15:
        raise ValueError(f"task={settings.task!r} must be latents and seconds={seconds} above 15")
    steps = round(seconds / settings.dt / model.gate.cycle) * model.gate.cycle
    seeds = [1_000_003 * (seed + 1) + own for own in model.seeds]
    signals = Signals(seeds, model.agents, settings.latents, 2 * steps, settings.dt, 1.0)
    generators = [generator_for(own, stream=8) for own in seeds]
    dendrites: list[Dendrites] = []

    wake = signals.take(steps)
    state, awake = model.run(
        wake,
        model.state,
        model.gate.with_mode("wake"),
        _noise(model, steps, generators),
        watch=dendrites.append,
    )
    late = signals.take(steps)
    _, asleep = model.run(late, state, model.gate.with_mode("sleep"), _noise(model, steps, generators))
    apical, basal = (
        torch.stack([getattr(one, name)[..., 0] for one in dendrites]) for name in ("hpc_apical", "hpc_basal")
    )
    tail = round((seconds - 10) / settings.dt)
    features, g = model.features(late)[0][-tail:, :, :, 0], asleep.g[-tail:, :, :, 0]
    residual = (basal - apical).square().sum((0, 2))
    total = (basal - basal.mean(0)).square().sum((0, 2))
    scores = [_matches(g[:, m], features[:, m], settings.dt) for m in range(model.models)]
    seen = model.features(wake)[0][..., 0]
    explained = [_explained(awake.g[:, m, :, 0], seen[:, m]) for m in range(model.models)]
    return WakeAndSleep(
        apical,
        basal,
        g,
        features,
        1 - residual / total,
        torch.stack(explained),
        torch.stack([score["mse"] for score in scores]),
        torch.stack([score["correlation"] for score in scores]),
        torch.stack([g.std(0).mean(1), features.std(0).mean(1)], 1),
    )


def _noise(model: HippocampalFormation, steps: int, generators: list[torch.Generator]) -> Tensor:
    return model.draw_noise(steps, model.agents, generators)


def _matches(g: Tensor, features: Tensor, dt: float) -> dict[str, Tensor]:
    score = AutocorrelationError(lags=round(4 / dt))
    score.update(g, features)
    return score.compute()


def _explained(g: Tensor, features: Tensor) -> Tensor:
    score = LatentR2(g.shape[1], features.shape[1])
    score.update(g, features)
    found: Tensor = score.compute()
    return found


def lagged(found: WakeAndSleep, dt: float, seconds: float = 4.0, index: int = 0) -> tuple[Tensor, Tensor]:
    """Autocorrelations of sleeping g and of z at lags up to some seconds, of one model."""
    lags = round(seconds / dt)
    return (
        autocorrelation(found.sleep_mec[:, index], lags),
        autocorrelation(found.sleep_features[:, index], lags),
    )
