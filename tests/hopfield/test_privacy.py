"""Sensitivity, noise, accounting, and what can be found under noise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.hopfield import (
    DifferentialPrivacy,
    FederationConfig,
    Memory,
    client_step,
    combine,
    federate,
    server_step,
)
from lightning_plasticity.hopfield.federation import current_basis
from lightning_plasticity.hopfield.messages import column
from lightning_plasticity.hopfield.operators import hebbian_product
from lightning_plasticity.hopfield.privacy import (
    clean_eigenvalue,
    noise_to_signal,
    noisy_singular_value,
    sensitivity,
)
from lightning_plasticity.hopfield.safety import REASONS


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30))
def test_no_neighbour_moves_a_sketch_by_more_than_the_sensitivity(seed, examples):
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], (examples, 40))
    other = x.copy()
    other[0] = rng.choice([-1.0, 1.0], 40)
    q = torch.as_tensor(np.linalg.qr(rng.standard_normal((40, 12)))[0])
    moved = hebbian_product(torch.as_tensor(x), q) - hebbian_product(torch.as_tensor(other), q)
    assert float(moved.norm()) <= sensitivity(examples) + 1e-12


def test_the_worst_neighbour_reaches_the_bound():
    a, b = np.ones(4), np.array([1.0, 1, -1, -1])
    moved = (np.outer(a, a) - np.outer(b, b)) / (4 * 1)
    assert np.linalg.norm(moved) == pytest.approx(sensitivity(1))


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-6), (1.0, 1e-5), (8.0, 1e-5)])
def test_the_zcdp_budget_converts_to_epsilon_and_delta(epsilon, delta):
    rho = DifferentialPrivacy(epsilon, delta).rho
    assert rho + 2 * math.sqrt(rho * math.log(1 / delta)) == pytest.approx(epsilon)


def test_all_exchanges_together_spend_the_budget():
    dp = DifferentialPrivacy(2.0, 1e-5, rounds=7)
    each = (sensitivity(50) / dp.noise_std(50)) ** 2 / 2
    assert 2 * 7 * each == pytest.approx(dp.rho)


def test_the_mechanism_keeps_its_promise_on_the_worst_neighbours():
    """The exact privacy profile of the Gaussian mechanism (Balle and Wang, 2018), all exchanges together."""
    from scipy.stats import norm

    dp = DifferentialPrivacy(1.0, 1e-5, rounds=10)
    mu = math.sqrt(2 * 10) * sensitivity(30) / dp.noise_std(30)  # exchanges compose as one Gaussian
    delta = norm.cdf(mu / 2 - 1 / mu) - math.e * norm.cdf(-mu / 2 - 1 / mu)
    assert 0 < delta <= 1e-5


def test_the_noise_that_is_sent_has_the_calibrated_spread(world):
    """Monte Carlo on what a client sends in both exchanges."""
    x = world(2, 100).examples(40)
    dp = DifferentialPrivacy(1.0, 1e-5, rounds=5)
    config = FederationConfig(sketch_rank=32, dp=dp)
    memory = Memory.empty(100, config)
    clean = hebbian_product(x, current_basis(memory, config))
    noise = torch.stack(
        [client_step(x, memory, config, client_id=0)["sketch"] / 40 - clean for _ in range(30)]
    )
    assert float(noise.std()) == pytest.approx(dp.noise_std(40), rel=0.02)
    assert abs(float(noise.mean())) < 4 * dp.noise_std(40) / math.sqrt(noise.numel())
    assert float((noise[0] * noise[1]).mean().abs()) < 0.05 * dp.noise_std(40) ** 2  # never the same twice


def test_nothing_but_the_size_is_told_without_noise(world):
    x = world(2, 100).examples(40)
    config = FederationConfig(dp=DifferentialPrivacy(1.0))
    memory = Memory.empty(100, config)
    row = client_step(x, memory, config, client_id=3)["table"][3]
    other = client_step(world(3, 100, seed=9).examples(40), memory, config, client_id=3)["table"][3]
    assert torch.equal(row, other)
    assert row[column("examples")] == 40


def test_a_spent_budget_ends_what_clients_send(world):
    truth = world(2, 60)
    config = FederationConfig(sketch_rank=16, dp=DifferentialPrivacy(50.0, 1e-5, rounds=2))
    memory = None
    for _ in range(3):
        memory = federate([truth.examples(40)], memory, config)
    assert memory.report.rejected == {0: "the budget of differential privacy is spent"}


@pytest.mark.parametrize("change", ["stretched", "doubled column", "nan", "none"])
def test_a_basis_that_stretches_is_not_answered(world, change):
    """It would make one example weigh more than the noise was made for."""
    truth = world(2, 60)
    config = FederationConfig(sketch_rank=16, dp=DifferentialPrivacy(50.0, 1e-5, rounds=2))
    memory = Memory.empty(60, config)
    sent = [client_step(truth.examples(40), memory, config, client_id=c) for c in range(2)]
    memory = server_step(combine(sent, memory, config), memory, config)
    basis = memory.basis.clone()
    if change == "stretched":
        basis[:, 3] *= 1.01
    elif change == "doubled column":
        basis[:, 1] = basis[:, 0]
    elif change == "nan":
        basis[0, 0] = torch.nan
    sent = client_step(truth.examples(40), replace(memory, basis=basis), config, client_id=0)
    assert bool(sent["sketch"].any()) == (change == "none")
    assert ("orthonormal" in REASONS[int(sent["table"][0, column("rejected")])]) == (change != "none")


def test_a_seed_repeats_the_noise(world):
    x = world(2, 60).examples(40)
    config = FederationConfig(sketch_rank=16, dp=DifferentialPrivacy(1.0, seed=5))
    memory = Memory.empty(60, config)
    first, again = (client_step(x, memory, config, client_id=0)["sketch"] for _ in range(2))
    other = client_step(x, memory, config, client_id=1)["sketch"]
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_singular_values_and_vectors_under_noise_are_those_of_simulation():
    rng, neurons, width, std, eigenvalue = np.random.default_rng(0), 2000, 100, 0.002, 0.1
    u = rng.standard_normal((neurons, 1))
    u /= np.linalg.norm(u)
    v = np.zeros((width, 1))
    v[0] = 1
    noisy = eigenvalue * u @ v.T + std * rng.standard_normal((neurons, width))
    left, singular, _ = np.linalg.svd(noisy, full_matrices=False)
    at = torch.tensor([eigenvalue], dtype=torch.float64)
    assert float(noisy_singular_value(at, std, neurons, width)) == pytest.approx(singular[0], rel=0.02)
    back = clean_eigenvalue(torch.as_tensor(singular), std, neurons, width)
    assert float(back[0]) == pytest.approx(eigenvalue, rel=0.03)
    gamma = float(left[:, 0] @ u[:, 0]) ** 2
    assert float(noise_to_signal(at, std, neurons, width)) == pytest.approx((1 - gamma) / gamma, rel=0.1)


def test_archetypes_are_found_under_noise_where_examples_suffice(world):
    truth = world(3, 200)
    config = FederationConfig(sketch_rank=32, dp=DifferentialPrivacy(4.0, 1e-5, rounds=1, seed=1))
    memory = federate([truth.examples(3000) for _ in range(4)], None, config)
    assert len(memory.archetypes) == 3
    assert truth.overlaps(memory.archetypes).min() > 0.95


def test_the_edge_includes_the_noise(world):
    """Too few examples for the budget: nothing is found, and no false archetype either."""
    truth = world(3, 200)
    for seed in range(5):
        config = FederationConfig(sketch_rank=32, dp=DifferentialPrivacy(1.0, 1e-5, rounds=3, seed=seed))
        memory = None
        for _ in range(3):
            memory = federate([truth.examples(60) for _ in range(3)], memory, config)
            assert memory.outliers == 0
        assert len(memory.archetypes) == 0


@pytest.mark.parametrize("bad", [{"epsilon": 0.0}, {"delta": 1.0}, {"rounds": 0}])
def test_bad_budgets_are_named(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
        DifferentialPrivacy(**{"epsilon": 1.0, **bad})


def test_votes_are_not_private():
    with pytest.raises(ValueError, match="min_support=2 with dp"):
        FederationConfig(min_support=2, dp=DifferentialPrivacy(1.0))
