"""Two gloo processes: averaged updates equal one process with both agents; seeds stay apart; resuming."""

import pytest
import torch

from lightning_plasticity.data.trajectories import Walker
from lightning_plasticity.hippocampus import HippocampalFormation, LocalPlasticity
from tests.distributed.launch import results as results_of
from tests.distributed.launch import run_two

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What both processes returned."""
    folder = tmp_path_factory.mktemp("ddp")
    run_two("tests.hippocampus.ddp_worker", folder)
    return results_of(folder, "result")


def one_process(reduction):
    """Both processes' walks and noises as two agents of one model."""
    model = HippocampalFormation("track", agents=2, engine="eager", reduction=reduction).double()
    rule = LocalPlasticity.of(model.settings, dict(model.weights.items()), reduction)
    walkers = [Walker([seed]) for seed in range(2)]
    generators = [HippocampalFormation("track", seed=seed)._generators for seed in range(2)]
    for _ in range(6):
        chunks = [walker.take(8) for walker in walkers]
        chunk = {name: torch.cat([part[name] for part in chunks], -1).double() for name in chunks[0]}
        noise = torch.cat([model.draw_noise(8, 1, own) for own in generators], -1)
        model.state, _ = model.run(chunk, model.state, model.gate, noise, rule)
    return model, rule


@pytest.mark.parametrize("sync", ["mean", "sum"])
def test_reduced_every_step_two_processes_equal_two_agents(results, sync):
    model, rule = one_process(sync)
    for rank, result in enumerate(results):
        found = result[f"{sync}_step"]
        assert found["step"] == 6
        for name, weight in model.weights.items():
            torch.testing.assert_close(found["weights"][name], weight.detach(), rtol=0, atol=1e-12)
            torch.testing.assert_close(found["induction"][name], rule.induction(name), rtol=0, atol=1e-12)
        torch.testing.assert_close(
            found["state"]["g"], model.state.g[..., rank : rank + 1], rtol=0, atol=1e-12
        )


def test_reduced_every_chunk_processes_agree_and_stay_close(results):
    one, other = (result["mean_chunk"] for result in results)
    model, _ = one_process("mean")
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name])
        assert torch.equal(one["induction"][name], other["induction"][name])
        assert (
            0 < float((weight - model.weights[name].detach()).abs().max()) < 0.01
        )  # the replicas drift within a chunk
    assert torch.equal(one["environment"]["centres"], other["environment"]["centres"])
    assert not torch.equal(one["state"]["p"], other["state"]["p"])  # walks of their own


def test_without_sync_processes_have_seeds_of_their_own(results):
    for rank, result in enumerate(results):
        alone = HippocampalFormation("track", seed=rank).double()
        rule = LocalPlasticity.of(alone.settings, dict(alone.weights.items()))
        walker = Walker([rank])
        for _ in range(6):
            chunk = {name: part.double() for name, part in walker.take(8).items()}
            noise = alone.draw_noise(8, 1, alone._generators)
            alone.state, _ = alone.run(chunk, alone.state, alone.gate, noise, rule)
        for name, weight in alone.weights.items():
            assert torch.equal(result["none_chunk"]["weights"][name], weight.detach()), name
    assert not torch.equal(*(result["none_chunk"]["weights"]["mec_recurrent"] for result in results))


def test_what_is_cut_is_cut_in_every_process(results):
    for result in results:
        assert not result["cut"]["weights"]["mec_left"].any()
        assert result["cut"]["weights"]["mec_right"].any()


def test_a_second_run_goes_on_from_the_first(results):
    one, other = (result["twice"] for result in results)
    assert one["steps"] == other["steps"] == 2 * 6 * 8
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name])
    assert not torch.equal(one["state"]["noise"], other["state"]["noise"])
    assert all("sync='none' draws" in result["none_twice"] for result in results)


@pytest.mark.parametrize("scenario", ["mean_chunk", "none_chunk"])
def test_resumed_equals_uninterrupted(results, scenario):
    for result in results:
        whole, again = result[scenario], result[f"{scenario}_resumed"]
        for part in ("weights", "induction", "state", "environment"):
            for name, tensor in whole[part].items():
                assert torch.equal(tensor, again[part][name]), f"{part}.{name}"
