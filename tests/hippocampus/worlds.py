"""Models and inputs for tests, drawn from a seed in float64."""

import torch

from lightning_plasticity.data.latents import Signals
from lightning_plasticity.data.trajectories import Walker
from lightning_plasticity.hippocampus.dynamics import Inputs, State
from lightning_plasticity.hippocampus.environment import initial_weights, make_environment
from lightning_plasticity.hippocampus.gate import Gate
from lightning_plasticity.hippocampus.settings import preset


def world(name, steps, models=1, agents=1, seed=0, dtype=torch.float64, **changes):
    """Settings, weights, a state at rest and inputs of a preset; noise included."""
    settings = preset(name).replace(**changes)
    seeds = list(range(seed, seed + models))
    weights = {key: weight.to(dtype) for key, weight in initial_weights(settings, seeds).items()}
    environment = make_environment(settings, seeds)
    generator = torch.Generator().manual_seed(seed)
    if settings.task == "track":
        chunk = Walker(seeds, agents, settings.dt).take(steps)
        features = environment.features(chunk["position"])
        speed = (chunk["coming"] / settings.full_speed).to(dtype)
    else:
        signals = Signals(seeds, agents, settings.latents, steps, settings.dt, 1.0)
        features, speed = environment.features(signals.take(steps)["latents"]), None
    size = (steps, models, 2 * (settings.hpc + settings.mec), agents)
    noise = torch.randn(size, generator=generator, dtype=dtype)
    gate = Gate(settings.sleep_steps, settings.wake_steps)
    inputs = Inputs(features.to(dtype), speed, gate.fractions(0, steps), noise)
    return settings, weights, State.zeros(settings, models, agents, dtype), inputs


def part(inputs, start, stop):
    """Some of the steps."""
    return Inputs(*(None if stream is None else stream[start:stop] for stream in inputs))


def copies(weights):
    """The same numbers at other addresses."""
    return {name: weight.clone() for name, weight in weights.items()}
