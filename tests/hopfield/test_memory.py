"""Retrieval against dense pseudo-inverse dynamics, and a memory's rules of keeping."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_plasticity.hopfield import FederationConfig, Memory
from lightning_plasticity.hopfield.consolidation import Found, admit, consolidate, count_votes, same

CONFIG = FederationConfig()


def holding(patterns, evidence=100.0):
    memory = Memory.empty(patterns.shape[1], CONFIG)
    return replace(memory, archetypes=torch.as_tensor(patterns).to(torch.int8),
                   evidence=torch.full((len(patterns),), evidence, dtype=torch.float64))  # fmt: skip


def found(patterns, evidence, complete=False):
    states = torch.as_tensor(np.atleast_2d(patterns)).to(torch.int8)
    values = torch.as_tensor(evidence, dtype=torch.float64).expand(len(states)).clone()
    return Found(states, values, complete)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.float64])
def test_retrieval_is_the_dense_pseudo_inverse_dynamics(world, dtype):
    truth = world(8, 120)
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 8, 40)
    cues = truth.archetypes[labels] * np.where(rng.random((40, 120)) < 0.2, -1, 1)
    z = truth.archetypes
    projector = np.linalg.pinv(z) @ z
    state = cues.copy()
    for _ in range(50):
        state = np.where(state @ projector >= -1e-9, 1.0, -1.0)
    ours = holding(z).retrieve(torch.as_tensor(cues).to(dtype))
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours.double().numpy(), state)
    assert (state == z[labels]).all(1).mean() > 0.9


def test_cues_with_unknown_entries_are_completed(world):
    truth = world(5, 200)
    cues = torch.as_tensor(truth.archetypes).clone()
    cues[:, 60:] = 0
    assert torch.equal(holding(truth.archetypes).retrieve(cues), torch.as_tensor(truth.archetypes))


def test_correlated_patterns_and_duplicates_do_not_break_the_inverse(world):
    rng = np.random.default_rng(0)
    common = rng.choice([-1.0, 1.0], 300)
    z = np.stack([common * np.where(rng.random(300) < 0.07, -1, 1) for _ in range(4)])
    memory = holding(np.concatenate([z, z[:1]]))
    assert torch.equal(memory.retrieve(torch.as_tensor(z)), torch.as_tensor(z))


def test_wrong_cues_are_refused_and_an_empty_memory_says_nothing():
    memory = Memory.empty(10)
    with pytest.raises(ValueError, match=r"give \[B, 10\]"):
        memory.retrieve(torch.ones(2, 9))
    cues = torch.ones(2, 10)
    assert torch.equal(memory.retrieve(cues), cues)


def test_one_memory_up_to_sign_and_the_noise_of_both(world):
    truth = world(2, 400)
    z = torch.as_tensor(truth.archetypes).to(torch.int8)
    sure, unsure = torch.tensor([1e4]), torch.tensor([3.84])
    assert bool(same(z[:1], -z[0], sure, sure[0]))
    assert not bool(same(z[:1], z[1], sure, sure[0]))
    near = z[0].clone()
    near[:30] *= -1  # overlap .85
    assert not bool(same(z[:1], near, sure, sure[0]))
    assert bool(same(z[:1], near, unsure, unsure[0]))


def test_a_match_replaces_what_is_less_well_known(world):
    truth = world(1, 200)
    old = truth.archetypes.copy()
    old[0, :5] *= -1
    memory = holding(old, evidence=10.0)
    better = consolidate(memory, found(-truth.archetypes, 20.0), 0.1, CONFIG)
    np.testing.assert_array_equal(better.archetypes.numpy(), truth.archetypes)  # and keeps its sign
    assert float(better.evidence[0]) == 20
    worse = consolidate(memory, found(truth.archetypes, 5.0), 0.1, CONFIG)
    np.testing.assert_array_equal(worse.archetypes.numpy(), old)
    assert float(worse.evidence[0]) == pytest.approx(9)


def test_what_is_not_seen_does_not_decay(world):
    truth = world(3, 200)
    memory = holding(truth.archetypes[:1])
    after = consolidate(memory, found(truth.archetypes[1:], 50.0), 0.5, CONFIG)
    assert after.evidence.tolist() == [100, 50, 50]


def test_a_mixture_is_superseded_once_all_outliers_are_archetypes(world):
    truth = world(3, 400)
    mixture = np.where(truth.archetypes.sum(0) >= 0, 1.0, -1.0)
    span = torch.as_tensor(np.linalg.qr(truth.archetypes.T)[0])
    memory = replace(holding(mixture[None], 5.0), vectors=span, outliers=3,
                     eigenvalues=torch.full((3,), 0.2, dtype=torch.float64))  # fmt: skip
    kept = consolidate(memory, found(truth.archetypes[:2], 50.0), 0.1, CONFIG)
    assert len(kept.archetypes) == 3
    gone = consolidate(memory, found(truth.archetypes, 50.0, complete=True), 0.1, CONFIG)
    np.testing.assert_array_equal(gone.archetypes.numpy(), truth.archetypes)


def test_admission_is_by_evidence_without_duplicates(world):
    truth = world(4, 200)
    memory = holding(truth.archetypes[:2], 10.0)
    states = torch.as_tensor(np.stack([-truth.archetypes[0], truth.archetypes[2], truth.archetypes[3]]))
    known = torch.tensor([5.0, 50.0, 7.0], dtype=torch.float64)
    config = FederationConfig(max_archetypes=3)
    after = admit(memory, states.to(torch.int8), known, config)
    np.testing.assert_array_equal(after.archetypes.numpy(), truth.archetypes[:3])


def test_votes_add_up_over_rounds_and_by_client(world):
    truth = world(2, 100)
    config = FederationConfig(min_support=2, max_clients=4)
    memory = replace(Memory.empty(100, config), report=Memory.empty(100, config).report)
    memory = consolidate(memory, found(truth.archetypes, 50.0), 1.0, config)
    assert (len(memory.archetypes), len(memory.pending)) == (0, 2)
    votes = torch.zeros(4, config.max_archetypes, dtype=torch.float64)
    votes[1, 0] = 1
    memory = count_votes(count_votes(memory, votes, config), votes, config)  # twice the same client
    assert len(memory.archetypes) == 0
    votes[1, 0], votes[3, 0] = 0, 1
    memory = count_votes(memory, votes, config)
    np.testing.assert_array_equal(memory.archetypes.numpy(), truth.archetypes[:1])
    assert len(memory.pending) == 1
