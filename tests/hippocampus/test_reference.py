"""Eager and native engines against the slow NumPy model, step for step, noise included, for each preset."""

import numpy as np
import pytest
import torch

from lightning_plasticity.hippocampus import dynamics, native
from lightning_plasticity.hippocampus.plasticity import LocalPlasticity
from lightning_plasticity.hippocampus.settings import PRESETS
from tests.hippocampus.reference import run_reference
from tests.hippocampus.worlds import copies, part, world

TOLERANCE = 1e-10


def assert_equal(reference, weights, rule, state, trace, model):
    for name, weight in weights.items():
        assert np.abs(reference.W[name] - weight[model].numpy()).max() < TOLERANCE, name
        assert np.abs(reference.PI[name] - rule.induction(name)[model].numpy()).max() < TOLERANCE, name
    assert np.abs(reference.p - state.p[model, :, 0].numpy()).max() < TOLERANCE
    assert np.abs(reference.g - state.g[model, :, 0].numpy()).max() < TOLERANCE
    noise = np.concatenate(list(reference.noise.values()))
    assert np.abs(noise - state.noise[model, :, 0].numpy()).max() < TOLERANCE
    if state.c.shape[1]:
        both = np.concatenate([reference.right, reference.left])
        assert np.abs(both - state.c[model, :, 0].numpy()).max() < TOLERANCE
        assert abs(reference.velocity_cell - float(state.u[model, 0])) < TOLERANCE
    assert np.abs(np.array(reference.errors) - trace.error[:, model].numpy()).max() < TOLERANCE


@pytest.mark.parametrize("engine", ["eager", "native"])
@pytest.mark.parametrize("name", PRESETS)
def test_64_steps(name, engine):
    settings, weights, state, inputs = world(name, 64, models=2)
    start = copies(weights)
    rule = LocalPlasticity.of(settings, weights)
    if engine == "eager":
        state, trace = dynamics.unroll(settings, weights, state, inputs, rule.accumulate)
    else:
        state, trace = native.unroll(settings, weights, state, inputs, rule)
    learning = [map_ for map_ in weights if settings.eta.get(map_)]
    assert all((weights[map_] - start[map_]).abs().max() > 1e-3 for map_ in learning)
    for model in range(2):
        assert_equal(run_reference(settings, start, inputs, model), weights, rule, state, trace, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["track", "remap", "track_tuned", "latents"])
def test_10_000_steps_in_chunks(name):
    steps, chunk = 10_000, 2_000
    settings, weights, state, inputs = world(name, steps)
    start = copies(weights)
    rule, traces = LocalPlasticity.of(settings, weights), []
    for first in range(0, steps, chunk):
        state, trace = native.unroll(settings, weights, state, part(inputs, first, first + chunk), rule)
        traces.append(trace)
    whole = dynamics.Trace(*(torch.cat(stream) for stream in zip(*traces, strict=True)))
    assert state.step == steps
    assert_equal(run_reference(settings, start, inputs), weights, rule, state, whole, 0)


@pytest.mark.parametrize(
    ("hpc", "mec"), [(0.5, 0.5), ("wake", "sleep"), ("sleep", "theta"), ("shuffled", 0.25)]
)
def test_other_gates(hpc, mec):
    from lightning_plasticity.hippocampus.gate import Gate

    settings, weights, state, inputs = world("track", 48)
    inputs = inputs._replace(sleep=Gate(4, 4, hpc=hpc, mec=mec).fractions(0, 48))
    start = copies(weights)
    for unroll in (dynamics.unroll, native.unroll):
        mine = copies(start)
        rule = LocalPlasticity.of(settings, mine)
        learn = rule.accumulate if unroll is dynamics.unroll else rule
        after, trace = unroll(settings, mine, state, inputs, learn)
        assert_equal(run_reference(settings, start, inputs), mine, rule, after, trace, 0)


def test_decay_of_weights():
    changes = {"l1": {"hpc_apical": 0.01}, "l2": {"mec_recurrent": 0.02, "mec_left": 0.03}}
    settings, weights, state, inputs = world("track", 48, **changes)
    start = copies(weights)
    for unroll in (dynamics.unroll, native.unroll):
        mine = copies(start)
        rule = LocalPlasticity.of(settings, mine)
        learn = rule.accumulate if unroll is dynamics.unroll else rule
        after, trace = unroll(settings, mine, state, inputs, learn)
        assert_equal(run_reference(settings, start, inputs), mine, rule, after, trace, 0)
