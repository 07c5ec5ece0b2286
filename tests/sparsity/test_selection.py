"""Exact selection against a plain stable sort, and against expected masks written out."""

import math
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.sparsity import bracket, radix
from lightning_plasticity.sparsity.bracket import kth_largest, select_by_bracket
from lightning_plasticity.sparsity.lazy_scores import LazyScores
from lightning_plasticity.sparsity.radix import radix_threshold, select_by_radix
from lightning_plasticity.sparsity.selection import exact_threshold, masked_scores, select, top_mask

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def reference(tensors, k, eligible=None):
    """The k first of a stable sort in descending order, those that are not eligible last. NumPy only."""
    flat = np.concatenate([t.double().numpy().reshape(-1) for t in tensors])
    last = (
        np.zeros(len(flat), bool)
        if eligible is None
        else ~np.concatenate([e.numpy().reshape(-1) for e in eligible])
    )
    order = np.lexsort((np.arange(len(flat)), -np.where(last, 0.0, flat), last))
    mask = np.zeros(len(flat), bool)
    mask[order[:k]] = True
    pieces = np.split(mask, np.cumsum([t.numel() for t in tensors])[:-1])
    return [torch.from_numpy(piece.reshape(t.shape)) for piece, t in zip(pieces, tensors, strict=True)]


def lazy(tensors):
    return [LazyScores(torch.clone, (tensor,)) for tensor in tensors]


def by_radix(tensors, k):
    masks = [torch.empty(t.shape, dtype=torch.bool) for t in tensors]
    return select_by_radix(lazy(tensors), k, masks), masks


def by_bracket(tensors, k):
    masks = [torch.empty(t.shape, dtype=torch.bool) for t in tensors]
    return select_by_bracket(lazy(tensors), k, masks), masks


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bool
        assert torch.equal(a, b)


@pytest.fixture
def tiny_brackets(monkeypatch):
    """Sample, cut and collect already at a few hundred scores."""
    monkeypatch.setattr(bracket, "DIRECT", 0)
    monkeypatch.setattr(bracket, "SMALL", 64)
    monkeypatch.setattr(bracket, "CHUNK", 512)
    monkeypatch.setattr(radix, "CHUNK", 300)


# ------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (0, [0, 0, 0, 0, 0, 0, 0, 0]),
        (1, [0, 0, 0, 0, 0, 0, 1, 0]),
        (2, [0, 1, 0, 0, 0, 0, 1, 0]),
        (3, [0, 1, 0, 1, 0, 0, 1, 0]),
        (4, [0, 1, 0, 1, 1, 0, 1, 0]),
        (6, [1, 1, 0, 1, 1, 0, 1, 1]),
        (8, [1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_eight_scores_with_ties(k, expected):
    scores = torch.tensor([1.0, 3.0, -2.0, 3.0, 3.0, -math.inf, math.inf, 0.0])
    assert top_mask(scores, k).int().tolist() == expected
    assert top_mask(scores.view(2, 4), k).int().flatten().tolist() == expected
    if k:
        assert exact_threshold(scores, k) == sorted(scores.tolist(), reverse=True)[k - 1]


def test_ties_follow_the_order_of_the_mapping():
    scores = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[2.0], [2.0]])}
    found = top_mask(scores, 2)
    assert list(found) == ["b", "a"]
    assert found["b"].tolist() == [False, True]
    assert found["a"].tolist() == [[True], [False]]


def test_both_zeros_tie():
    zeros = torch.tensor([-0.0, 0.0, -0.0, -1.0])
    assert top_mask(zeros, 1).tolist() == [True, False, False, False]
    assert by_radix([zeros], 1)[1][0].tolist() == [True, False, False, False]


