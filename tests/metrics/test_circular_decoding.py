"""Distances on a circle, by hand and against the angle between two points."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_plasticity.metrics import CircularDecodingError, PathIntegrationHorizon
from lightning_plasticity.metrics.circular_decoding import circular_distance, horizon

places = st.floats(0, 10, allow_nan=False)


@given(places, places, st.floats(0.5, 5))
def test_is_the_angle_between_two_points(one, other, length):
    a, b = (2 * math.pi * x / length for x in (one, other))
    angle = abs(math.atan2(math.sin(a - b), math.cos(a - b)))
    found = circular_distance(torch.tensor(one).double(), torch.tensor(other).double(), length)
    assert float(found) == pytest.approx(angle / (2 * math.pi) * length, abs=1e-5)


def test_error_by_time():
    error = CircularDecodingError(circumference=2.0)
    error.update(torch.tensor([[0.1, 1.9], [0.5, 1.5]]), torch.tensor([[0.0, 0.1], [0.5, 0.5]]))
    error.update(torch.tensor([[0.2, 0.0]]), torch.tensor([[0.0, 0.0]]))
    torch.testing.assert_close(error.compute(), torch.tensor([0.1, 0.4]))


def test_horizon():
    assert horizon(torch.tensor([[0.0, 0.2, 0.0], [0.0, 0.0, 0.0]]), 0.5).tolist() == [0.5, 1.5]
    lasting = PathIntegrationHorizon(dt=0.5, threshold=0.3)
    lasting.update(torch.tensor([[0.0, 0.2, 0.4]]), torch.zeros(1, 3))
    assert float(lasting.compute()) == 1.0


def test_bad_input():
    with pytest.raises(ValueError, match="circumference=0"):
        CircularDecodingError(circumference=0)
    with pytest.raises(ValueError, match="threshold=0"):
        PathIntegrationHorizon(threshold=0)
    error = CircularDecodingError()
    error.update(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="tests of 2 steps after tests of 3"):
        error.update(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="alike"):
        error.update(torch.zeros(1, 2), torch.zeros(2, 2))
