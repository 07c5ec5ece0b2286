"""The local rule by hand, its identities, and the optimizer around it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.hippocampus.plasticity import LocalPlasticity, hidden_weights, learn_

DOUBLE = {"dtype": torch.float64}


def one(value):
    return torch.full((1, 1, 1), float(value), **DOUBLE)


def test_two_steps_by_hand():
    weight, induction = one(1.0), one(0.0)
    learn_(weight, induction, one(2.0), one(3.0), eta=0.1, trace_rate=0.25)
    assert float(induction) == pytest.approx(1.5)  # 0.25 * 2 * 3
    assert float(weight) == pytest.approx(1.15)
    learn_(weight, induction, one(0.0), one(3.0), eta=0.1, trace_rate=0.25)  # the induction leaks on
    assert float(induction) == pytest.approx(1.125)
    assert float(weight) == pytest.approx(1.2625)


def test_decay_by_hand():
    weight, induction = one(-2.0), one(0.0)
    learn_(weight, induction, one(0.0), one(0.0), eta=0.1, trace_rate=0.25, l1=0.5, l2=0.25)
    assert float(weight) == pytest.approx(-2 + 0.1 * (0.25 * 2 + 0.5))


def test_a_frozen_map_stands_still():
    weight, induction = one(1.0), one(4.0)
    learn_(weight, induction, one(1.0), one(1.0), eta=0.0, trace_rate=0.25, l2=1.0)
    assert float(weight) == 1.0
    assert float(induction) == 4.0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.001, 0.5), st.floats(0.05, 1.0))
def test_hidden_weights_follow_a_plain_delta_rule(seed, eta, trace_rate):
    """U <- U + eta delta I^T;  W <- W + a (U - W)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 3, 4, generator=generator, **DOUBLE)
    induction, hidden, follower = torch.zeros_like(weight), weight.clone(), weight.clone()
    for _ in range(20):
        delta = torch.randn(2, 3, 1, generator=generator, **DOUBLE)
        presynaptic = torch.randn(2, 4, 1, generator=generator, **DOUBLE)
        learn_(weight, induction, delta, presynaptic, eta=eta, trace_rate=trace_rate)
        hidden += eta * delta @ presynaptic.transpose(1, 2)
        follower += trace_rate * (hidden - follower)
        torch.testing.assert_close(follower, weight, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            hidden_weights(weight, induction, eta, trace_rate), hidden, rtol=1e-9, atol=1e-9
        )


def test_agents_are_averaged_or_summed():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(1, 3, 5, generator=generator, **DOUBLE)
    presynaptic = torch.randn(1, 4, 5, generator=generator, **DOUBLE)
    found = {}
    for reduction in ("mean", "sum"):
        weight = torch.zeros(1, 3, 4, **DOUBLE)
        rule = LocalPlasticity({"w": weight}, 0.1, tau=0.1, dt=0.025, reduction=reduction)
        rule.accumulate("w", delta, presynaptic)
        found[reduction] = weight
    slow = sum(torch.outer(delta[0, :, b], presynaptic[0, :, b]) for b in range(5))
    torch.testing.assert_close(found["sum"][0], 0.1 * 0.25 * slow)
    torch.testing.assert_close(found["mean"][0], 0.1 * 0.25 * slow / 5)


def test_reducing_every_step_sees_the_mean_of_the_products():
    generator = torch.Generator().manual_seed(0)
    parts = [[torch.randn(1, n, 1, generator=generator, **DOUBLE) for n in (3, 4)] for _ in range(2)]
    together = torch.zeros(1, 3, 4, **DOUBLE)
    rule = LocalPlasticity({"w": together}, 0.1)
    rule.accumulate("w", *(torch.cat(pair, 2) for pair in zip(*parts, strict=True)))
    apart = torch.zeros(1, 3, 4, **DOUBLE)
    other = parts[1][0] @ parts[1][1].transpose(1, 2)
    rule = LocalPlasticity({"w": apart}, 0.1)
    rule.reduce = lambda mine: (mine + other) / 2
    rule.accumulate("w", *parts[0])
    torch.testing.assert_close(apart, together)


def test_no_memory_without_tau():
    weight = torch.zeros(1, 1, 1, **DOUBLE)
    rule = LocalPlasticity({"w": weight}, 0.1, tau=0.0)
    rule.accumulate("w", one(2.0), one(3.0))
    rule.accumulate("w", one(0.0), one(3.0))
    assert float(rule.induction("w")) == 0.0
    assert float(weight) == pytest.approx(0.6)


def test_state_dict_goes_on_and_loads_safely(tmp_path):
    weight = torch.zeros(1, 2, 2)
    rule = LocalPlasticity({"w": weight}, 0.1)
    rule.accumulate("w", torch.ones(1, 2, 1), torch.ones(1, 2, 1))
    torch.save(rule.state_dict(), tmp_path / "rule.pt")
    again = LocalPlasticity({"w": torch.zeros(1, 2, 2)}, 0.1)
    again.load_state_dict(torch.load(tmp_path / "rule.pt", weights_only=True))
    assert torch.equal(again.induction("w"), rule.induction("w"))
    assert float(rule.induction("w").sum()) == 1.0


def test_a_step_closes_a_chunk_and_changes_nothing():
    weight = torch.ones(1, 1, 1)
    rule = LocalPlasticity({"w": weight}, 0.1)
    assert rule.step() is None
    assert rule.step(lambda: 3) == 3
    assert float(weight) == 1.0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"lr": {"v": 0.1}}, "lr="),
        ({"lr": -0.1}, "lr="),
        ({"l2": {"v": 0.1}}, "l2="),
        ({"l1": {"w": -1.0}}, "l1="),
        ({"dt": 0.0}, "dt="),
        ({"tau": -1.0}, "tau="),
        ({"reduction": "max"}, "reduction="),
    ],
)
def test_bad_settings(options, name):
    with pytest.raises(ValueError, match=name):
        LocalPlasticity({"w": torch.zeros(1, 1, 1)}, **options)
