import math

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.intrinsic import PoissonGammaMixture
from lightning_plasticity.intrinsic.distribution import (
    Parameters,
    class_intensity,
    digamma_and_slope,
    evidence,
    log_gamma,
    log_joint,
    log_negative_binomial,
    marginal_intensity,
    relative_intensity,
    sample,
)

MEANS = [1e-3, 1e-1, 1.0, 30.0, 1e3, 1e6]
SHAPES = [1e-2, 1.0, 20.0, 1e4, 1e6]


def mixture(weights, mean, shape, prior):
    return Parameters(*(torch.tensor(part, dtype=torch.float64) for part in (weights, mean, shape, prior)))


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("shape", SHAPES)
def test_log_joint_equals_scipy(mean, shape):
    rng = np.random.default_rng(0)
    weights, prior = rng.dirichlet(np.ones(8), size=2), np.array([0.3, 0.7])
    gains = rng.gamma(shape, mean / shape, size=6)
    stimuli = np.concatenate([rng.poisson(gains[:, None] * weights[0]), np.zeros((1, 8), dtype=int)])
    total = stimuli.sum(1)
    expected = np.stack(
        [
            np.log(prior[c])
            + scipy.stats.nbinom.logpmf(total, shape, shape / (shape + mean))
            + scipy.stats.multinomial.logpmf(stimuli, total, weights[c])
            for c in range(2)
        ],
        axis=1,
    )
    model = PoissonGammaMixture(2, 8)
    model.parameters = mixture(weights, [mean] * 2, [shape] * 2, prior)
    np.testing.assert_allclose(model.log_joint(stimuli).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(model.score_samples(stimuli).numpy(), np.logaddexp(*expected.T), rtol=1e-6)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("shape", SHAPES)
def test_negative_binomial_to_50_digits(mean, shape):
    with mpmath.workdps(50):
        m, a = mpmath.mpf(mean), mpmath.mpf(shape)
        counts = [0, 1, 7, 100, 10**6]
        expected = [
            mpmath.loggamma(s + a) - mpmath.loggamma(a) - mpmath.loggamma(s + 1)
            - a * mpmath.log1p(m / a) - s * mpmath.log1p(a / m)
            for s in counts
        ]  # fmt: skip
        expected = [float(value) for value in expected]
    parameters = torch.tensor([[mean], [shape]], dtype=torch.float64)
    found = log_negative_binomial(torch.tensor(counts), *parameters)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-9, atol=1e-8)


def test_infinite_shape_is_poisson_and_the_limit_of_large_shapes():
    counts, mean = torch.arange(80), torch.tensor([25.0], dtype=torch.float64)
    poisson = scipy.stats.poisson.logpmf(counts.numpy(), 25.0)
    found = log_negative_binomial(counts, mean, torch.tensor([torch.inf]))[:, 0]
    np.testing.assert_allclose(found.numpy(), poisson, rtol=1e-12)
    near = log_negative_binomial(counts, mean, torch.tensor([1e9], dtype=torch.float64))[:, 0]
    np.testing.assert_allclose(near.numpy(), poisson, rtol=1e-5)


def test_finite_and_infinite_shapes_side_by_side():
    found = log_negative_binomial(torch.tensor([3]), torch.tensor([4.0, 4.0]), torch.tensor([2.0, torch.inf]))
    expected = [scipy.stats.nbinom.logpmf(3, 2, 2 / 6), scipy.stats.poisson.logpmf(3, 4)]
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-12)


@given(st.floats(1e-2, 1e8))
def test_log_gamma_equals_the_c_library(x):
    # beside a value below the switch, and alone
    value = torch.tensor([x], dtype=torch.float64)
    expected = math.lgamma(x)
    assert float(log_gamma(value)) == pytest.approx(expected, rel=1e-13, abs=1e-13)
    assert float(log_gamma(torch.cat([value, value.new_ones(1)]))[0]) == pytest.approx(
        expected, rel=1e-13, abs=1e-13
    )


@given(st.floats(1e-2, 1e8))
def test_digamma_and_its_slope_equal_scipys(x):
    value = torch.tensor([x], dtype=torch.float64)
    for found in (digamma_and_slope(value), digamma_and_slope(torch.cat([value, value.new_ones(1)]))):
        assert float(found[0][0]) == pytest.approx(float(scipy.special.digamma(x)), rel=1e-11, abs=1e-11)
        assert float(found[1][0]) == pytest.approx(float(scipy.special.polygamma(1, x)), rel=1e-8)


def test_log_joint_sums_to_one_over_all_stimuli():
    params = mixture([[0.7, 0.3], [0.2, 0.8]], [2.0, 3.0], [2.0, 5.0], [0.6, 0.4])
    grid = torch.cartesian_prod(torch.arange(80), torch.arange(80)).double()
    assert float(log_joint(grid, params).exp().sum()) == pytest.approx(1, abs=1e-8)


