"""The paper's dense pipeline, piece by piece and beside ours."""

import numpy as np
import pytest
import torch

from lightning_plasticity.hopfield import FederationConfig, federate
from lightning_plasticity.hopfield.dense import DenseFederation, hebbian, plasticity, unlearn


def test_unlearning_acts_on_eigenvalues_alone(world):
    operator = hebbian(world(3, 60).examples(40))
    values, vectors = torch.linalg.eigh(operator)
    explicit, quick = unlearn(operator), (vectors * unlearn(values)) @ vectors.T
    torch.testing.assert_close(explicit, quick, rtol=1e-9, atol=1e-12)


def test_two_hundred_steps_are_the_closed_map():
    """`f_t(l) = l (1 + t)/(1 + t l)` at `t = eps n = 2`, to the order of the step."""
    values = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(unlearn(values), 3 * values / (1 + 2 * values), atol=5e-3, rtol=0)


@pytest.mark.parametrize("rule", [0.5, "entropy", "agreement"])
def test_it_finds_few_archetypes_of_equal_share(world, rule):
    truth = world(3, 200)
    dense = DenseFederation(rule)
    for _ in range(3):
        dense.round([truth.examples(100) for _ in range(3)])
    assert len(dense.archetypes) == 3
    assert truth.overlaps(dense.archetypes).min() > 0.98


def test_explicit_and_quick_agree(world):
    truth = world(3, 80)
    batch = [truth.examples(60) for _ in range(2)]
    memories = []
    for explicit in (False, True):
        dense = DenseFederation(0.5, explicit=explicit)
        dense.round(batch)
        memories.append(dense.archetypes)
    assert torch.equal(*memories)


def test_taken_literally_it_finds_nothing_among_six(world):
    truth = world(6, 200)
    batch = [truth.examples(200) for _ in range(3)]
    literal = DenseFederation("entropy", literal=True)
    literal.round(batch)
    assert len(literal.archetypes) == 0
    assert len(federate(batch, None, FederationConfig(sketch_rank=64)).archetypes) == 6


def test_it_forgets_what_it_replaces_and_ours_does_not(world):
    truth = world(2, 200)
    dense, memory = DenseFederation(1.0), None
    for support in ([0], [1], [1]):
        batch = [truth.examples(60, support) for _ in range(2)]
        dense.round(batch)
        memory = federate(batch, memory, FederationConfig(sketch_rank=64))
    assert truth.overlaps(dense.archetypes)[0] < 0.3
    assert truth.overlaps(memory.archetypes).min() > 0.99


def test_its_rules_by_hand():
    z = torch.tensor([[1.0, 1, -1, -1] * 10])
    same, opposite = z.repeat(5, 1), torch.tensor([[1.0, -1, 1, -1] * 10]).repeat(5, 1)
    assert plasticity(same, z, "entropy", 0.8, 0) == 0
    assert plasticity(same, z, "agreement", 0.8, 0) == 1
    assert plasticity(opposite, z, "entropy", 0.8, 0) == pytest.approx(1, abs=0.05)
    assert plasticity(same, z, 0.3, 0.8, 0) == 0.3
    assert plasticity(same, z[:0], "entropy", 0.8, 0) == 1


def test_its_pruning_by_hand():
    states = torch.as_tensor(
        np.array([[1, 1, 1, 1, 1], [-1, -1, -1, -1, -1], [1, 1, 1, -1, -1]], dtype=float)
    )
    assert DenseFederation.prune(states).tolist() == states[[0, 2]].tolist()
