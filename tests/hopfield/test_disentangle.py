"""Archetypes from rotated eigenvectors."""

from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.hopfield import disentangle
from lightning_plasticity.hopfield.disentangle import (
    candidates,
    independent,
    layered_dynamics,
    pure_score,
    purity_threshold,
)


def rotated(archetypes, seed):
    """An orthonormal basis of the archetypes' span, turned at random."""
    rng = np.random.default_rng(seed)
    span = np.linalg.qr(archetypes.T)[0]
    turn = np.linalg.qr(rng.standard_normal((span.shape[1],) * 2))[0]
    return torch.as_tensor(span @ turn)


@pytest.mark.parametrize("method", ["l1", "lam"])
@pytest.mark.parametrize("count", [1, 2, 3, 6, 9])
def test_all_archetypes_come_back_exactly(world, count, method):
    truth = world(count, 300, seed=count)
    found = disentangle(rotated(truth.archetypes, 1), seed=5, method=method)
    assert len(found) == count
    assert truth.overlaps(found) == pytest.approx(np.ones(count))


def test_many_archetypes_of_few_neurons(world):
    truth = world(40, 1000)
    found = disentangle(rotated(truth.archetypes, 0))
    assert len(found) == 40
    assert truth.overlaps(found) == pytest.approx(np.ones(40))


def test_prototypes_that_overlap_strongly(world):
    rng = np.random.default_rng(0)
    common = rng.choice([-1.0, 1.0], 784)
    truth = world(6, 784)
    truth.archetypes = np.stack([common * np.where(rng.random(784) < 0.07, -1, 1) for _ in range(6)])
    assert abs(truth.archetypes[0] @ truth.archetypes[1]) / 784 > 0.7
    assert truth.overlaps(disentangle(rotated(truth.archetypes, 1))) == pytest.approx(np.ones(6))


def test_noisy_eigenvectors_still_tell_archetypes_from_mixtures(world):
    truth = world(5, 500)
    x = truth.examples(150, quality=0.5).numpy()
    vectors = np.linalg.eigh(x.T @ x)[1][:, -5:].copy()
    found = disentangle(torch.as_tensor(vectors))
    assert len(found) == 5
    assert truth.overlaps(found).min() > 0.97


def test_the_seed_decides_and_nothing_else(world):
    v = rotated(world(4, 200).archetypes, 0)
    torch.manual_seed(1)
    first = disentangle(v, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first, disentangle(v, seed=3))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5))
def test_candidates_are_distinct_fixed_points_sorted_by_score(seed, count):
    rng = np.random.default_rng(seed)
    v = rotated(rng.choice([-1.0, 1.0], (count, 120)), seed)
    states, scores = candidates(v, seed)
    z, p = states.double().numpy(), v.numpy() @ v.numpy().T
    assert set(np.unique(z)) <= {-1.0, 1.0}
    np.testing.assert_allclose(np.einsum("in,nm,im->i", z, p, z) / 120, scores.numpy(), atol=1e-9)
    assert (np.diff(scores.numpy()) <= 1e-12).all()
    overlaps = np.abs(z @ z.T) / 120 - 2 * np.eye(len(z))
    assert len(z) == 1 or overlaps.max() < 0.9 + 1e-9


def test_the_climb_never_falls(world):
    v = rotated(world(4, 150).archetypes, 3)
    w = torch.randn(20, 4, generator=torch.manual_seed(0), dtype=torch.float64)
    w = w / w.norm(dim=1, keepdim=True)
    heights = []
    for _ in range(10):
        heights.append((w @ v.T).abs().sum(1))
        w = torch.where(w @ v.T >= 0, 1.0, -1.0).double() @ v
        w = w / w.norm(dim=1, keepdim=True)
    assert all(bool((b >= a - 1e-9).all()) for a, b in pairwise(heights))


def test_layered_dynamics_against_loops(monkeypatch):
    """One update of every layer, written out as the paper does."""
    rng = np.random.default_rng(0)
    state, field = rng.choice([-1.0, 1.0], (2, 3, 30)), rng.choice([-1.0, 1.0], (2, 1, 30))
    kernel = rng.standard_normal((30, 30)) / 30
    kernel = kernel + kernel.T
    monkeypatch.setattr(import_module("lightning_plasticity.hopfield.disentangle"), "LAM_STEPS", 1)
    ours = layered_dynamics(torch.as_tensor(state), torch.as_tensor(field),
                            lambda s: s @ torch.as_tensor(kernel), torch.manual_seed(1))  # fmt: skip
    noise = torch.rand(2, 3, 30, generator=torch.manual_seed(1), dtype=torch.float64).numpy() * 2 - 1
    for b in range(2):
        updated = np.empty((3, 30))
        for a in range(3):
            h = kernel @ state[b, a]
            repulsion = sum(
                (kernel @ state[b, c]) * (state[b, c] @ kernel @ state[b, a]) for c in range(3) if c != a
            )
            h = h - 0.2 / 30 * repulsion + 0.1 * field[b, 0]
            updated[a] = np.where(np.tanh(2.5 * h) + noise[b, a] >= 0, 1, -1)
        np.testing.assert_array_equal(ours[b].numpy(), np.where(updated @ kernel >= 0, 1, -1))


def test_scores_of_archetypes_and_mixtures_are_those_of_simulation():
    rng = np.random.default_rng(0)
    gamma, signs = 0.7, rng.choice([-1.0, 1.0], (400_000, 3))
    noise = rng.standard_normal(400_000) * np.sqrt(1 - gamma)
    pure = np.abs(np.sqrt(gamma) + noise).mean() ** 2
    mixed = np.abs(np.sqrt(gamma) * signs.sum(1) / np.sqrt(3) + noise).mean() ** 2
    at = torch.tensor(gamma, dtype=torch.float64)
    assert float(pure_score(at)) == pytest.approx(pure, rel=3e-3)
    assert float(purity_threshold(at)) == pytest.approx((pure + mixed) / 2, rel=3e-3)


def test_states_in_the_span_of_earlier_ones_are_left_out():
    z = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, -1, -1, -1, -1], [-1] * 8, [1, -1] * 4])
    assert independent(z, most=4) == [0, 1, 3]
    assert independent(z, most=2) == [0, 1]


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(2, 5), torch.full((5, 2), torch.nan)])
def test_bad_eigenvectors_are_refused(bad):
    with pytest.raises(ValueError, match="eigenvectors"):
        disentangle(bad)


def test_no_eigenvectors_no_archetypes():
    assert disentangle(torch.zeros(50, 0)).shape == (0, 50)