def test_active_zeros_rank_above_what_is_not_eligible():
    weights, active = torch.tensor([0.0, -5.0, 0.0, 9.0]), torch.tensor([False, True, True, False])
    part = masked_scores(torch.abs, [weights], active)
    assert select([part], 2)[0].tolist() == [False, True, True, False]
    assert select([part], 3)[0].tolist() == [True, True, True, False]
    very_low = masked_scores(torch.clone, [torch.tensor([-math.inf, 1.0])], torch.tensor([True, False]))
    assert select([very_low], 1)[0].tolist() == [True, False]


def test_scores_of_two_tensors():
    w, g = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([5.0, 2.0, -1.0])
    saliency = LazyScores(lambda w, g: (w * g).abs(), (w, g))
    assert select([saliency], 2)[0].tolist() == [True, True, False]
    assert select([LazyScores(torch.mul, (w, g))], 1)[0].tolist() == [True, False, False]


# ------------------------------------------------------------ against a stable sort

VALUES = [-math.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, math.inf]


@st.composite
def layers(draw):
    """Layers of few distinct values, so that ties are everywhere, and a k."""
    shapes = draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=4))
    values = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=4))
    sizes = [math.prod(shape) for shape in shapes]
    flat = draw(st.lists(st.sampled_from(values), min_size=sum(sizes), max_size=sum(sizes)))
    dtype = draw(st.sampled_from(DTYPES))
    pieces = torch.tensor(flat, dtype=dtype).split(sizes)
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)], draw(
        st.integers(0, sum(sizes))
    )


@settings(max_examples=150, deadline=None)
@given(layers())
def test_any_layers_and_k(case):
    tensors, k = case
    expected = reference(tensors, k)
    named = {str(i): tensor for i, tensor in enumerate(tensors)}
    assert_equal(list(top_mask(named, k).values()), expected)
    value, masks = by_radix(tensors, k)
    assert_equal(masks, expected)
    if k:
        kth = np.sort(np.concatenate([t.double().numpy().reshape(-1) for t in tensors]))[-k]
        assert value == kth
        assert exact_threshold(named, k) == kth
        assert radix_threshold(lazy(tensors), torch.tensor(k)) == kth


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([3, 50, 10**6]), st.sampled_from(DTYPES), st.floats(0, 1))
def test_brackets_over_many_pieces(seed, distinct, dtype, share):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bracket, "SMALL", 64)
        patch.setattr(bracket, "CHUNK", 512)
        patch.setattr(radix, "CHUNK", 300)
        generator = torch.Generator().manual_seed(seed)
        draw = [torch.randint(-distinct, distinct, (n,), generator=generator) for n in (700, 0, 13, 2048, 1)]
        tensors = [(t / distinct).to(dtype) for t in draw]
        eligible = [torch.rand(t.shape, generator=generator) < 0.5 for t in tensors]
        k = round(share * 2762)
        assert_equal(select(lazy(tensors), k), reference(tensors, k))
        masked = [masked_scores(torch.abs, [t], e) for t, e in zip(tensors, eligible, strict=True)]
        expected = reference([t.abs() for t in tensors], k, eligible)
        assert_equal(select(masked, k), expected)
        masks = [torch.empty_like(e) for e in eligible]
        select_by_radix(masked, k, masks)
        assert_equal(masks, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distinct", [1, 40, 10**6])
def test_one_small_layer_is_read_whole(dtype, distinct):
    generator = torch.Generator().manual_seed(distinct)
    scores = (torch.randint(-distinct, distinct, (30, 90), generator=generator) / distinct).to(dtype)
    eligible = torch.rand(scores.shape, generator=generator) < 0.3
    for k in (1, 400, int(eligible.sum()), int(eligible.sum()) + 5, 2699):
        out = torch.ones_like(eligible)
        found = select([masked_scores(torch.abs, [scores], eligible)], k, out=[out])
        assert_equal(found, reference([scores.abs()], k, [eligible]))
        assert_equal([top_mask(scores, k)], reference([scores], k))
        assert torch.equal(exact_threshold(scores, k), scores.flatten().sort().values[-k])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 1000, 100_000, 299_000, 320_098, 320_099])
