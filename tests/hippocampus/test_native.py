"""The compiled kernel: where it runs, where it does not, and that it equals the plain engine."""

import subprocess

import pytest
import torch

from lightning_plasticity.hippocampus import HippocampalFormation, dynamics, native
from lightning_plasticity.hippocampus.plasticity import LocalPlasticity
from tests.hippocampus.worlds import copies, part, world


@pytest.fixture
def forget():
    """Builds the kernel anew in this test, and again in the next."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def both(name, steps=80, models=3, dtype=torch.float64, learn=True):
    settings, weights, state, inputs = world(name, steps, models, dtype=dtype)
    eager, compiled = copies(weights), copies(weights)
    rules = [LocalPlasticity.of(settings, maps) for maps in (eager, compiled)]
    slow = dynamics.unroll(settings, eager, state, inputs, rules[0].accumulate if learn else None)
    fast = native.unroll(settings, compiled, state, inputs, rules[1] if learn else None)
    return weights, eager, compiled, rules, slow, fast


@pytest.mark.parametrize("name", ["track", "track_tuned", "latents"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_equals_the_plain_engine(name, dtype, tolerance):
    _, eager, compiled, rules, slow, fast = both(name, dtype=dtype)
    for key, weight in eager.items():
        torch.testing.assert_close(compiled[key], weight, atol=tolerance, rtol=0)
        torch.testing.assert_close(rules[1].induction(key), rules[0].induction(key), atol=tolerance, rtol=0)
    for one, other in zip(slow[1], fast[1], strict=True):
        torch.testing.assert_close(other, one, atol=tolerance, rtol=0)
    for key, tensor in slow[0].tensors().items():
        torch.testing.assert_close(fast[0].tensors()[key], tensor, atol=tolerance, rtol=0)


def test_without_a_rule_weights_stand_still():
    weights, eager, compiled, _, slow, fast = both("track_tuned", learn=False)
    for key, weight in weights.items():
        assert torch.equal(eager[key], weight)
        assert torch.equal(compiled[key], weight)
    torch.testing.assert_close(fast[1].g, slow[1].g, atol=1e-12, rtol=0)


def test_the_state_before_is_left_alone_and_threads_change_nothing():
    settings, weights, state, inputs = world("track", 40, models=4)
    before = state.map(torch.clone)
    found = []
    for threads in (1, 2):
        mine, old = copies(weights), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            native.unroll(settings, mine, state, inputs, LocalPlasticity.of(settings, mine))
        finally:
            torch.set_num_threads(old)
        found.append(mine)
    assert all(torch.equal(found[0][name], found[1][name]) for name in weights)
    assert all(torch.equal(before.tensors()[name], tensor) for name, tensor in state.tensors().items())


def test_chunks_are_no_matter_but_for_rounding():
    settings, weights, state, inputs = world("track_tuned", 64)
    whole, pieces = copies(weights), copies(weights)
    native.unroll(settings, whole, state, inputs, LocalPlasticity.of(settings, whole))
    rule = LocalPlasticity.of(settings, pieces)
    for first in range(0, 64, 8):
        state, _ = native.unroll(settings, pieces, state, part(inputs, first, first + 8), rule)
    for name, weight in whole.items():
        torch.testing.assert_close(pieces[name], weight, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("forget")
def test_goes_on_without_a_compiler(monkeypatch):
    monkeypatch.setattr(native, "find_compiler", lambda: None)
    model = HippocampalFormation("track_tuned")
    chunk = {name: torch.zeros(8, 1, 1) for name in ("position", "velocity", "coming")}
    state, _ = model.run(chunk, model.state, model.gate)
    assert state.step == 8
    model.engine = "native"
    with pytest.raises(ValueError, match="no working C\\+\\+ compiler"):
        model.run(chunk, model.state, model.gate)


@pytest.mark.usefixtures("forget")
def test_goes_on_with_a_compiler_that_fails(monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    assert native.find_compiler() == str(broken)
    assert native.library() is None


@pytest.mark.usefixtures("forget")
def test_compiles_once(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    runs, run = [], subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda *args, **options: runs.append(args) or run(*args, **options)
    )
    assert native.library() is not None
    native.library.cache_clear()
    assert native.library() is not None
    assert len(runs) == 1
    assert len(list(tmp_path.rglob("*.so"))) == 1


def test_says_why_not():
    settings, weights, state, inputs = world("track", 8, agents=2)
    with pytest.raises(ValueError, match="2 agents share a model"):
        native.unroll(settings, weights, state, inputs)
    settings, weights, state, inputs = world("track", 8, dtype=torch.bfloat16)
    assert "bfloat16" in native.why_not(weights, state)
