"""Steps of small networks written out by hand; noise; the order of updates."""

import math

import numpy as np
import pytest
import torch

from lightning_plasticity.hippocampus import dynamics
from lightning_plasticity.hippocampus.dynamics import Dendrites, Inputs, State, activate
from lightning_plasticity.hippocampus.settings import Settings

THREE = {"dt": 0.025, "hpc": 3, "mec": 3}


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).view(1, -1, 1)


def by_hand(lag):
    """A network whose rates can be followed in the head, and its state before the step."""
    settings = Settings(**THREE, threshold=0.5, lag=lag)
    eye = torch.eye(3, dtype=torch.float64).unsqueeze(0)
    bias = torch.full((1, 3, 1), 0.1, dtype=torch.float64)
    weights = {
        "hpc_apical": torch.cat([2 * eye, bias], 2),
        "mec_basal": torch.cat([3 * eye, bias], 2),
        "mec_recurrent": 4 * eye,
        "mec_right": 5 * eye,
        "mec_left": -6 * eye,
    }
    before = State(
        column(9.0, 9.0, 9.0), column(0.1, 0.2, 0.0), column(0.0, 0.1, 0.0, 0.05, 0.0, 0.0),
        torch.tensor([[0.3]], dtype=torch.float64), torch.zeros(1, 12, 1, dtype=torch.float64), 7,
    )  # fmt: skip
    return settings, weights, before, column(1.0, 0.5, 0.0), torch.tensor([[-0.4]], dtype=torch.float64)


@pytest.mark.parametrize("lag", [True, False])
def test_a_step_awake(lag):
    settings, weights, before, z, speed = by_hand(lag)
    after, dendrites = dynamics.step(settings, weights, before, z, speed, (0.0, 0.0), None)
    assert torch.equal(after.p, z)
    expected = [0.3, 0.5, 0.1]  # 2 g + 0.1
    torch.testing.assert_close(dendrites.hpc_apical, column(*expected))
    g = [math.tanh(3.1), math.tanh(1.6), math.tanh(0.1)]  # 3 p + 0.1: basal dendrites see the new p
    torch.testing.assert_close(after.g, column(*g))
    # 4 g + 5 right - 6 left of the step before: 0.4 - 0.3, 0.8 + 0.5, 0
    torch.testing.assert_close(dendrites.mec_apical, column(math.tanh(0.1), math.tanh(1.3), 0.0))
    u = 0.3 if lag else -0.4  # the velocity cells change last, or first
    right, left = ([max(0.0, rate + sign * u - 0.5) for rate in g] for sign in (1, -1))
    torch.testing.assert_close(after.c, column(*right, *left))
    assert float(after.u) == -0.4
    assert after.step == 8


def test_a_step_asleep():
    settings, weights, before, z, speed = by_hand(True)
    after, dendrites = dynamics.step(settings, weights, before, z, speed, (1.0, 1.0), None)
    torch.testing.assert_close(after.p, column(0.3, 0.5, 0.1))
    basal = [math.tanh(1.0), math.tanh(1.6), math.tanh(0.4)]  # of the generated p, not of z
    torch.testing.assert_close(dendrites.mec_basal, column(*basal))
    torch.testing.assert_close(after.g, column(math.tanh(0.1), math.tanh(1.3), 0.0))


def test_a_latent_step_has_neither_velocity_nor_bias():
    settings = Settings(
        task="latents", hpc=2, mec=1, activation="linear", bias=False,
        eta={}, initial={}, l2={},
    )  # fmt: skip
    weights = {
        "hpc_apical": torch.tensor([[[2.0], [3.0]]], dtype=torch.float64),
        "mec_basal": torch.tensor([[[1.0, -1.0]]], dtype=torch.float64),
        "mec_recurrent": torch.tensor([[[-0.5]]], dtype=torch.float64),
    }
    before = State.zeros(settings, dtype=torch.float64)
    before.g = column(2.0)
    after, dendrites = dynamics.step(settings, weights, before, column(1.0, 5.0), None, (0.0, 1.0), None)
    assert after.p.flatten().tolist() == [1.0, 5.0]
    assert dendrites.hpc_apical.flatten().tolist() == [4.0, 6.0]
    assert dendrites.mec_basal.flatten().tolist() == [-4.0]
    assert after.g.flatten().tolist() == [-1.0]


def taught(settings, weights, before, after, dendrites):
    told = {}
    dynamics.teach(weights, before, after, dendrites, lambda name, *pair: told.update({name: pair}))
    return told


