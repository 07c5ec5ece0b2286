"""Runs that are too short for gradual updates are told so, with a way out that is one."""

import pytest

from lightning_plasticity.callbacks import GraNet
from lightning_plasticity.callbacks.run_length import few_updates


@pytest.mark.parametrize(
    ("update_every", "total", "said"),
    [
        (10, 100, None),
        (1000, 60, "makes 1 mask update in 60 optimizer steps; about 50 are usual: update_every=1."),
        (100, 900, "makes 9 mask updates in 900 optimizer steps; about 50 are usual: update_every=18."),
        (1, 5, "makes 5 mask updates in 5 optimizer steps; about 50 are usual: train longer."),
    ],
)
def test_the_hint(update_every, total, said):
    expected = None if said is None else f"update_every={update_every} {said}"
    assert few_updates(update_every, total) == expected


def test_a_summary_before_the_fit_is_that_of_a_dense_net():
    callback = GraNet()
    assert callback.density == 1
    assert callback.summary().startswith("GraNet: density 1.0000")
