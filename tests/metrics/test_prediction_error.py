"""The running average of the prediction error, against a loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.metrics import PredictionError
from lightning_plasticity.metrics.prediction_error import following, low_pass


def loop(values, rate, skip):
    """The first value that counts as it is, then low-passed."""
    value = None
    for new in values[skip:]:
        value = new if value is None else value + rate * (new - value)
    return value


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 12), st.floats(0.01, 1.0))
def test_chunks_of_any_length(chunks, skip, rate):
    total = sum(chunks)
    values = torch.rand(total, generator=torch.Generator().manual_seed(total), dtype=torch.float64)
    value, seen = torch.tensor(-9.0, dtype=torch.float64), 0
    for chunk in values.split(chunks):
        value = following(value, chunk, rate, seen, skip)
        seen += len(chunk)
    expected = loop(values.tolist(), rate, skip)
    assert float(value) == pytest.approx(-9.0 if expected is None else expected)


def test_metric():
    generator = torch.Generator().manual_seed(0)
    basal, apical = (torch.rand(100, 7, generator=generator) for _ in range(2))
    error = PredictionError(dt=0.025, tau=1.0, skip=0.4)
    for first in range(0, 100, 30):
        error.update(basal[first : first + 30], apical[first : first + 30])
    each = (basal - apical).abs().mean(1).tolist()
    assert float(error.compute()) == pytest.approx(loop(each, 0.025, 16), rel=1e-5)
    early = PredictionError(dt=0.025, skip=0.4)
    early.update(basal[:5], apical[:5])
    assert bool(early.compute().isnan())


def test_low_pass_of_many_at_once():
    values = torch.rand(5, 2, 3)
    found = low_pass(torch.zeros(2, 3), values, 0.5)
    slow = torch.zeros(2, 3)
    for value in values:
        slow = slow + 0.5 * (value - slow)
    torch.testing.assert_close(found, slow)


def test_bad_input():
    with pytest.raises(ValueError, match="dt=0"):
        PredictionError(dt=0)
    with pytest.raises(ValueError, match="alike"):
        PredictionError().update(torch.zeros(3, 2), torch.zeros(3, 1))