@pytest.mark.parametrize("sleep", [0.0, 1.0])
def test_the_driving_dendrite_has_nothing_to_learn(sleep):
    settings, weights, before, z, speed = by_hand(True)
    noise = torch.randn(1, 12, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    after, dendrites = dynamics.step(settings, weights, before, z, speed, (sleep, sleep), noise)
    told = taught(settings, weights, before, after, dendrites)
    asleep = {"mec_basal"} if sleep else {"hpc_apical", "mec_recurrent", "mec_right", "mec_left"}
    assert {name for name, (delta, _) in told.items() if delta.any()} == asleep


def test_what_each_map_is_told():
    settings, weights, before, z, speed = by_hand(True)
    after, dendrites = dynamics.step(settings, weights, before, z, speed, (0.0, 0.0), None)
    told = taught(settings, weights, before, after, dendrites)
    torch.testing.assert_close(told["hpc_apical"][0], column(0.7, 0.0, -0.1))
    assert told["hpc_apical"][1].flatten().tolist() == [0.1, 0.2, 0.0, 1.0]
    assert told["mec_basal"][1].flatten().tolist() == [1.0, 0.5, 0.0, 1.0]
    gap = math.tanh(3.1) - math.tanh(0.1)
    slope = 1 - math.tanh(0.1) ** 2
    assert float(told["mec_recurrent"][0][0, 0]) == pytest.approx(gap * slope)
    assert float(told["mec_recurrent"][0][0, 2]) == 0.0  # a dendrite at rest has no slope
    assert told["mec_right"][1].flatten().tolist() == [0.0, 0.1, 0.0]
    assert told["mec_left"][1].flatten().tolist() == [0.05, 0.0, 0.0]
    assert told["mec_left"][0] is told["mec_recurrent"][0]


def test_slope_is_the_derivative():
    potential = torch.linspace(-2, 2, 41, dtype=torch.float64)
    for activation in ("retanh", "linear"):
        settings = Settings(activation=activation)
        _, slope = activate(potential, settings)
        step = 1e-6
        numeric = (activate(potential + step, settings)[0] - activate(potential - step, settings)[0]) / (
            2 * step
        )
        away_from_the_corner = potential.abs() > 1e-3
        torch.testing.assert_close(
            slope[away_from_the_corner], numeric[away_from_the_corner], atol=1e-8, rtol=0
        )


def test_noise_is_an_ornstein_uhlenbeck_process():
    settings = Settings(hpc=40, mec=10, noise=0.01, noise_mec_apical=0.05)
    generator = torch.Generator().manual_seed(0)
    noise, kept = torch.zeros(1, 100, 50), []
    for t in range(1200):
        noise = dynamics.noise_step(noise, torch.randn(1, 100, 50, generator=generator), settings)
        if t > 200:
            kept.append(noise[0])
    values = torch.stack(kept)
    others = torch.cat([values[:, :80], values[:, 90:]], 1)
    assert float(others.std()) == pytest.approx(0.0102, rel=0.02)
    assert float(values[:, 80:90].std()) == pytest.approx(5 * 0.0102, rel=0.04)
    later = (values[12:, :80] * values[:-12, :80]).mean() / values[:, :80].square().mean()
    assert float(later) == pytest.approx((1 - 0.025 / 0.3) ** 12, abs=0.02)


def test_without_noise_there_is_none_at_all():
    settings, weights, before, z, speed = by_hand(True)
    before.noise = torch.ones_like(before.noise)
    quiet, _ = dynamics.step(settings, weights, before, z, speed, (0.0, 0.0), None)
    assert torch.equal(quiet.p, z)
    assert torch.equal(quiet.noise, before.noise)


def test_agents_share_a_model_and_do_not_see_each_other():
    settings, weights, before, z, speed = by_hand(True)
    both = before.map(lambda tensor: torch.cat([tensor, tensor * 0.5], -1))
    inputs = Inputs(
        torch.cat([z, z + 0.1], -1)[None], torch.cat([speed, -speed], -1)[None], torch.zeros(1, 2), None
    )
    after, _ = dynamics.unroll(settings, weights, both, inputs)
    alone, _ = dynamics.unroll(
        settings, weights, before, Inputs(z[None], speed[None], torch.zeros(1, 2), None)
    )
    for name, tensor in alone.tensors().items():
        torch.testing.assert_close(after.tensors()[name][..., :1], tensor, rtol=1e-12, atol=1e-14)


def test_prediction_error_is_a_mean_over_cells_and_agents():
    rates = {name: torch.zeros(1, 2, 2) for name in Dendrites._fields}
    rates["hpc_basal"] = torch.tensor([[[1.0, -1.0], [0.0, 2.0]]])
    rates["mec_apical"] = torch.tensor([[[0.0, 0.0], [0.0, -2.0]]])
    assert dynamics.prediction_errors(Dendrites(**rates)).tolist() == [[1.0, 0.5]]


def test_rest_is_zero():
    state = State.zeros(Settings(), models=2, agents=3)
    assert {name: tuple(tensor.shape) for name, tensor in state.tensors().items()} == {
        "p": (2, 100, 3), "g": (2, 100, 3), "c": (2, 200, 3), "u": (2, 3), "noise": (2, 400, 3)
    }  # fmt: skip
    assert not any(bool(tensor.any()) for tensor in state.tensors().values())
    assert np.isscalar(state.step)
    assert state.step == 0
