"""Plasticity: what each rule can and cannot tell apart."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_plasticity.hopfield import FederationConfig, federate
from lightning_plasticity.hopfield.controller import (
    known_directions,
    matches,
    novelty,
    pair_agreement,
    paper_plasticity,
    read_signal,
)
from lightning_plasticity.hopfield.memory import Memory
from lightning_plasticity.hopfield.operators import local_spectrum, shared_basis

CONFIG = FederationConfig(sketch_rank=64)


def remembering(archetypes):
    """A memory of given patterns and nothing else."""
    memory = Memory.empty(archetypes.shape[1], CONFIG)
    return replace(memory, archetypes=torch.as_tensor(archetypes).to(torch.int8),
                   evidence=torch.full((len(archetypes),), 100.0, dtype=torch.float64))  # fmt: skip


def signal(examples, memory, config=CONFIG):
    basis = shared_basis(examples.shape[1], 64, 0, torch.float64, torch.device("cpu"))
    return read_signal(examples, local_spectrum(examples, basis), memory, config)


def h2(p):
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_known_data_move_nothing(world, count):
    truth = world(count, 400, seed=count)
    found = signal(truth.examples(100), remembering(truth.archetypes))
    assert found.gate
    assert found.novelty < 0.01
    assert found.drive < 0.05


def test_new_data_move_most_and_half_new_data_half(world):
    truth = world(6, 400)
    memory = remembering(truth.archetypes[:3])
    new = signal(truth.examples(120, [3, 4, 5]), memory)
    assert new.gate
    assert new.novelty > 0.95
    assert new.drive > 0.99
    half = signal(truth.examples(120), memory)
    assert 0.35 < half.novelty < 0.65
    assert half.drive == pytest.approx(h2(1 - half.novelty / 2))


def test_noise_is_told_from_novelty(world):
    truth = world(3, 400)
    memory = remembering(truth.archetypes)
    found = signal(truth.noise(120), memory)
    assert not found.gate
    assert found.novelty == 0
    assert signal(truth.noise(120), memory, replace(CONFIG, gate=False)).gate


def test_novelty_is_the_share_of_signal_outside_the_memory(world):
    """Against the definition on dense matrices."""
    truth = world(4, 200)
    x = truth.examples(150)
    memory = remembering(truth.archetypes[:2])
    basis = shared_basis(200, 64, 0, torch.float64, torch.device("cpu"))
    spectrum = local_spectrum(x, basis)
    b = np.linalg.qr(truth.archetypes[:2].T)[0]
    outside = np.eye(200) - b @ b.T
    operator = (x.T @ x).numpy() / x.numel()
    excess = np.maximum(np.linalg.eigvalsh(outside @ operator @ outside)[::-1] - spectrum.bulk.edge, 0)
    fresh = excess[: spectrum.bulk.outliers].sum()
    old = np.trace(b.T @ operator @ b) - 2 * spectrum.bulk.noise / 200
    assert novelty(x, spectrum, known_directions(memory)) == pytest.approx(fresh / (fresh + old), rel=1e-6)


def test_the_matched_filter_sees_what_a_spectrum_cannot(world):
    """Quality .2, 30 examples: no outlier, yet more energy along a known archetype than noise has."""
    truth = world(1, 400)
    v = torch.as_tensor(truth.archetypes.T) / 20
    seen = [matches(truth.examples(30, quality=0.2), v) for _ in range(40)]
    noise = [matches(truth.noise(30), v) for _ in range(200)]
    assert np.mean(seen) > 0.95
    assert np.mean(noise) < 0.03
    assert not matches(truth.noise(30), v[:, :0])


def test_agreement_of_pairs_against_dense_matrices(world):
    truth = world(3, 60)
    x = truth.examples(25)
    stored, new = truth.archetypes.T @ truth.archetypes, (x.T @ x).numpy()
    off = ~np.eye(60, dtype=bool) & (new != 0)
    expected = (np.sign(stored[off]) == np.sign(new[off])).mean()
    ours = pair_agreement(x, torch.as_tensor(truth.archetypes), seed=0)
    assert ours == pytest.approx(expected, abs=0.01)


def test_zeros_of_an_even_memory_look_new_to_the_paper_s_count(world):
    """K = 2: half the pairs are exactly 0; counted as disagreement, stationary data have p = 1/2."""
    truth = world(2, 400)
    z, x = torch.as_tensor(truth.archetypes), truth.examples(400)
    assert pair_agreement(x, z, 0, skip_zeros=False) == pytest.approx(0.5, abs=0.03)
    assert pair_agreement(x, z, 0, skip_zeros=True) > 0.99


def test_the_paper_s_rules_take_noise_for_novelty(world):
    """Sheet of faults: p = 1 on known data, 1/2 on all-new data and on noise alike."""
    truth = world(6, 400)
    memory = remembering(truth.archetypes[:3])
    cases = {"known": [0, 1, 2], "new": [3, 4, 5]}
    for rule, expected in {"entropy": (0.0, 1.0), "agreement": (1.0, 0.0)}.items():
        config = replace(CONFIG, controller=rule)
        batches = [truth.examples(400, support) for support in cases.values()] + [truth.noise(400)]
        known, new, noise = (paper_plasticity(x, memory, config) for x in batches)
        assert known == pytest.approx(expected[0], abs=0.05)
        assert new == pytest.approx(expected[1], abs=0.06)
        assert noise == pytest.approx(new, abs=0.06)


def test_an_empty_memory_takes_all(world):
    x = world(2, 50).examples(10)
    for rule in ("entropy", "agreement"):
        assert paper_plasticity(x, Memory.empty(50), replace(CONFIG, controller=rule)) == 1.0


def test_plasticity_of_a_stationary_federation_is_that_of_averaging(world):
    """`w_0 = M/(M + min(M_eff, 10 M))`: 1, 1/2, 1/3, ... and no lower than 1/11."""
    truth = world(3, 300)
    memory, seen = None, []
    for _ in range(14):
        memory = federate([truth.examples(60) for _ in range(2)], memory, CONFIG)
        seen.append(float(memory.report.plasticity[0]))
    assert seen[0] == 1.0
    assert seen[1] == pytest.approx(1 / 2, rel=0.05)
    assert seen[2] == pytest.approx(1 / 3, rel=0.05)
    assert 1 / 11 <= seen[-1] < 0.12


def test_a_client_with_news_is_more_plastic_than_the_others(world):
    truth = world(4, 300)
    memory = None
    for _ in range(6):
        memory = federate([truth.examples(60, [0, 1]) for _ in range(3)], memory, CONFIG)
    fresh = [truth.examples(60, [0, 1]), truth.examples(60, [0, 1]), truth.examples(60, [2, 3])]
    w = federate(fresh, memory, CONFIG).report.plasticity
    assert float(w[2]) == pytest.approx(CONFIG.w_max, abs=0.02)
    assert float(w[:2].max()) < 0.2


def test_fixed_plasticity_and_smoothing(world):
    truth = world(2, 200)
    config = replace(CONFIG, controller=0.3)
    memory = federate([truth.examples(50)], None, config)
    assert float(memory.report.plasticity[0]) == 0.3
    memory = federate([truth.examples(50)], memory, replace(CONFIG, controller=0.9, smoothing=0.5))
    assert float(memory.report.plasticity[0]) == pytest.approx(0.6)
    assert memory.report.plastic_share == pytest.approx(0.6)


def test_w_zero_never_learns(world):
    truth = world(2, 200)
    memory = federate([truth.examples(50)], None, replace(CONFIG, controller=0.0))
    assert len(memory.archetypes) == 0