def test_without_intensity_it_is_the_direction_given_the_energy():
    params = mixture([[0.7, 0.3], [0.2, 0.8]], [2.0, 300.0], [2.0, 5.0], [0.6, 0.4])
    found = log_joint(torch.tensor([[3.0, 4.0]]), params, "none")[0]
    expected = [
        np.log(p) + scipy.stats.multinomial.logpmf([3, 4], 7, w)
        for p, w in ((0.6, [0.7, 0.3]), (0.4, [0.2, 0.8]))
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_float32_evidence_is_close_to_float64(example, stimuli):
    exact = evidence(stimuli, example.parameters)
    assert evidence(stimuli.float(), example.parameters).dtype == torch.float32
    torch.testing.assert_close(
        evidence(stimuli.float(), example.parameters).double(), exact, rtol=1e-5, atol=1e-3
    )


def test_an_empty_stimulus_speaks_of_intensity_alone():
    params = mixture([[0.7, 0.3], [0.2, 0.8]], [2.0, 9.0], [2.0, 5.0], [0.5, 0.5])
    found = evidence(torch.zeros(1, 2, dtype=torch.float64), params)[0]
    expected = [math.log(0.5) + scipy.stats.nbinom.logpmf(0, a, a / (a + m)) for m, a in ((2, 2), (9, 5))]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_the_ranking_of_directions_does_not_depend_on_the_unit_but_confidence_does():
    params = mixture([[0.7, 0.3], [0.2, 0.8]], [9.0, 9.0], [5.0, 5.0], [0.5, 0.5])
    stimuli = torch.tensor([[5.0, 3.0], [3.0, 8.0]])
    once = evidence(stimuli, params).softmax(1)
    tenfold = evidence(10 * stimuli, params._replace(mean=10 * params.mean)).softmax(1)
    assert (once.argmax(1) == tenfold.argmax(1)).all()
    assert (tenfold.max(1).values > once.max(1).values).all()


@settings(max_examples=50)
@given(st.floats(0.5, 500), st.floats(0.1, 200), st.integers(0, 1000))
def test_posterior_mean_lies_between_prior_mean_and_energy(mean, shape, energy):
    found = class_intensity(torch.tensor([energy]), mixture([[1.0]], [mean], [shape], [1.0]))
    low, high = sorted((mean, float(energy)))
    assert low - 1e-9 <= float(found.mean) <= high + 1e-9
    assert float(found.map) == pytest.approx(max(shape + energy - 1, 0) / (shape / mean + 1))
    assert float(found.mean) == pytest.approx((shape + energy) / (shape / mean + 1))


def test_without_spread_the_intensity_is_the_class_mean():
    found = class_intensity(torch.tensor([3.0, 90.0]), mixture([[1.0]], [20.0], [torch.inf], [1.0]))
    assert found.mean.flatten().tolist() == [20.0, 20.0]
    assert found.map.flatten().tolist() == [20.0, 20.0]


def test_averaged_mean_equals_monte_carlo():
    params = mixture([[0.5, 0.5], [0.5, 0.5]], [20.0, 60.0], [4.0, 8.0], [0.5, 0.5])
    stimuli, _, gains = sample(params, 400_000, torch.Generator().manual_seed(0))
    chosen = gains[stimuli.sum(1) == 40]
    posterior = evidence(torch.tensor([[20.0, 20.0]]).double(), params).softmax(1)
    found = marginal_intensity(torch.tensor([40.0]), posterior, params)
    assert len(chosen) > 3000
    assert float(found.mean) == pytest.approx(
        float(chosen.mean()), abs=4 * float(chosen.std()) / len(chosen) ** 0.5
    )


@pytest.mark.parametrize(("energy", "share"), [(40, 0.5), (40, 0.9), (5, 0.3), (0, 0.5), (200, 0.02)])
def test_averaged_mode_is_the_highest_point_of_the_density(energy, share):
    params = mixture([[1.0], [1.0]], [10.0, 200.0], [3.0, 30.0], [0.5, 0.5])
    posterior = torch.tensor([[share, 1 - share]], dtype=torch.float64)
    found = marginal_intensity(torch.tensor([float(energy)]), posterior, params)
    grid = np.linspace(1e-3, 300, 300_001)
    density = sum(
        s * scipy.stats.gamma.pdf(grid, a + energy, scale=1 / (a / m + 1))
        for s, m, a in ((share, 10.0, 3.0), (1 - share, 200.0, 30.0))
    )
    assert float(found.map) == pytest.approx(grid[density.argmax()], abs=2e-3)


def test_relative_intensity_is_a_standard_score():
    params = mixture([[1.0], [1.0]], [100.0, 100.0], [torch.inf, 4.0], [0.5, 0.5])
    found = relative_intensity(torch.tensor([120.0]), params)
    np.testing.assert_allclose(found.numpy(), [[2.0, 20 / math.sqrt(100 + 2500)]], rtol=1e-12)


def test_samples_have_the_moments_of_the_model():
    params = mixture([[0.25, 0.75]], [50.0], [5.0], [1.0])
    stimuli, classes, gains = sample(params, 100_000, torch.Generator().manual_seed(1))
    assert (classes == 0).all()
    assert float(gains.mean()) == pytest.approx(50, rel=0.01)
    assert float(stimuli.sum(1).var()) == pytest.approx(50 + 50**2 / 5, rel=0.03)
    assert float(stimuli[:, 0].mean()) == pytest.approx(12.5, rel=0.02)
    again = sample(params, 100_000, torch.Generator().manual_seed(1))
    assert torch.equal(stimuli, again[0])


def test_samples_without_spread_are_poisson():
    params = mixture([[0.5, 0.5]], [50.0], [torch.inf], [1.0])
    stimuli, _, gains = sample(params, 50_000, torch.Generator().manual_seed(1))
    assert gains.unique().tolist() == [50.0]
    assert float(stimuli.sum(1).var()) == pytest.approx(50, rel=0.03)
