"""Prune, regrow, rewire: masks written out by hand, and equality with the NumPy restatement."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_plasticity.sparsity.rewire import prune_mask, regrow_mask, rewire
from tests.sparsity.reference import best, best_per_layer, exchange


def bools(text):
    """``"1100"`` as a mask."""
    return torch.tensor([letter == "1" for letter in text])


W = torch.tensor([0.8, -0.1, 0.5, 0.0, -0.9, 0.3, 7.0, -0.2])
G = torch.tensor([0.1, 0.6, -0.2, 0.9, 0.0, -0.8, 0.4, 0.7])


@pytest.mark.parametrize(
    ("mask", "keep", "expected"),
    [
        ("11111111", 8, "11111111"),
        ("11111111", 4, "10101010"),
        ("11111111", 1, "00000010"),
        ("11111111", 0, "00000000"),
        ("11111101", 4, "10101100"),
        ("01010001", 2, "01000001"),
        ("01010001", 3, "01010001"),  # the active zero stays, 7.0 stays masked
    ],
)
def test_pruning_by_hand(mask, keep, expected):
    assert torch.equal(prune_mask(W, bools(mask), keep), bools(expected))


@pytest.mark.parametrize(
    ("mask", "count", "expected"),
    [
        ("10000000", 0, "10000000"),
        ("10000000", 1, "10010000"),
        ("10000000", 3, "10010101"),
        ("00010100", 2, "01010101"),
        ("01111110", 2, "11111111"),
    ],
)
def test_regrowing_by_hand(mask, count, expected):
    assert torch.equal(regrow_mask(G, bools(mask), count), bools(expected))


@pytest.mark.parametrize(
    ("share", "readd", "expected"),
    [
        (0.0, True, "11111000"),
        (0.2, True, "11111000"),  # drops the active zero, which has the largest gradient: back again
        (0.4, True, "10111100"),
        (0.2, False, "11101100"),
        (0.4, False, "10101101"),
        (0.6, False, "10001111"),
        (1.0, True, "01010111"),
    ],
)
def test_rewiring_by_hand(share, readd, expected):
    mask = bools("11111000")
    count = math.ceil(share * 5)
    assert torch.equal(rewire(W, G, mask, count, allow_readd=readd), bools(expected))


def test_ties_go_to_the_lowest_index_and_the_first_layer():
    ones = {"b": torch.ones(4), "a": torch.ones(2, 2)}
    full = {name: torch.ones_like(value, dtype=torch.bool) for name, value in ones.items()}
    pruned = prune_mask(ones, full, 5)
    assert list(pruned) == ["b", "a"]
    assert pruned["b"].all()
    assert torch.equal(pruned["a"], bools("1000").reshape(2, 2))
    assert torch.equal(regrow_mask(torch.zeros(6), bools("010010"), 2), bools("111010"))
    assert torch.equal(rewire(torch.ones(6), torch.ones(6), bools("011110"), 1), bools("111100"))


values = st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.5, 1.0, -2.0])
layers = st.lists(hnp.array_shapes(max_dims=3, max_side=4), min_size=1, max_size=3).flatmap(
    lambda shapes: st.tuples(
        *(
            st.tuples(
                hnp.arrays(np.float32, s, elements=values),
                hnp.arrays(np.float32, s, elements=values),
                hnp.arrays(bool, s),
            )
            for s in shapes
        )
    )
)


@given(layers, st.floats(0, 1))
def test_global_and_layer_pruning_equal_the_restatement(drawn, share):
    w, m = [entry[0] for entry in drawn], [entry[2] for entry in drawn]
    weights = {str(i): torch.tensor(x) for i, x in enumerate(w)}
    masks = {str(i): torch.tensor(x) for i, x in enumerate(m)}
    keep = int(share * sum(int(x.sum()) for x in m))
    got = prune_mask(weights, masks, keep)
    for mine, wanted in zip(got.values(), best([np.abs(x) for x in w], m, keep), strict=True):
        assert np.array_equal(mine.numpy(), wanted)
    counts = [int(share * int(x.sum())) for x in m]
    got = prune_mask(weights, masks, {str(i): k for i, k in enumerate(counts)})
    for mine, wanted in zip(got.values(), best_per_layer([np.abs(x) for x in w], m, counts), strict=True):
        assert np.array_equal(mine.numpy(), wanted)


@given(layers, st.floats(0, 1), st.booleans())
def test_rewiring_equals_the_restatement_and_keeps_every_count(drawn, share, readd):
    named = {str(i): entry for i, entry in enumerate(drawn)}
    counts = {n: int(share * int(m.sum())) for n, (_, _, m) in named.items()}
    if not readd:
        counts = {n: min(k, int((~named[n][2]).sum())) for n, k in counts.items()}
    got = rewire(
        {n: torch.tensor(w) for n, (w, _, _) in named.items()},
        {n: torch.tensor(g) for n, (_, g, _) in named.items()},
        {n: torch.tensor(m) for n, (_, _, m) in named.items()},
        counts,
        allow_readd=readd,
    )
    for name, (w, g, m) in named.items():
        assert np.array_equal(got[name].numpy(), exchange(w, g, m, counts[name], readd))
        assert int(got[name].sum()) == int(m.sum())


def test_arguments_stay_untouched():
    w, g, mask = W.clone(), G.clone(), bools("11111000")
    rewire(w, g, mask, 2)
    assert torch.equal(w, W)
    assert torch.equal(g, G)
    assert torch.equal(mask, bools("11111000"))


def test_nan_counts_only_where_it_could_be_chosen():
    w = W.clone()
    w[6] = float("nan")
    assert torch.equal(prune_mask(w, bools("11111101"), 4), bools("10101100"))
    with pytest.raises(ValueError, match="NaN"):
        prune_mask(w, bools("11111111"), 4)
    g = G.clone()
    g[0] = float("nan")
    assert torch.equal(regrow_mask(g, bools("10000000"), 1), bools("10010000"))
    with pytest.raises(ValueError, match="NaN"):
        regrow_mask(g, bools("01000000"), 1)


def test_bad_input_is_refused():
    full, two = bools("11111111"), {"a": W, "b": W}
    masks = {"a": full, "b": full}
    with pytest.raises(ValueError, match="keep=9 must lie between 0 and 8, the number of active connections"):
        prune_mask(W, full, 9)
    with pytest.raises(ValueError, match="keep=-1"):
        prune_mask(two, masks, {"a": 3, "b": -1})
    with pytest.raises(
        ValueError, match="count=1 must lie between 0 and 0, the number of inactive connections"
    ):
        regrow_mask(G, full, 1)
    with pytest.raises(
        ValueError, match="count=6 must lie between 0 and 5, the number of active connections"
    ):
        rewire(W, G, bools("11111000"), 6)
    with pytest.raises(
        ValueError, match="count=4 must lie between 0 and 3, the number of inactive connections"
    ):
        rewire(W, G, bools("11111000"), 4, allow_readd=False)
    with pytest.raises(ValueError, match="all be tensors or all be mappings"):
        prune_mask(two, full, 3)
    with pytest.raises(ValueError, match=r"layers differ: \['b'\]"):
        prune_mask(two, {"a": full}, 3)
    with pytest.raises(ValueError, match="mask of 'a' must be bool"):
        prune_mask({"a": W}, {"a": full.float()}, 3)
    with pytest.raises(ValueError, match="counts must name every layer once"):
        prune_mask(two, masks, {"a": 3})
    with pytest.raises(ValueError, match="must be a number for a single tensor"):
        prune_mask(W, full, {"a": 3})
