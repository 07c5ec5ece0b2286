"""Edges, outliers and evidence against brute force, simulation and the paper's table with its factor N."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from lightning_plasticity.hopfield import detectability, marchenko_pastur_edge
from lightning_plasticity.hopfield.spectrum import (
    evidence,
    find_outliers,
    magnetisation,
    noise_level,
    signal_strength,
)


def test_one_group_is_marchenko_pastur():
    assert marchenko_pastur_edge(400, 100, noise=0.36) == pytest.approx(0.36 / 400 * 9, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 500), st.floats(0.05, 1.0), st.floats(0.1, 1.0)), min_size=1, max_size=5
    )
)
def test_groups_are_silverstein_s_edge(groups):
    size, noise, weight = (np.array(column, dtype=float) for column in zip(*groups, strict=True))
    weight = weight / weight.sum()
    t = weight * noise / size

    def value(u):
        return 1 / u + np.sum(size / 300 * t / (1 - t * u))

    limit = 1 / t.max()
    found = minimize_scalar(value, bounds=(limit * 1e-6, limit * (1 - 1e-9)), method="bounded",
                            options={"xatol": limit * 1e-10})  # fmt: skip
    ours = marchenko_pastur_edge(300, size.tolist(), noise.tolist(), weight.tolist())
    assert ours == pytest.approx(found.fun, rel=1e-4)


def test_the_edge_of_unequal_qualities_against_simulation():
    """A large clean client and two small noisy ones: the plain edge is far off, the grouped one is not."""
    rng, neurons = np.random.default_rng(0), 600
    sizes, noise, weights = [600, 60, 60], [0.1, 1.0, 1.0], [1 / 3, 1 / 3, 1 / 3]
    operator = sum(
        w * s2 * g.T @ g / (neurons * m)
        for m, s2, w in zip(sizes, noise, weights, strict=True)
        for g in [rng.standard_normal((m, neurons))]
    )
    largest = np.linalg.eigvalsh(operator)[-1]
    assert marchenko_pastur_edge(neurons, sizes, noise, weights) == pytest.approx(largest, rel=0.03)
    plain = marchenko_pastur_edge(neurons, sum(sizes), float(np.mean(noise)))
    assert abs(plain / largest - 1) > 0.3


@pytest.mark.parametrize(("neurons", "examples"), [(0, 10), (10, 0)])
def test_an_edge_needs_neurons_and_examples(neurons, examples):
    with pytest.raises(ValueError, match="needs both"):
        marchenko_pastur_edge(neurons, examples)


def test_theory_with_its_factor_n_against_the_spectrum():
    """N = M = 400, r = .9, shares in the ratio .95 : .5 : .05, averaged over batches."""
    shares = np.array([0.95, 0.5, 0.05]) / 1.5
    eigenvalues, overlaps = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        archetypes = rng.choice([-1.0, 1.0], (3, 400))
        counts = np.round(shares * 400).astype(int)
        x = np.repeat(archetypes, counts, 0)
        x = x * np.where(rng.random(x.shape) < 0.05, -1, 1)
        values, vectors = np.linalg.eigh(x.T @ x / x.size)
        eigenvalues.append(values[::-1][:3])
        overlaps.append([(vectors[:, -1 - k] @ archetypes[k]) ** 2 / 400 for k in range(3)])
    theory = [detectability(0.9, float(share), 400, 400) for share in shares]
    assert np.mean(eigenvalues, 0) == pytest.approx([d.eigenvalue for d in theory], rel=0.05)
    assert np.mean(overlaps, 0) == pytest.approx([d.overlap for d in theory], abs=0.02)


def test_an_archetype_below_the_threshold_is_invisible():
    needed = detectability(0.3, 0.05, 1, 400).examples_needed
    assert not detectability(0.3, 0.05, 0.9 * needed, 400).visible
    assert detectability(0.3, 0.05, 1.1 * needed, 400).visible


@pytest.mark.parametrize("arguments", [(1.0, 0.5, 10, 10), (0.5, 0.0, 10, 10), (0.5, 0.5, 0, 10)])
def test_detectability_checks_its_arguments(arguments):
    with pytest.raises(ValueError, match=r"must lie in|needs both"):
        detectability(*arguments)


@given(st.floats(0.01, 50), st.floats(0.2, 5), st.floats(0.05, 1))
def test_signal_strength_inverts_the_outlier_formula(kappa, q, s2):
    examples, neurons = 400 / q, 400
    if kappa <= 1.01 * math.sqrt(q):
        return
    eigenvalue = torch.tensor([s2 * (1 + kappa) * (1 + q / kappa) / neurons], dtype=torch.float64)
    assert float(signal_strength(eigenvalue, s2, neurons, examples)) == pytest.approx(kappa, rel=1e-6)
    gamma = (1 - q / kappa**2) / (1 + q / kappa)
    ours = float(evidence(eigenvalue, s2, neurons, examples))
    assert ours == pytest.approx(gamma / (1 - gamma), rel=1e-5)


def test_evidence_at_the_gate_means_an_overlap_of_95_per_cent():
    assert float(magnetisation(torch.tensor(3.84))) == pytest.approx(0.95, abs=1e-3)


def test_noise_keeps_what_lies_inside_the_outliers():
    """K = 20 archetypes, 100 examples: taking whole eigenvalues out leaves too little noise."""
    rng = np.random.default_rng(1)
    archetypes = rng.choice([-1.0, 1.0], (20, 400))
    x = archetypes[rng.integers(0, 20, 100)] * np.where(rng.random((100, 400)) < 0.1, -1, 1)
    values = np.linalg.eigvalsh(x.T @ x / x.size)[::-1].copy()
    ours = noise_level(torch.as_tensor(values[:20]), 1.0, 400, 100)
    assert ours == pytest.approx(1 - 0.8**2, rel=0.05)
    assert 400 * (1 - values[:20].sum()) / 380 < 0.85 * ours


@pytest.mark.parametrize(("archetypes", "examples"), [(0, 60), (1, 60), (3, 33), (6, 99), (20, 400)])
def test_the_number_of_archetypes_is_found(archetypes, examples):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        if archetypes:
            x = rng.choice([-1.0, 1.0], (archetypes, 400))[np.arange(examples) % archetypes]
            x = x * np.where(rng.random(x.shape) < 0.1, -1, 1)
        else:
            x = rng.choice([-1.0, 1.0], (examples, 400))
        values = np.linalg.eigvalsh(x.T @ x / x.size)[::-1].copy()
        bulk = find_outliers(torch.as_tensor(values), 400, torch.tensor([examples]), most=examples // 2)
        assert bulk.outliers == archetypes, seed
