"""Repeated examples count once, sightings of clean patterns every time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.hopfield.repeats import distinct


def by_comparison(x):
    """First occurrences, by comparing each row with each kept one."""
    kept = []
    for row in x:
        if not any(np.array_equal(row, other) or np.array_equal(row, -other) for other in kept):
            kept.append(row)
    return np.array(kept)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_first_occurrences_stay_in_their_order(seed, examples, columns, wide):
    rng = np.random.default_rng(seed)
    x = rng.choice([-1, 1], (examples, columns)).repeat(
        400 if wide else 1, 1
    )  # wide: beyond the first glance
    assert np.array_equal(distinct(torch.as_tensor(x), most=0).numpy(), by_comparison(x))


def test_rows_that_differ_at_one_place_are_two():
    x = torch.ones(3, 5000, dtype=torch.int8)
    x[1, 4999] = x[2, 0] = -1
    assert len(distinct(x, most=0)) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 10, 30])
def test_clean_patterns_drawn_by_chance_are_sightings(world, count):
    truth = world(count, 300, seed=count)
    for _ in range(50):
        x = truth.examples(60, quality=1.0)
        assert distinct(x, most=32) is x


def test_a_loader_that_ends_amid_a_repeat_is_no_chance(world):
    x = world(3, 300).examples(60)
    assert torch.equal(distinct(torch.cat([x, x, x[:20]]), most=64), x)


def test_more_kinds_than_a_sketch_can_tell_are_no_clean_patterns(world):
    """Drawn with replacement: with few examples that can't be told from clean patterns, as documented."""
    x = world(3, 300).examples(60)
    drawn = x[torch.randint(60, (300,), generator=torch.Generator().manual_seed(0))]
    assert len(distinct(drawn, most=32)) == len(drawn.unique(dim=0))
    assert distinct(drawn, most=64) is drawn


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.float64])
def test_nothing_repeats_in_noisy_data(world, dtype):
    x = world(3, 200).examples(500, quality=0.9).to(dtype)
    assert distinct(x, most=0) is x
