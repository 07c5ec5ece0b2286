import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.intrinsic import PoissonGammaMixture, circuit
from lightning_plasticity.intrinsic.distribution import Parameters, log_joint
from lightning_plasticity.intrinsic.em import Learning, e_step, m_step
from lightning_plasticity.intrinsic.shapes import (
    MAX_SHAPE,
    MIN_SHAPE,
    log_gradient,
    minka_step,
    moment_shape,
    second_moment,
)

RULES = [Learning(shape_update="newton"), Learning(shape_update="minka")]


def one_class(energy, shape):
    """Sums and parameters of a single class over one input, whose energies are given."""
    stimuli = torch.as_tensor(energy, dtype=torch.float64).unsqueeze(1)
    params = Parameters(*(torch.tensor(v, dtype=torch.float64) for v in ([[1.0]], [5.0], [shape], [1.0])))
    return stimuli, params


def energies(mean, shape, size=3000):
    """Counts with a Gamma-distributed gain."""
    rng = np.random.default_rng(0)
    return rng.poisson(rng.gamma(shape, mean / shape, size=size))


def best_shape(energy):
    """The likeliest shape, by SciPy."""

    def loss(log_a):
        a = np.exp(log_a)
        return -scipy.stats.nbinom.logpmf(energy, a, a / (a + energy.mean())).sum()

    found = scipy.optimize.minimize_scalar(loss, bounds=(-7, 9.2), method="bounded", options={"xatol": 1e-10})
    return np.exp(found.x)


@pytest.mark.parametrize("learning", RULES)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=5, max_size=40), st.floats(MIN_SHAPE, MAX_SHAPE))
def test_a_shape_step_never_lowers_the_likelihood(learning, energy, shape):
    stimuli, params = one_class(energy, shape)
    if stimuli.sum() == 0:
        return
    after = m_step(e_step(stimuli, params), params, learning)
    with_new_mean = params._replace(mean=after.mean)
    assert float(log_joint(stimuli, after).sum()) >= float(log_joint(stimuli, with_new_mean).sum()) - 1e-8


@pytest.mark.parametrize(("mean", "shape"), [(50, 2.0), (50, 30.0), (5, 1.0), (800, 5.0), (0.5, 0.2)])
@pytest.mark.parametrize("first", [MIN_SHAPE, 1.0, 100.0, MAX_SHAPE])
def test_shape_steps_reach_scipys_maximum(mean, shape, first):
    energy = energies(mean, shape)
    stimuli, params = one_class(energy, first)
    for _ in range(120):
        params = m_step(e_step(stimuli, params), params)
    assert float(params.shape) == pytest.approx(best_shape(energy), rel=1e-4)


@pytest.mark.parametrize(("mean", "shape"), [(50, 2.0), (50, 30.0), (5, 1.0), (800, 5.0)])
@pytest.mark.parametrize("first", [MIN_SHAPE, 1.0, 100.0])
def test_minkas_steps_reach_the_same_maximum_in_more_passes(mean, shape, first):
    energy = energies(mean, shape)
    levels, number = np.unique(energy, return_counts=True)
    m, a = torch.tensor([energy.mean()]), torch.tensor([first], dtype=torch.float64)
    for _ in range(1500):
        rise = scipy.special.digamma(levels + a.numpy()) - scipy.special.digamma(a.numpy())
        a = minka_step(a, m, torch.tensor([(number * rise).sum() / len(energy)]))
    assert float(a) == pytest.approx(best_shape(energy), rel=1e-3)


def test_one_step_of_minka_solves_its_equation():
    """Posterior means of `z` and `log z` by SciPy, the root by SciPy."""
    energy, mean, shape = energies(40, 6.0, 500), 40.0, 3.0
    posterior = scipy.stats.gamma(shape + energy, scale=1 / (shape / energy.mean() + 1))
    log_z = scipy.special.digamma(shape + energy) - np.log(shape / energy.mean() + 1)
    t = np.log(posterior.mean().mean()) - log_z.mean()
    expected = scipy.optimize.brentq(lambda k: np.log(k) - scipy.special.digamma(k) - t, 1e-3, 1e4)
    rise = (scipy.special.digamma(energy + shape) - scipy.special.digamma(shape)).mean()
    mean, shape, rise = (torch.tensor([v], dtype=torch.float64) for v in (energy.mean(), shape, rise))
    assert float(minka_step(shape, mean, rise)) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 300), st.floats(0.5, 500), st.lists(st.integers(0, 900), min_size=1, max_size=9))
