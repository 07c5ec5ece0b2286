"""What the hippocampal cells sense: place fields on a circular track, or a mixture of latent signals."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_plasticity.data.splits import generator_for
from lightning_plasticity.hippocampus.settings import Settings


@dataclass
class PlaceFields:
    """Gaussian place fields on a circle, peak 1: `exp(-d^2 / (2 w^2))`, `d` along the circle.

    Attributes:
        centres: metres `[M, n_p]`.
        width: `w`, metres.
        circumference: metres.

    Example:
        >>> fields = PlaceFields(torch.tensor([[0.25, 0.5]]), width=0.06, circumference=1.0)
        >>> fields.features(torch.tensor([[[0.5]]])).flatten().round(decimals=3)
        tensor([0., 1.])
    """

    centres: Tensor
    width: float
    circumference: float

    def features(self, position: Tensor) -> Tensor:
        """Features z `[T, M, n_p, B]` at positions `[T, M, B]` in metres."""
        distance = (position.unsqueeze(2) - self.centres.unsqueeze(-1)) / self.circumference
        distance = (distance - distance.round()) * self.circumference
        return torch.exp(distance * distance / (-2 * self.width**2))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {"centres": self.centres}

    def with_tensors(self, tensors: dict[str, Tensor]) -> "PlaceFields":
        """Gives the same with other tensors."""
        return replace(self, centres=tensors["centres"])


@dataclass
class LatentMixing:
    """Features that mix a few latent signals: `z = mix @ latents`.

    Attributes:
        mix: `[M, n_p, latents]`.
    """

    mix: Tensor

    def features(self, latents: Tensor) -> Tensor:
        """Features z `[T, M, n_p, B]` of latents `[T, M, latents, B]`."""
        return self.mix @ latents

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {"mix": self.mix}

    def with_tensors(self, tensors: dict[str, Tensor]) -> "LatentMixing":
        """Gives the same with other tensors."""
        return LatentMixing(tensors["mix"])


Environment = PlaceFields | LatentMixing


def make_environment(settings: Settings, seeds: list[int]) -> Environment:
    """Draws the environment of every model from its own seed."""
    if settings.task == "latents":
        size = (settings.hpc, settings.latents)
        mixes = [
            torch.randn(size, generator=generator_for(seed, stream=2), dtype=torch.float32) for seed in seeds
        ]
        return LatentMixing(torch.stack(mixes) / settings.latents**0.5)
    centres = [field_centres(settings, generator_for(seed, stream=2)) for seed in seeds]
    return PlaceFields(torch.stack(centres), settings.field_width, settings.circumference)


def field_centres(settings: Settings, generator: torch.Generator, shuffle: bool = False) -> Tensor:
    """Centres `[n_p]` in metres: evenly spaced, jittered, in the order of the cells unless shuffled.

    Args:
        settings: of the model.
        generator: of the jitter and the order.
        shuffle: which is what a new room does to place cells.
    """
    count = settings.hpc
    drawn = torch.rand(count, generator=generator, dtype=torch.float32)
    jitter = (2 * drawn - 1) * settings.field_jitter
    centres = (torch.arange(count, dtype=torch.float32) + 0.5 + jitter) / count * settings.circumference
    return centres[torch.randperm(count, generator=generator)] if shuffle else centres


def initial_weights(settings: Settings, seeds: list[int]) -> dict[str, Tensor]:
    """Draws `N(0, (w / sqrt(inputs))^2)`, bias 0, for every model `[M, n, m]`; or `basal_gain * I`.

    The conjunctive maps have the inputs of both directions.
    """
    models = [_weights(settings, generator_for(seed, stream=1)) for seed in seeds]
    return {name: torch.stack([model[name] for model in models]) for name in settings.maps}


def _weights(settings: Settings, generator: torch.Generator) -> dict[str, Tensor]:
    weights = {}
    for name, (cells, columns) in settings.shapes().items():
        inputs = {"hpc_apical": settings.mec, "mec_basal": settings.hpc}.get(name, settings.mec)
        fan_in = settings.conjunctive if name in ("mec_right", "mec_left") else inputs
        weight = torch.zeros(cells, columns, dtype=torch.float32)
        drawn = torch.randn(cells, inputs, generator=generator, dtype=torch.float32) * settings.initial.get(
            name, 0.0
        )
        weight[:, :inputs] = drawn / fan_in**0.5
        weights[name] = weight
    if settings.basal_gain is not None:
        weights["mec_basal"] = settings.basal_gain * torch.eye(*weights["mec_basal"].shape)
    return weights
