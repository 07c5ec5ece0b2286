"""Decoding, darkness, the ring: against slow references, and on a model trained for a quarter of an hour."""

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_plasticity.callbacks import PathIntegrationTest
from lightning_plasticity.data import TrackData
from lightning_plasticity.hippocampus import HippocampalFormation, analysis, dark_tracking_error
from lightning_plasticity.metrics.ring_score import ring_score

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")


def frozen_copy(model):
    return {name: weight.detach().clone() for name, weight in model.weights.items()}, model.state.map(
        torch.clone
    )


def assert_untouched(model, before):
    weights, state = before
    assert all(torch.equal(weight, model.weights[name]) for name, weight in weights.items())
    assert all(torch.equal(tensor, model.state.tensors()[name]) for name, tensor in state.tensors().items())
    assert model.state.step == state.step


def test_decoder_is_ridge_regression(tracker, monkeypatch):
    """Against one solve in NumPy on the whole history, which the streamed one never keeps."""
    kept, run = [], tracker.run

    def watched(chunk, *args, **options):
        state, trace = run(chunk, *args, **options)
        kept.append((chunk["position"], trace.p))
        return state, trace

    monkeypatch.setattr(tracker, "run", watched)
    before = frozen_copy(tracker)
    decoder = analysis.fit_decoder(tracker, minutes=1.0, seed=5)
    assert_untouched(tracker, before)
    assert len(kept) > 2
    for model in range(2):
        rates = np.concatenate([p[::4, model, :, 0].double().numpy() for _, p in kept])
        angle = np.concatenate([x[::4, model, 0].double().numpy() for x, _ in kept]) * 2 * np.pi
        rows = np.c_[rates, np.ones(len(rates))]
        target = np.c_[np.cos(angle), np.sin(angle)]
        slow = np.linalg.solve(rows.T @ rows + 0.01 * np.eye(101), rows.T @ target)
        np.testing.assert_allclose(decoder.weights[model].numpy(), slow, atol=1e-6)
        places = decoder(kept[0][1])[:, model, 0].numpy()
        x, y = (np.c_[kept[0][1][:, model, :, 0].double().numpy(), np.ones(len(places))] @ slow).T
        np.testing.assert_allclose(places, np.arctan2(y, x) / (2 * np.pi) % 1, atol=1e-5)


def test_light_and_dark(tracker):
    before = frozen_copy(tracker)
    dark = analysis.walk_into_the_dark(tracker, 20.0, tests=10)
    assert_untouched(tracker, before)
    assert dark.error.shape == (2, 10, 800)
    assert dark.decoded_light.shape == (2, 10, 120)
    lit = analysis.circular_distance(dark.decoded_light, dark.true_light)[..., 40:]
    assert float(lit.mean()) < 0.02
    found = analysis.errors_at(dark.error, 0.025)
    assert float(found[:, 0].mean()) < 0.03
    assert float(found[:, 4].mean()) < 0.12  # a quarter of the training
    again = dark_tracking_error(tracker, 20.0, 10)
    assert torch.equal(again, dark.error)


@pytest.mark.usefixtures("quick_decoder")
def test_noise_in_the_dark_is_noise(tracker):
    quiet = dark_tracking_error(tracker, 2.0, 5)
    assert torch.equal(quiet, dark_tracking_error(tracker, 2.0, 5))
    noisy = dark_tracking_error(tracker, 2.0, 5, noise=True)
    assert torch.equal(noisy, dark_tracking_error(tracker, 2.0, 5, noise=True))
    assert not torch.equal(noisy, quiet)


@pytest.mark.usefixtures("quick_decoder")
def test_one_model_has_no_leading_dimension():
    error = dark_tracking_error(HippocampalFormation("track"), seconds=1.0, tests=3)
    assert error.shape == (3, 40)
    assert float(error.mean()) > 0.1  # nothing was learned


def test_a_static_bump_is_at_chance(tracker):
    still = HippocampalFormation("track_tuned", models=2, seed=50)
    still.load_state_dict(tracker.state_dict())
    still.lesion("mec_right", "mec_left")
    error = dark_tracking_error(still, 10.0, 10)
    assert float(error[..., -1].mean()) == pytest.approx(0.25, abs=0.1)


def test_the_bump_moves_as_fast_as_the_animal(tracker):
    speeds = torch.tensor([-0.6, -0.2, 0.0, 0.2, 0.6])
    found = analysis.bump_speed(tracker, speeds, seconds=4.0)
    torch.testing.assert_close(found, speeds.expand(2, 5), atol=0.06, rtol=0)


def test_the_ring_is_there(tracker):
    assert analysis.live_cells(tracker).tolist() == [100, 100]
    for index in range(2):
        score = ring_score(*analysis.sorted_ring(tracker, index))
        assert float(score["centre_mass"]) > 0.8
        assert float(score["antisymmetry"]) > 0.9
    untrained = ring_score(*analysis.sorted_ring(HippocampalFormation("track_tuned")))
    assert float(untrained["score"]) < 0.2


def test_dead_cells_are_left_out(tracker):
    model = HippocampalFormation("track_tuned")
    with torch.no_grad():
        model.weights["mec_basal"][0, 10:30, :] = 0.0
    assert analysis.live_cells(model).tolist() == [80]
    ring = analysis.sorted_ring(model)
    kept = torch.cat([torch.arange(10), torch.arange(30, 100)])
    order = model.environment.centres[0][kept].argsort()
    torch.testing.assert_close(
        ring.right, model.weights["mec_right"].detach()[0][kept[order]][:, kept[order]]
    )


def test_errors_at_times():
    error = torch.arange(80.0).expand(2, 3, 80)
    assert analysis.errors_at(error, 0.025).tolist() == [[39.0, 79.0]] * 2


@pytest.mark.usefixtures("quick_decoder")
def test_callback_logs_and_draws(make_trainer):
    test = PathIntegrationTest(every_n_chunks=4, seconds=2.0, tests=2)
    run = make_trainer(test)
    run.fit(HippocampalFormation(), TrackData(minutes=0.1, chunk_seconds=1.0))
    assert [round(minutes * 60) for minutes, _ in test.history] == [4, 6]
    logged = {key for key in run.callback_metrics if "dark" in key}
    assert logged == {"hippocampus/dark_error_1s", "hippocampus/dark_error_2s"}
    assert float(run.callback_metrics["hippocampus/live_cells"]) == 100
    assert set(test.figures()) == {"dark_error"}


@pytest.mark.parametrize("options", [{"every_n_chunks": 0}, {"tests": 0}, {"seconds": 0.5}])
def test_callback_checks_its_arguments(options):
    with pytest.raises(MisconfigurationException, match=next(iter(options))):
        PathIntegrationTest(**options)


def test_only_on_a_track(make_trainer):
    model = HippocampalFormation("latents")
    with pytest.raises(ValueError, match="task='latents' has none"):
        dark_tracking_error(model)
    with pytest.raises(MisconfigurationException, match="of task 'latents'"):
        make_trainer(PathIntegrationTest()).fit(model, TrackData(minutes=1))
    with pytest.raises(ValueError, match="tests=0"):
        dark_tracking_error(HippocampalFormation(), tests=0)
