"""Masks: exact draws, application to the bit, storage at one bit a weight."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_plasticity.sparsity.masks import (
    apply_masks_,
    local,
    pack_mask,
    random_mask,
    shard_like,
    unpack_mask,
    unshard_like,
)

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def generator(seed=0):
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


@given(shapes, st.floats(0, 1), st.integers(0, 99))
def test_a_random_mask_has_the_exact_count_and_comes_from_its_generator(shape, share, seed):
    count = round(share * math.prod(shape))
    mask = random_mask(shape, count, generator(seed))
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == count
    assert torch.equal(mask, random_mask(shape, count, generator(seed)))


def test_random_masks_are_uniform():
    draws = generator(1)
    share = torch.stack([random_mask((4, 5), 6, draws) for _ in range(2000)]).float().mean(0)
    assert float((share - 0.3).abs().max()) < 0.05  # standard deviation 0.0102


@pytest.mark.parametrize("count", [-1, 21])
def test_a_count_that_does_not_fit_is_refused(count):
    with pytest.raises(ValueError, match=rf"count={count} must lie between 0 and 20"):
        random_mask((4, 5), count, generator())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masks_are_applied_to_the_bit_and_let_nothing_through(dtype):
    wild = [1.5, -2.0, float("nan"), float("inf"), -float("inf"), -0.0, 3.0, 1e-7]
    tensors = [torch.tensor(wild, dtype=dtype), torch.tensor(wild, dtype=dtype).reshape(2, 4)]
    masks = [torch.tensor([1, 0, 0, 0, 0, 0, 1, 1], dtype=torch.bool), torch.tensor([[True], [False]])]
    before, places = [tensor.clone() for tensor in tensors], [tensor.data_ptr() for tensor in tensors]
    apply_masks_(tensors, masks)
    for old, new, mask in zip(before, tensors, masks, strict=True):
        wide = mask.expand(old.shape)
        assert torch.equal(new[~wide], torch.zeros_like(new[~wide]))
        assert not new[~wide].signbit().any()
        assert np.array_equal(
            new[wide].float().numpy().view(np.uint32), old[wide].float().numpy().view(np.uint32)
        )
    assert [tensor.data_ptr() for tensor in tensors] == places, "changed in place"


def test_masks_apply_to_parameters_without_a_graph():
    weight = torch.nn.Parameter(torch.ones(4))
    apply_masks_([weight], [torch.tensor([True, False, True, False])])
    assert weight.tolist() == [1, 0, 1, 0]
    assert weight.grad_fn is None
    apply_masks_([], [])


@given(shapes, st.integers(0, 99))
def test_packing_is_numpys_and_comes_back(shape, seed):
    mask = torch.rand(shape, generator=generator(seed)) < 0.4
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert np.array_equal(packed.numpy(), np.packbits(mask.numpy().ravel(), bitorder="little"))
    assert torch.equal(unpack_mask(packed, shape), mask)


def test_packing_reads_row_major_whatever_the_memory_layout():
    mask = torch.rand(3, 5, generator=generator()) < 0.5
    assert torch.equal(unpack_mask(pack_mask(mask.t()), (5, 3)), mask.t())


def test_bytes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"2 bytes do not hold a mask of shape \(3, 3, 3\) \(27 bits\)"):
        unpack_mask(torch.zeros(2, dtype=torch.uint8), (3, 3, 3))


def test_whole_parameters_are_their_own_shard():
    weight, mask = torch.nn.Parameter(torch.ones(2, 3)), torch.ones(2, 3, dtype=torch.bool)
    assert local(weight) is weight
    assert torch.equal(shard_like(mask, weight), mask)
    assert torch.equal(unshard_like(mask, weight), mask)