def test_bracket_hits_on_a_third_of_a_million(dtype, k):
    generator = torch.Generator().manual_seed(k)
    shapes = [(64, 3, 3, 3), (300_000,), (10, 1837), (1,)]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    value, masks = by_bracket(tensors, k)
    assert value is not None
    assert value.dtype == dtype
    assert_equal(masks, reference(tensors, k))
    assert value == radix_threshold(lazy(tensors), k)


@pytest.mark.parametrize("k", [1, 50, 40_000, 100_000, 159_000])
def test_bracket_hits_among_the_eligible(k):
    generator = torch.Generator().manual_seed(k)
    tensors = [torch.randn(n, generator=generator) for n in (300_000, 7, 20_001)]
    eligible = [torch.rand(t.shape, generator=generator) < 0.5 for t in tensors]
    masks = [torch.empty_like(e) for e in eligible]
    parts = [masked_scores(torch.abs, [t], e) for t, e in zip(tensors, eligible, strict=True)]
    value = select_by_bracket(parts, k, masks)
    assert value == torch.cat([t[e] for t, e in zip(tensors, eligible, strict=True)]).abs().sort().values[-k]
    assert_equal(masks, reference([t.abs() for t in tensors], k, eligible))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbouring_floats_are_told_apart(dtype):
    bits = 0x3F800000 + torch.arange(70_000, dtype=torch.int32) if dtype == torch.float32 else None
    ascending = bits.view(dtype) if bits is not None else 1 + torch.arange(70_000, dtype=dtype) * 2.0**-52
    scores = ascending[torch.randperm(70_000, generator=torch.Generator().manual_seed(0))]
    for k in (1, 4_464, 4_465, 35_000, 69_999):
        assert exact_threshold(scores, k) == ascending[-k]
        assert by_radix([scores], k)[0] == ascending[-k]
    assert_equal([top_mask(-scores, 12_345)], reference([-scores], 12_345))


# ------------------------------------------------------------ brackets that miss


ADVERSARIES = {
    "constant": lambda n: torch.ones(n),
    "two values": lambda n: (torch.arange(n) % 3 == 0).float(),
    "ascending": lambda n: torch.arange(n).float(),
    "descending": lambda n: -torch.arange(n).float(),
    "zeros and a few others": lambda n: torch.where(torch.arange(n) % 1000 == 0, torch.arange(n), 0).float(),
    "periodic as the sample": lambda n: (torch.arange(n) % bracket._stride(n)).float(),
    "outliers": lambda n: torch.randn(n, generator=torch.Generator().manual_seed(0)).exp().pow(9),
    "infinite": lambda n: torch.where(torch.arange(n) % 2 == 0, math.inf, -math.inf),
}


@pytest.mark.parametrize("k", [1, 7, 5_000, 60_000, 119_990, 119_999])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_adversarial_data(name, k, tiny_brackets):
    scores = ADVERSARIES[name](120_000)
    assert_equal([top_mask(scores, k)], reference([scores], k))
    assert_equal(by_radix([scores], k)[1], reference([scores], k))
    assert exact_threshold(scores, k) == scores.sort(descending=True).values[k - 1]
    assert kth_largest(scores, k) == scores.sort(descending=True).values[k - 1]


@pytest.mark.parametrize("name", ["constant", "periodic as the sample"])
def test_a_bracket_that_misses_says_so(name, tiny_brackets):
    value, _ = by_bracket([ADVERSARIES[name](300_000)], 150_000)
    assert value is None


def test_more_than_are_eligible(tiny_brackets):
    scores = torch.randn(5_000, generator=torch.Generator().manual_seed(1))
    eligible = scores > 0.5
    for k in (1_000, 1_600, 4_000):
        found = select([masked_scores(torch.clone, [scores], eligible)], k)
        assert_equal(found, reference([scores], k, [eligible]))


# ------------------------------------------------------------ layouts and arguments


