import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.intrinsic import circuit, em, starts
from lightning_plasticity.intrinsic.circuit import Circuit, apply_drive, drive, present
from lightning_plasticity.intrinsic.distribution import evidence


@pytest.fixture
def neurons(example):
    return Circuit.of(example.parameters)


def test_a_stimulus_changes_the_circuit_by_the_rules_as_written(neurons):
    y = np.random.default_rng(0).poisson(4.0, size=16).astype(float)
    found = present(torch.from_numpy(y), neurons, rate=0.02)
    weights, mean, second, prior = (part.numpy() for part in neurons)
    s = evidence(torch.from_numpy(y)[None], neurons.parameters())[0].softmax(0).numpy()
    total, eps, eps_w = y.sum(), 0.02, 0.02 / (prior @ mean)
    expected = [
        [
            [weights[c, d] + eps_w * s[c] * (y[d] - total * weights[c, d]) for d in range(16)]
            for c in range(4)
        ],
        mean + eps * s * (total - mean),
        second + eps * s * (total**2 - second),
        prior + eps * (s - prior),
    ]
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), two, rtol=1e-12)


def test_the_poisson_input_is_the_circuits():
    # I_c = sum_d y_d log W_cd + S log lambda_c - lambda_c, up to what is the same for all neurons
    neurons = Circuit(
        torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.tensor([3.0, 8.0]), torch.ones(2), torch.ones(2) / 2
    )
    y = torch.tensor([2.0, 5.0])
    found = evidence(y[None], neurons.parameters(), "poisson")[0].softmax(0)
    drive_in = y @ neurons.weights.log().T + 7 * neurons.mean.log() - neurons.mean
    torch.testing.assert_close(found, drive_in.softmax(0), rtol=1e-5, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=16, max_size=16), st.floats(1e-4, 0.5))
def test_weights_stay_positive_and_sum_to_one(counts, rate):
    generator = torch.Generator().manual_seed(0)
    neurons = Circuit.of(starts.start(torch.rand(50, 16, generator=generator) * 5, 4, generator))
    found = present(torch.tensor(counts).double(), neurons, rate)
    assert (found.weights > 0).all()
    torch.testing.assert_close(found.weights.sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-14)
    assert all(bool(part.isfinite().all()) for part in found)


@pytest.mark.parametrize("rule", ["moments", "gradient"])
def test_a_batch_of_one_is_a_single_stimulus(neurons, stimuli, rule):
    for y in stimuli[:20]:
        single = present(y, neurons, 0.02, shape_update=rule)
        total = drive(y[None], neurons, 0.02, shape_update=rule)
        batch = apply_drive(neurons, total, 0.02, shape_update=rule)
        for one, two in zip(single, batch, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


def change(old, new):
    return torch.cat([(b - a).flatten() for a, b in zip(old, new, strict=True)])


@pytest.mark.parametrize("rule", ["moments", "gradient"])
def test_a_batch_agrees_with_its_stimuli_one_by_one_to_first_order_in_the_rate(neurons, stimuli, rule):
    errors = []
    for rate in (4e-4, 2e-4, 1e-4):
        single = neurons
        for y in stimuli[:50]:
            single = present(y, single, rate, shape_update=rule)
        total = drive(stimuli[:50], neurons, rate, shape_update=rule)
        batch = apply_drive(neurons, total, rate, shape_update=rule)
        errors.append(
            float((change(neurons, single) - change(neurons, batch)).norm() / change(neurons, single).norm())
        )
    assert errors[-1] < 0.01
    # halving the rate halves the relative error: what differs is of second order
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.1)
    assert errors[2] / errors[1] == pytest.approx(0.5, abs=0.1)


def test_a_batch_agrees_with_single_stimuli_in_expectation(neurons, stimuli):
    """Mean over random batches of 10 of the batch's change: 10 times the mean change by one stimulus."""
    rate = 1e-5
    singles = torch.stack([change(neurons, present(y, neurons, rate)) for y in stimuli[:400]]).mean(0)
    batches = stimuli[:400].view(40, 10, 16)
    together = torch.stack([
        change(neurons, apply_drive(neurons, drive(y, neurons, rate), rate)) for y in batches
    ]).mean(0)  # fmt: skip
    torch.testing.assert_close(together, 10 * singles, rtol=5e-3, atol=1e-9)


def test_the_fixed_point_is_that_of_em(example, stimuli):
    """At EM's solution the mean change of all but the shape vanishes."""
    params = example.parameters
    for _ in range(300):
        params = em.m_step(em.e_step(stimuli, params), params, em.Learning(smoothing=0.0))
    sums = em.e_step(stimuli, params)
    neurons = Circuit(params.weights, params.mean, sums.energy_square / sums.number, params.prior)
    total = drive(stimuli, neurons, 1e-6)
    posterior = evidence(stimuli, params).softmax(1)
    exact = total._replace(
        stimuli=posterior.T @ stimuli,
        energy=posterior.T @ stimuli.sum(1),
        activity=posterior.sum(0),
        energy_square=posterior.T @ stimuli.sum(1).square(),
    )
    after = apply_drive(neurons, exact, 1e-6)
    for one, two in zip(neurons, after, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_the_sum_of_weights_holds_over_100000_steps_in_float32(stimuli):
    generator = torch.Generator().manual_seed(0)
    data = stimuli.float()
    neurons = Circuit(*(part.float() for part in Circuit.of(starts.start(data, 4, generator))))
    order = torch.randint(len(data), (100_000,), generator=generator)
    worst = 0.0
    for step, index in enumerate(order.tolist()):
        warm = step >= circuit.WARMUP
        rate = circuit.learning_rate(step, circuit.RATE, 4000.0)
        neurons = present(data[index], neurons, rate, circuit.stage("nb", warm), learn_prior=warm)
        if step % 1000 == 999:
            worst = max(worst, float((neurons.weights.double().sum(1) - 1).abs().max()))
    assert neurons.weights.dtype == torch.float32
    assert worst < 1e-6


def test_while_neurons_warm_up_they_know_no_spread():
    assert [circuit.stage(kind, warm=False) for kind in ("nb", "poisson", "none")] == [
        "poisson",
        "poisson",
        "none",
    ]
    assert [circuit.stage(kind, warm=True) for kind in ("nb", "poisson", "none")] == ["nb", "poisson", "none"]


def test_the_rate_falls_with_the_stimuli_seen():
    assert circuit.learning_rate(0, 0.02, 4000) == 0.02
    assert circuit.learning_rate(4000, 0.02, 4000) == 0.01


def test_empty_stimuli_leave_the_weights_and_lower_the_means(neurons):
    empty = torch.zeros(3, 16, dtype=torch.float64)
    for after in (present(empty[0], neurons, 0.1), apply_drive(neurons, drive(empty, neurons, 0.1), 0.1)):
        assert torch.equal(after.weights, neurons.weights)
        assert bool((after.mean <= neurons.mean).all())
        assert all(bool(part.isfinite().all()) for part in after)


def test_padding_changes_nothing(neurons, stimuli):
    weight = torch.tensor([1.0, 1.0, 0.0])
    padded = apply_drive(neurons, drive(stimuli[:3], neurons, 0.1, sample_weight=weight), 0.1)
    plain = apply_drive(neurons, drive(stimuli[:2], neurons, 0.1), 0.1)
    for one, two in zip(padded, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-14, atol=1e-14)
