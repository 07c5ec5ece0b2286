from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.metrics import ArchetypeOverlap
from lightning_plasticity.metrics.archetype_overlap import magnetisation, match_archetypes


def signs(count, size, seed=0):
    return torch.where(
        torch.rand(count, size, generator=torch.Generator().manual_seed(seed)) < 0.5, -1.0, 1.0
    )


def best_matching(found, truth):
    """Every way to pair them, slowly: the largest sum of absolute overlaps."""
    overlap = np.abs(found.double().numpy() @ truth.double().numpy().T) / truth.shape[1]
    few, many = sorted(overlap.shape)
    table = overlap if overlap.shape[0] == few else overlap.T
    return max(sum(table[i, j] for i, j in enumerate(chosen)) for chosen in permutations(range(many), few))


@settings(max_examples=60, deadline=None)
@given(found=st.integers(0, 5), truth=st.integers(1, 5), size=st.integers(1, 12), seed=st.integers(0, 999))
def test_the_matching_is_the_best_one(found, truth, size, seed):
    a, b = signs(found, size, seed), signs(truth, size, seed + 1000)
    matched, partner = match_archetypes(a, b)
    assert float(matched.sum()) == pytest.approx(best_matching(a, b), abs=1e-12)
    used = partner[partner >= 0].tolist()
    assert len(used) == len(set(used)) == min(found, truth)
    for k in range(truth):
        expected = abs(float(a[partner[k]] @ b[k])) / size if partner[k] >= 0 else 0.0
        assert float(matched[k]) == pytest.approx(expected, abs=1e-12)


def test_order_and_sign_do_not_matter():
    truth = signs(7, 300)
    found = truth[torch.tensor([3, 0, 6, 1, 5, 2, 4])] * torch.tensor([[1], [-1], [1], [-1], [-1], [1], [1]])
    matched, partner = match_archetypes(found, truth)
    assert torch.equal(matched, torch.ones(7, dtype=torch.float64))
    assert partner.tolist() == [1, 3, 5, 0, 6, 4, 2]


def test_finding_one_twice_counts_once():
    truth = signs(2, 100)
    metric = ArchetypeOverlap()
    metric.update(torch.stack([truth[0], -truth[0]]), truth)
    cross = abs(float(truth[0] @ truth[1])) / 100
    assert float(metric.compute()) == pytest.approx((1 + cross) / 2)
    torch.testing.assert_close(magnetisation(truth[:1], truth), torch.tensor([1.0, cross]).double())


def test_mean_and_least_over_updates():
    truth = signs(4, 64)
    mean, least = ArchetypeOverlap(), ArchetypeOverlap(reduction="min")
    for metric in (mean, least):
        with pytest.warns(UserWarning, match="before the ``update``"):
            assert metric.compute().isnan()
        metric.reset()
        metric.update(truth, truth)
        assert float(metric.compute()) == 1.0
        metric.update(truth[:3], truth)
    assert float(mean.compute()) == pytest.approx(7 / 8)
    assert float(least.compute()) == 0.0
    least.reset()
    least.update(truth.to(torch.int8), truth)
    assert float(least.compute()) == 1.0


def test_nothing_found():
    truth = signs(3, 10)
    assert match_archetypes(truth[:0], truth)[1].tolist() == [-1] * 3
    assert magnetisation(truth[:0], truth).tolist() == [0.0] * 3
    metric = ArchetypeOverlap()
    metric.update(truth[:0], truth)
    assert float(metric.compute()) == 0.0


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match=r"found \(2, 5\) and truth \(2, 6\)"):
        match_archetypes(signs(2, 5), signs(2, 6))
    with pytest.raises(ValueError, match="reduction='sum'"):
        ArchetypeOverlap(reduction="sum")