@pytest.mark.parametrize(("direct", "chunk"), [(0, 8), (0, 4096), (1000, 8)])
def test_layouts_in_memory(direct, chunk, monkeypatch):
    monkeypatch.setattr(bracket, "DIRECT", direct)
    monkeypatch.setattr(bracket, "CHUNK", chunk)
    dense = torch.randint(0, 9, (6, 5, 4, 3), generator=torch.Generator().manual_seed(0)).float()
    eligible = dense.flip(0) > 2
    variants = {
        "channels last": dense.to(memory_format=torch.channels_last),
        "transposed": dense.transpose(0, 1).contiguous().transpose(0, 1),
        "every other": torch.stack([dense, -dense], dim=-1)[..., 0],
        "expanded": dense[:1].expand(6, -1, -1, -1),
    }
    for variant in variants.values():
        assert not variant.is_contiguous()
        for k in (5, 100, 359):
            assert_equal([top_mask(variant, k)], reference([variant.contiguous()], k))
            out = torch.empty_like(variants["channels last"], dtype=torch.bool)
            found = select([masked_scores(torch.abs, [variant], eligible)], k, out=[out])
            assert found[0] is out
            assert_equal([out], reference([variant.contiguous()], k, [eligible]))
    sampled = LazyScores(torch.clone, (variants["channels last"],), eligible).sample(2, 7)
    assert torch.equal(sampled, dense.flatten()[2::7][eligible.flatten()[2::7]])
    assert_equal([top_mask(dense.flatten()[::2], 9)], reference([dense.flatten()[::2].clone()], 9))


def test_out_is_written_whatever_it_held():
    scores = torch.tensor([1.0, 2.0, 3.0])
    for k in range(4):
        out = torch.ones(3, dtype=torch.bool)
        assert select(lazy([scores]), k, out=[out])[0] is out
        assert_equal([out], reference([scores], k))


def test_mixed_dtypes_rank_exactly():
    tensors = [torch.tensor([1.0, 2.0]).half(), torch.tensor([1.0 + 2.0**-30, 0.0]).double()]
    assert_equal(select(lazy(tensors), 2), reference(tensors, 2))


def test_parameters_and_tensor_k():
    weight = torch.nn.Parameter(torch.tensor([1.0, -3.0, 2.0]))
    assert top_mask(weight, 1).tolist() == [False, False, True]
    assert select([masked_scores(torch.abs, [weight])], torch.tensor(2))[0].tolist() == [False, True, True]


def test_nothing_to_select_from():
    assert top_mask({}, 0) == {}
    assert top_mask(torch.empty(0, 3), 0).shape == (0, 3)
    assert top_mask(torch.tensor(2.0), 1).tolist() is True


def test_other_devices_are_never_waited_for():
    weights = [
        torch.empty(shape, device="meta") for shape in [(3, 4), (7,)]
    ]  # has no values: reading one raises
    active = [torch.empty(weight.shape, dtype=torch.bool, device="meta") for weight in weights]
    parts = [masked_scores(torch.abs, [w], m) for w, m in zip(weights, active, strict=True)]
    for k in (5, torch.empty((), dtype=torch.int64, device="meta")):
        assert [mask.shape for mask in select(parts, k)] == [(3, 4), (7,)]
        assert radix_threshold(parts, k).dtype == torch.float32


@pytest.mark.parametrize("k", [-1, 5])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"k={k} must lie between 0 and 4"):
        top_mask(torch.ones(4), k)
    with pytest.raises(ValueError, match=f"k={k} must lie between 1 and 4"):
        exact_threshold(torch.ones(4), k)


def test_no_threshold_of_nothing():
    with pytest.raises(ValueError, match="k=0 must lie between 1"):
        exact_threshold(torch.ones(4), 0)
    with pytest.raises(ValueError, match="between 1 and 0"):
        exact_threshold({}, 1)


