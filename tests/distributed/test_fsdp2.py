"""FSDP2 on two CPU processes: parameters, masks and scores stay in shards; only counts are exchanged."""

import pytest
import torch

from tests.distributed.launch import assert_masked, assert_same_run, last_updates, results
from tests.distributed.run import METHODS, STEPS, Uneven, train
from tests.trainer.modules import adamw

pytestmark = pytest.mark.slow
STRATEGY = "fsdp2"
RADIX_BUCKETS = 2**16


@pytest.mark.parametrize("method", METHODS)
def test_shards_train_like_one_process(folder, method):
    first, second = results(folder, method)
    whole = train(METHODS[method](), Uneven())
    assert_same_run(first, second, 0.0)
    assert_same_run(first, whole)
    assert_masked(first)
    assert first["step"] == STEPS


@pytest.mark.parametrize("method", METHODS)
def test_an_update_never_assembles_or_sends_weights(folder, method):
    filters = 8  # of the widest layer
    for run in results(folder, method):
        assert all(numel <= filters for numel in run["full"])
        assert bool(run["full"]) == (method == "granet_filters")
        assert run["traffic"] or method == "magnitude"
        for operation, dtype, numel in run["traffic"]:
            if dtype == "torch.int64":
                assert numel <= RADIX_BUCKETS, operation
            else:
                assert method == "granet_filters"
                assert numel <= filters, operation


@pytest.mark.parametrize("kind", ["shards", "file"])
def test_resumed_equals_uninterrupted(folder, kind):
    for run in results(folder, "resume"):
        whole, resumed = run[kind]["whole"], run[kind]["resumed"]
        assert_same_run(last_updates(whole, 2), last_updates(resumed, 2), 0.0)
        assert_masked(resumed)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_single_file_resumes_in_one_process(folder):
    """Masks are stored whole, so the number of processes may change."""
    path = folder / "fsdp2_file.ckpt"
    whole = results(folder, "resume")[0]["file"]["whole"]
    alone = train(METHODS["rigl"](), Uneven(1, adamw), ckpt_path=path, alike=True)
    assert_same_run(last_updates(whole, 2), last_updates(alone, 2))


def test_state_is_plain_and_packed(folder):
    for path in (folder / "fsdp2_file.ckpt", folder / "fsdp2_shards.ckpt" / "meta.pt"):
        state = next(iter(torch.load(path, weights_only=True)["callbacks"].values()))["engines"][0]
        for name, shape in state["shapes"].items():
            size = torch.Size(shape).numel()
            assert state["masks"][name].dtype == torch.uint8
            assert state["masks"][name].shape == (-(-size // 8),)


def test_check_ranks_does_not_compare_shards(folder):
    assert [run["step"] for run in results(folder, "check_ranks")] == [STEPS, STEPS]


def test_another_dimension_is_refused(folder):
    for run in results(folder, "other_dimension"):
        assert "only FSDP2's data-parallel sharding along dimension 0 is supported" in run["message"]


def test_a_model_sharded_in_part_is_refused(folder):
    for run in results(folder, "partly"):
        assert "some masked parameters are sharded and some are whole" in run["message"]
