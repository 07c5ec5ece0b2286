"""Profiles around each cell, against a double loop; scores of rings and of noise."""

import numpy as np
import pytest
import torch

from lightning_plasticity.metrics import LiveCells, RingScore
from lightning_plasticity.metrics.ring_score import aligned_profile, ring_score


@pytest.mark.parametrize("count", [6, 7])
def test_profile_is_the_mean_over_cells(count):
    matrix = torch.rand(count, count, generator=torch.Generator().manual_seed(0))
    slow = np.zeros(count)
    for row in range(count):
        for offset in range(count):
            slow[(offset + count // 2) % count] += float(matrix[row, (row + offset) % count]) / count
    np.testing.assert_allclose(aligned_profile(matrix).numpy(), slow, rtol=1e-5)


def ring(count=50, common=0.0):
    cells = torch.arange(count)
    offset = (cells - cells.unsqueeze(1) + count // 2) % count - count // 2
    bump, slope = torch.exp(-(offset**2) / 8.0) - 0.2, -offset * torch.exp(-(offset**2) / 50.0)
    return bump, slope + common * bump, -slope + common * bump


@pytest.mark.parametrize("common", [0.0, 10.0])
def test_a_ring(common):
    score = ring_score(*ring(common=common))
    assert float(score["centre_mass"]) == pytest.approx(1.0, abs=0.02)
    assert float(score["antisymmetry"]) == pytest.approx(1.0, abs=1e-4)  # a common drive is of no matter
    assert float(score["score"]) == pytest.approx(1.0, abs=0.02)


def test_what_is_no_ring():
    generator = torch.Generator().manual_seed(0)
    noise = [ring_score(*torch.randn(3, 100, 100, generator=generator)) for _ in range(30)]
    assert float(torch.stack([score["centre_mass"] for score in noise]).mean()) == pytest.approx(
        0.21, abs=0.03
    )
    assert float(torch.stack([score["antisymmetry"] for score in noise]).abs().mean()) < 0.25
    bump, right, _ = ring()
    assert float(ring_score(bump, right, right)["score"]) == 0.0
    assert float(ring_score(bump, 0 * right, 0 * right)["antisymmetry"]) == 0.0


def test_metrics_are_means_over_models():
    total = RingScore()
    total.update(*ring())
    bump, right, _ = ring()
    total.update(bump, right, right)
    assert float(total.compute()["antisymmetry"]) == pytest.approx(0.0, abs=1e-4)
    live = LiveCells()
    live.update(torch.tensor([[0.0, 0.06], [0.04, 0.0]]))
    live.update(torch.ones(4, 3))
    assert float(live.compute()) == 2.5
    with pytest.raises(ValueError, match="of one size"):
        total.update(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(3, 3))