@pytest.mark.parametrize("where", [0, 60_001, 119_999])
@pytest.mark.parametrize("k", [0, 1, 40_000, 120_000])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_is_refused(where, k, sign, tiny_brackets):
    scores = torch.randn(120_000, generator=torch.Generator().manual_seed(3))
    scores[where] = math.copysign(math.nan, sign)
    with pytest.raises(ValueError, match="NaN"):
        top_mask({"a": torch.ones(2), "b": scores}, k)
    if k:
        with pytest.raises(ValueError, match="NaN"):
            exact_threshold(scores, k)


def test_nan_everywhere_is_refused(tiny_brackets):
    with pytest.raises(ValueError, match="NaN"):
        top_mask(torch.full((100_000,), math.nan), 7)


def test_nan_outside_has_no_effect(tiny_brackets):
    scores = torch.randn(10_000, generator=torch.Generator().manual_seed(4))
    eligible = torch.arange(10_000) % 4 > 0
    expected = reference([scores], 3_000, [eligible])
    spoiled = scores.masked_fill(~eligible, math.nan)
    assert_equal(select([masked_scores(torch.clone, [spoiled], eligible)], 3_000, check_nan=True), expected)
    mask = torch.empty(10_000, dtype=torch.bool)
    select_by_radix([masked_scores(torch.clone, [spoiled], eligible)], 3_000, [mask])
    assert_equal([mask], expected)


def test_bad_parts():
    with pytest.raises(ValueError, match="int64"):
        top_mask(torch.arange(4), 1)
    with pytest.raises(ValueError, match="bool"):
        masked_scores(torch.abs, [torch.ones(2)], torch.ones(2))
    with pytest.raises(ValueError, match="shape"):
        masked_scores(torch.abs, [torch.ones(2)], torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one"):
        masked_scores(torch.abs, [])
    with pytest.raises(ValueError, match="out must hold"):
        select(lazy([torch.ones(2)]), 1, out=[torch.ones(2)])
    with pytest.raises(ValueError, match="several devices"):
        select([*lazy([torch.ones(2)]), LazyScores(torch.abs, (torch.ones(2, device="meta"),))], 1)


# ------------------------------------------------------------ several processes


def sharded_layers():
    generator = torch.Generator().manual_seed(5)
    shapes = [(7, 3), (1, 4), (40, 5), (2,)]
    return [torch.randint(-4, 5, shape, generator=generator).float() for shape in shapes]


COUNTS = [0, 1, 17, 60, 111, 226, 227]


def select_shards(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    shards = [layer.tensor_split([2 * len(layer) // 3])[rank] for layer in sharded_layers()]
    eligible = [shard % 3 != 0 for shard in shards]
    group = dist.group.WORLD
    masked = [masked_scores(torch.abs, [s], e) for s, e in zip(shards, eligible, strict=True)]
    plain = [select(lazy(shards), k, group=group) for k in COUNTS]
    among = [select(masked, torch.tensor(k), group=group, check_nan=True) for k in COUNTS]
    values = [radix_threshold(lazy(shards), k, group) for k in COUNTS[1:]]
    torch.save((plain, among, values), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.timeout(180)
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(select_shards, args=(port, str(tmp_path)), nprocs=2, join=True)
    (plain0, among0, values0), (plain1, among1, values1) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)
    )
    layers = sharded_layers()
    eligible = [layer % 3 != 0 for layer in layers]
    flat = torch.cat([layer.flatten() for layer in layers]).sort(descending=True).values
    assert values0 == values1 == [flat[k - 1] for k in COUNTS[1:]]
    for i, k in enumerate(COUNTS):
        joined = [torch.cat(shards) for shards in zip(plain0[i], plain1[i], strict=True)]
        assert_equal(joined, reference(layers, k))
        joined = [torch.cat(shards) for shards in zip(among0[i], among1[i], strict=True)]
        assert_equal(joined, reference([layer.abs() for layer in layers], k, eligible))
