"""Which dendrite drives: hand-checked cycles."""

import pytest
import torch

from lightning_plasticity.hippocampus.gate import Gate


def test_four_and_four():
    gate = Gate(4, 4)
    assert gate.fractions(0, 10)[:, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 1, 1]
    assert gate.fractions(1, 9)[:, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 1, 1]  # the authors count from 1


def test_layers_have_modes_of_their_own():
    found = Gate(1, 2, hpc="theta", mec=0.25).fractions(0, 3)
    assert found.tolist() == [[1, 0.25], [0, 0.25], [0, 0.25]]
    assert Gate(1, 2).with_mode("wake").fractions(0, 2).tolist() == [[0, 0], [0, 0]]
    assert Gate(1, 2, hpc="sleep", mec="wake").fractions(5, 1).tolist() == [[1, 0]]


def test_shuffled_keeps_the_share_of_every_cycle():
    gate = Gate(6, 2, hpc="shuffled", mec="shuffled", seed=3)
    whole = gate.fractions(0, 80)
    assert whole.view(10, 8, 2).sum(1).tolist() == [[6, 6]] * 10
    assert torch.equal(whole[:, 0], whole[:, 1])
    assert not torch.equal(whole[:8], whole[8:16])
    assert torch.equal(gate.fractions(13, 40), whole[13:53])  # where a chunk begins is of no matter


@pytest.mark.parametrize("mode", ["dream", 1.5, -0.1])
def test_unknown_mode(mode):
    with pytest.raises(ValueError, match="mode mec="):
        Gate(4, 4, mec=mode)