def test_the_gradient_is_that_of_scipys_likelihood(shape, mean, energy):
    energy = np.array(energy)

    def score(log_a):
        a = np.exp(log_a)
        return scipy.stats.nbinom.logpmf(energy, a, a / (a + mean)).mean()

    h, log_a = 1e-4, np.log(shape)
    expected = (score(log_a + h) - score(log_a - h)) / (2 * h)
    rise = (scipy.special.digamma(energy + shape) - scipy.special.digamma(shape)).mean()
    found = log_gradient(*(torch.tensor(v, dtype=torch.float64) for v in (shape, mean, energy.mean(), rise)))
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_energies_without_spread_have_the_largest_shape():
    for learning in RULES:
        stimuli, params = one_class([7] * 20, 3.0)
        after = m_step(e_step(stimuli, params), params, learning)
        assert float(after.shape) == MAX_SHAPE
        assert float(after.mean) == 7
    assert float(moment_shape(torch.tensor(7.0), torch.tensor(49.0))) == MAX_SHAPE


def test_moment_shape_inverts_the_moments():
    mean, shape = torch.tensor([4.0, 90.0]), torch.tensor([0.5, 12.0])
    expected = mean.square() * (1 + 1 / shape) + mean
    torch.testing.assert_close(second_moment(mean, shape), expected)
    torch.testing.assert_close(moment_shape(mean, expected), shape)


def test_both_rules_of_em_learn_the_same_mixture(stimuli):
    newton, minka = (
        PoissonGammaMixture(4, 16, tol=1e-8, shape_update=rule).fit(stimuli) for rule in ("newton", "minka")
    )
    assert minka.converged
    assert min(np.diff(minka.history)) >= 0
    assert minka.history[-1] == pytest.approx(newton.history[-1], rel=1e-6)
    assert len(minka.history) > len(newton.history)
    for one, two in zip(minka.parameters[1:3], newton.parameters[1:3], strict=True):
        order, other = minka.mean.argsort(), newton.mean.argsort()
        torch.testing.assert_close(one[order], two[other], rtol=0.02, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_shapes_learned_along_the_gradient_reach_the_likelihood_of_em(stimuli, seed):
    em = PoissonGammaMixture(4, 16, seed).fit(stimuli)
    online, generator = PoissonGammaMixture(4, 16, seed), torch.Generator().manual_seed(seed)
    for _ in range(12):
        for rows in torch.randperm(4000, generator=generator).split(50):
            online.partial_fit(stimuli[rows], shape_update="gradient")
    best = em.score(stimuli)
    assert online.score(stimuli) > best - 0.001 * abs(best)
    pairs = zip(online.shape[online.mean.argsort()], em.shape[em.mean.argsort()], strict=True)
    # means of 60 and 60 may change places
    assert sum(0.6 < float(a / b) < 1.7 for a, b in pairs) >= 2


@pytest.mark.parametrize("truth", [2.0, 30.0])
def test_a_neuron_finds_its_shape_along_the_gradient(truth):
    energy = torch.from_numpy(energies(100, truth, 20_000)).double().unsqueeze(1)
    start = circuit.Circuit(
        *(torch.tensor(v, dtype=torch.float64) for v in ([[1.0]], [60.0], [7200.0], [1.0]))
    )
    for number, y in enumerate(energy.split(20)):
        rate = circuit.learning_rate(20 * number, 0.02, 2000)
        drive = circuit.drive(y, start, rate, shape_update="gradient")
        start = circuit.apply_drive(start, drive, rate, shape_update="gradient")
    assert float(start.mean) == pytest.approx(float(energy.mean()), rel=0.05)
    assert float(start.parameters().shape) == pytest.approx(best_shape(energy.numpy()), rel=0.1)


@pytest.mark.parametrize("energy", [0.0, 1e6])
def test_a_step_along_the_gradient_is_bounded(energy):
    """A neuron without spread that meets a far stronger or an empty stimulus."""
    params = Parameters(
        *(torch.tensor(v, dtype=torch.float64) for v in ([[1.0]], [50.0], [MAX_SHAPE], [1.0]))
    )
    start = circuit.Circuit.of(params)
    after = circuit.present(torch.tensor([energy]).double(), start, 0.05, shape_update="gradient")
    change = (after.parameters().shape / start.parameters().shape).log()
    assert 0 < -float(change) <= circuit.MAX_GAIN + 1e-6


@pytest.mark.parametrize("rule", ["newton", "best"])
def test_rules_that_are_not_the_circuits_are_refused(stimuli, rule):
    with pytest.raises(ValueError, match=f"shape_update='{rule}'"):
        PoissonGammaMixture(4, 16).partial_fit(stimuli[:9], shape_update=rule)
    with pytest.raises(ValueError, match="rate=1"):
        PoissonGammaMixture(4, 16).partial_fit(stimuli[:9], rate=1.0)
