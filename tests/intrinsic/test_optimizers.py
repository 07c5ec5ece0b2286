import pytest
import torch

from lightning_plasticity.intrinsic import CircuitPlasticity, ExpectationMaximization, circuit, em


@pytest.fixture
def neurons(example):
    return circuit.Circuit(*(part.clone() for part in circuit.Circuit.of(example.parameters)))


def test_a_step_changes_the_circuit_in_place_as_the_pure_rule_does(neurons, stimuli):
    optimizer = CircuitPlasticity(neurons, lr=0.1, decay=100.0)
    drive = circuit.drive(stimuli[:50], neurons, 0.1)
    expected = circuit.apply_drive(neurons, drive, 0.1)
    assert optimizer.step(lambda: drive) is drive
    assert all(torch.equal(a, b) for a, b in zip(neurons, expected, strict=True))
    assert optimizer.rate == pytest.approx(0.1 / 1.5)


def test_state_goes_on_where_it_stopped_and_schedulers_scale_the_rate(neurons, stimuli):
    optimizer = CircuitPlasticity(neurons)
    optimizer.step(lambda: circuit.drive(stimuli[:50], neurons, optimizer.rate))
    other = CircuitPlasticity(neurons)
    other.load_state_dict(optimizer.state_dict())
    assert other.rate == optimizer.rate == pytest.approx(0.02 / (1 + 50 / 4000))
    scheduler = torch.optim.lr_scheduler.StepLR(other, step_size=1, gamma=0.5)
    before = other.rate
    other.step(lambda: circuit.drive(stimuli[:1], neurons, 1e-9))
    scheduler.step()
    assert other.rate == pytest.approx(before / 2, rel=1e-3)


def test_an_m_step_as_a_step(example, stimuli):
    params = type(example.parameters)(*(part.clone() for part in example.parameters))
    sums = em.e_step(stimuli, params)
    expected = em.m_step(sums, params)
    ExpectationMaximization(params).step(lambda: sums)
    assert all(torch.equal(a, b) for a, b in zip(params, expected, strict=True))


@pytest.mark.parametrize("optimizer", [CircuitPlasticity, ExpectationMaximization])
def test_misuse_is_refused(optimizer, neurons):
    with pytest.raises(ValueError, match=r"must be weights \[C, D\]"):
        optimizer([torch.ones(2, 3), torch.ones(2), torch.ones(2)])
    with pytest.raises(ValueError, match="needs a closure"):
        optimizer(neurons).step()
    with pytest.raises(ValueError, match="returned float"):
        optimizer(neurons).step(lambda: 1.0)


@pytest.mark.parametrize("setting", [{"lr": 0.0}, {"lr": 1.0}, {"decay": 0.0}])
def test_rates_out_of_range_are_refused(setting, neurons):
    with pytest.raises(ValueError, match=next(iter(setting))):
        CircuitPlasticity(neurons, **setting)
