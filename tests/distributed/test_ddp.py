"""DDP on two CPU processes: deterministic selection from equal gradients needs no collective of its own."""

from itertools import pairwise

import pytest
import torch

from tests.distributed.launch import assert_equal_masks, assert_masked, assert_same_run, last_updates, results
from tests.distributed.run import METHODS, STEPS, Uneven, train

pytestmark = pytest.mark.slow
STRATEGY = "ddp"


@pytest.mark.parametrize("method", METHODS)
def test_two_halves_of_a_batch_equal_the_whole(folder, method):
    first, second = results(folder, method)
    assert_same_run(first, second, 0.0)
    whole = train(METHODS[method](), Uneven())
    assert_same_run(first, whole)
    assert_masked(whole)
    assert whole["step"] == STEPS


@pytest.mark.parametrize("method", METHODS)
def test_initial_masks_agree_though_ranks_are_seeded_differently(folder, method):
    first, second = results(folder, method)
    assert_equal_masks({"masks": first["masks"][:1]}, {"masks": second["masks"][:1]})
    starts_sparse = method in ("rigl", "set", "magnitude")
    assert starts_sparse != all(mask.all() for mask in first["masks"][0].values())


def test_masks_do_change():
    for method in ("granet", "rigl", "set", "granet_2_4", "granet_filters"):
        masks = train(METHODS[method](), Uneven())["masks"]
        assert len(masks) >= 5
        different = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(masks)]
        assert any(different), method


@pytest.mark.parametrize("method", METHODS)
def test_selection_sends_nothing(folder, method):
    assert [run["traffic"] for run in results(folder, method)] == [[], []]


def test_accumulated_halves_equal_the_whole(folder):
    """Growth reads what two processes have gathered in two batches: a batch of 32, as one process sees it."""
    first, second = results(folder, "accumulation")
    assert_same_run(first, second, 0.0)
    assert_same_run(first, train(METHODS["granet"](), Uneven(), accumulate_grad_batches=2))
    assert first["step"] == STEPS


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_update_on_both(folder):
    runs = results(folder, "nan")
    assert [(run["step"], run["updates"], run["skipped"]) for run in runs] == [(6, 1, 1)] * 2
    assert [run["warned"] for run in runs] == [True, False], "only the first process speaks"


def test_resumed_equals_uninterrupted(folder):
    for run in results(folder, "resume"):
        whole, resumed = run["whole"], run["resumed"]
        assert_same_run(last_updates(whole, 3), last_updates(resumed, 3), 0.0)
        assert_masked(resumed)


def test_check_ranks_finds_a_mask_that_differs(folder):
    for run in results(folder, "check_ranks"):
        assert run["honest"] == STEPS
        assert run["message"] == "masks differ between processes: ['conv2.weight']"
        assert run["step"] == 6
