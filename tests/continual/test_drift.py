"""Statistics that follow a drift: exact where it is linear, and better than stale ones where it is not."""

import numpy as np
import pytest
import torch

from lightning_plasticity.continual.drift import DriftSums, carry, fit_map
from lightning_plasticity.continual.processes import Processes, uniforms
from lightning_plasticity.continual.statistics import RidgeStatistics
from lightning_plasticity.continual.surrogates import DRAWS, surrogate_views


def drifted(n=400, width=6, noise=0.0, seed=0):
    """Features before and after a linear drift, with labels."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.rand(n, width, generator=generator)
    matrix = torch.eye(width) + 0.3 * torch.randn(width, width, generator=torch.Generator().manual_seed(9))
    after = before @ matrix + noise * torch.randn(n, width, generator=generator)
    return before, after, torch.arange(n) % 3


def sums_of(h, labels):
    sums = RidgeStatistics(h.shape[1], 3)
    sums.add(h, labels)
    return sums


def fitted(before, after, penalty=1e-6):
    sums = DriftSums.zeros(torch.zeros(before.shape[1], before.shape[1]))
    for rows in torch.arange(len(before)).split(64):
        sums.add(before[rows], after[rows])
    return fit_map(sums, penalty)


def test_a_linear_drift_is_followed_exactly():
    old_before, old_after, labels = drifted(seed=0)
    new_before, new_after, _ = drifted(seed=1)
    carried = carry(sums_of(old_before, labels), fitted(new_before, new_after))
    exact = sums_of(old_after, labels)
    torch.testing.assert_close(carried.gram, exact.gram, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(carried.cross, exact.cross, rtol=1e-3, atol=1e-2)
    assert carried.counts.tolist() == exact.counts.tolist()


def test_what_the_map_misses_is_in_the_sums():
    """With noise the carried Gram matrix is as large as the true one; without the residual too small."""
    old_before, old_after, labels = drifted(seed=0, noise=0.5)
    drift = fitted(*drifted(seed=1, noise=0.5)[:2])
    true = float(sums_of(old_after, labels).gram.trace())
    assert float(carry(sums_of(old_before, labels), drift).gram.trace()) == pytest.approx(true, rel=0.05)
    bare = drift._replace(residual=torch.zeros_like(drift.residual))
    assert float(carry(sums_of(old_before, labels), bare).gram.trace()) < 0.8 * true


def test_the_fit_against_least_squares():
    before, after, _ = drifted(noise=0.1)
    drift = fitted(before, after)
    expected, *_ = np.linalg.lstsq(before.double().numpy(), after.double().numpy(), rcond=None)
    np.testing.assert_allclose(drift.matrix.numpy(), expected, atol=1e-3)
    residual = after.double().numpy() - before.double().numpy() @ expected
    np.testing.assert_allclose(drift.residual.numpy(), residual.T @ residual / len(before), atol=1e-4)


def test_autocast_reaches_neither_the_map_nor_what_it_carries():
    old_before, _, labels = drifted(seed=0)
    new_before, new_after, _ = drifted(seed=1, noise=0.1)
    plain = carry(sums_of(old_before, labels), fitted(new_before, new_after))
    with torch.autocast("cpu", torch.bfloat16):
        half = carry(sums_of(old_before, labels), fitted(new_before, new_after))
    assert torch.equal(half.gram, plain.gram)
    assert torch.equal(half.cross, plain.cross)


def test_where_no_view_says_otherwise_nothing_moved():
    before = torch.zeros(50, 4)
    before[:, 0] = 1
    matrix = fitted(before, 2 * before).matrix
    expected = torch.eye(4)
    expected[0, 0] = 2
    torch.testing.assert_close(matrix, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("penalty", "views", "message"), [(0.0, 3, "penalty=0.0"), (1.0, 0, "no view")])
def test_bad_input(penalty, views, message):
    with pytest.raises(ValueError, match=message):
        fitted(torch.ones(views, 2), torch.ones(views, 2), penalty)


def test_views_come_from_their_numbers_alone():
    images = torch.rand(6, 3, 16, 16)
    draws = uniforms(torch.arange(6), DRAWS, 1, 2)
    views = surrogate_views(images, draws)
    torch.testing.assert_close(surrogate_views(images[3:5], draws[3:5]), views[3:5])
    assert not torch.equal(views, surrogate_views(images, uniforms(torch.arange(6), DRAWS, 1, 3)))
    assert views.min() >= 0
    assert views.max() <= 1


def test_uniforms_are_uniform_and_unrelated():
    drawn = uniforms(torch.arange(20_000), 3, 7).numpy()
    assert abs(drawn.mean(0) - 0.5).max() < 0.01
    assert abs(np.histogram(drawn, 20, (0, 1))[0] / 3000 - 1).max() < 0.1
    other = uniforms(torch.arange(20_000), 3, 8).numpy()
    assert abs(np.corrcoef(np.hstack([drawn, other]).T) - np.eye(6)).max() < 0.03
    share = np.array([(uniforms(torch.arange(20_000)[r::10], 1, 1).numpy() < 0.2).mean() for r in range(10)])
    assert abs(share - 0.2).max() < 0.03  # also where classes alternate with a period


def test_numbers_of_two_processes_are_those_of_one():
    images, labels = torch.arange(7.0), torch.arange(7)
    alone = Processes().numbered([(images[:4], labels[:4]), (images[4:], labels[4:])])
    assert torch.cat([position for *_, position in alone]).tolist() == list(range(7))
    for rank in range(2):
        share = images[rank::2], labels[rank::2]
        for _, label, position in Processes(2, rank).numbered([share]):
            assert position.tolist() == label.tolist()
