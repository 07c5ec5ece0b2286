"""Stored masks and optimizer state: what is written, what fits, what is zeroed."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_plasticity.sparsity.optimizer_state import shaped_state, was_skipped, zero_outside_
from lightning_plasticity.sparsity.state import check_same_shapes, pack_masks, unpack_masks


def some_masks():
    """Two masks whose sizes are no multiples of 8, and the weights that they belong to."""
    draws = torch.Generator().manual_seed(0)
    parameters = {"a": torch.randn(3, 5, generator=draws), "b": torch.randn(7, generator=draws)}
    return parameters, [torch.rand(p.shape, generator=draws) < 0.5 for p in parameters.values()]


def test_masks_come_back_from_numpys_packed_bits():
    parameters, masks = some_masks()
    packed = pack_masks(masks, parameters)
    for name, mask in zip(parameters, masks, strict=True):
        assert packed[name].tolist() == np.packbits(mask.numpy().ravel(), bitorder="little").tolist()
    shapes = {name: list(p.shape) for name, p in parameters.items()}
    back = unpack_masks(packed, shapes, dict(reversed(parameters.items())))
    assert torch.equal(back[0], masks[1])
    assert torch.equal(back[1], masks[0])
    assert pack_masks([], parameters) == {}


def test_masks_of_other_layers_are_named():
    check_same_shapes({"a": (3, 5)}, {"a": [3, 5]})
    with pytest.raises(ValueError, match=r"differ in \['a', 'b', 'c'\]. Resume with the model, include"):
        check_same_shapes({"a": (3, 5), "b": (7,), "d": (1,)}, {"a": [3, 1], "c": [7], "d": [1]})


def test_state_of_the_weights_shape_is_zeroed_and_no_other():
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.Adam([weight], amsgrad=True)
    weight.grad = torch.full((2, 3), 2.0)
    optimizer.step()
    state = optimizer.state[weight]
    state["ids"], state["row"] = torch.ones(2, 3, dtype=torch.int64), torch.ones(2)
    assert len(shaped_state(optimizer, weight)) == 3, "exp_avg, exp_avg_sq and max_exp_avg_sq"
    mask = torch.tensor([[True, False, True], [False, True, True]])
    zero_outside_(optimizer, [weight], [mask])
    for tensor in (weight, state["exp_avg"], state["exp_avg_sq"], state["max_exp_avg_sq"]):
        assert torch.equal(tensor != 0, mask)
    assert float(state["step"]) == 1.0
    assert state["ids"].all()
    assert state["row"].all()


def test_a_step_is_skipped_where_the_scaler_says_so():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    assert not was_skipped(optimizer)
    for found in (0.0, 1.0):
        optimizer.found_inf = torch.tensor(found)
        assert was_skipped(optimizer) == bool(found)
