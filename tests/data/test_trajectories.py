"""Walks: their statistics, against a loop; recordings; chunks; states. Latent signals: their law."""

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from scipy.linalg import cho_factor, cho_solve

from lightning_plasticity.data import LatentData, TrackData
from lightning_plasticity.data.latents import gaussian_process
from lightning_plasticity.data.trajectories import Playback, Walker, sargolini


def test_a_walk_is_the_authors_loop():
    """The vectorised walk against one written step by step."""
    walker, twin = (Walker([7], agents=1, mean=0.2, std=0.5) for _ in range(2))
    x, v = float(twin.position), float(twin.velocity)
    jumps = [torch.randn(n, 1, generator=twin._generators[0], dtype=torch.float64) for n in (400, 400, 100)]
    jumps = torch.cat(jumps).flatten().tolist()
    found = walker.take(900)  # more than a block
    for t in range(900):
        assert found["velocity"][t].item() == pytest.approx(v, abs=1e-6)
        x = (x + 0.025 * v) % 1.0
        v = v + 0.025 * (0.2 - v) / 0.7 + 0.5 * np.sqrt(2 * 0.025 / 0.7) * jumps[t]
        assert found["position"][t].item() == pytest.approx(x, abs=1e-6)
        assert found["coming"][t].item() == pytest.approx(v, abs=1e-6)


def test_chunks_join():
    walker = Walker([3, 4], agents=2)
    first, second = walker.take(40), walker.take(40)
    assert torch.equal(first["coming"][-1], second["velocity"][0])
    step = second["position"][0] - first["position"][-1]
    step = step - step.round()
    torch.testing.assert_close(step, 0.025 * second["velocity"][0], atol=1e-6, rtol=0)


def test_speed_has_the_set_mean_spread_and_coherence():
    velocity = Walker([0], agents=400, mean=0.2, std=0.5).take(4000)["velocity"][400:, 0].double()
    assert float(velocity.mean()) == pytest.approx(0.2, abs=0.01)
    discrete = 0.5 / np.sqrt(1 - 0.025 / 0.7 / 2)  # the stationary spread of the discrete process
    assert float(velocity.std()) == pytest.approx(discrete, rel=0.01)
    centred = velocity - 0.2
    lagged = (centred[28:] * centred[:-28]).mean() / centred.square().mean()
    assert float(lagged) == pytest.approx((1 - 0.025 / 0.7) ** 28, abs=0.02)


def test_places_are_visited_evenly():
    position = Walker([0], agents=200).take(2000)["position"]
    counts = torch.histc(position, 20, 0, 1) / position.numel() * 20
    assert 0.85 < float(counts.min()) <= float(counts.max()) < 1.15
    assert float(position.min()) >= 0
    assert float(position.max()) < 1


def test_models_have_seeds_of_their_own():
    many = next(iter(TrackData(minutes=1, models=3, seed=5).train_dataloader()))["position"]
    for model in range(3):
        alone = next(iter(TrackData(minutes=1, seed=5 + model).train_dataloader()))["position"]
        assert torch.equal(alone[:, 0], many[:, model])


@pytest.mark.parametrize("make", [TrackData, LatentData])
def test_an_epoch_is_the_whole_stream_and_the_next_goes_on(make):
    data, twice = make(minutes=0.5), make(minutes=0.5)
    first = list(data.train_dataloader())
    assert len(first) == len(data.train_dataloader()) == 3
    assert {len(part) for chunk in first for part in chunk.values()} == {400}
    second = next(iter(data.train_dataloader()))
    assert not any(torch.equal(second[name], first[0][name]) for name in second)
    loader = twice.train_dataloader()
    list(loader)
    again = next(iter(loader))
    assert all(torch.equal(again[name], part) for name, part in second.items())


@pytest.mark.parametrize("options", [{}, {"source": "recorded"}])
def test_state_goes_on_inside_an_epoch(options, tmp_path):
    if options:
        path = tmp_path / "walk.npz"
        time = np.arange(0, 40, 0.02)
        np.savez(path, t=time, position=0.3 * time)
        options = {"source": str(path)}
    data, again = TrackData(minutes=1, seed=1, **options), TrackData(minutes=1, seed=2, **options)
    chunks = iter(data.train_dataloader())
    for _ in range(2):
        next(chunks)
    torch.save(data.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rest, found = list(chunks), list(again.train_dataloader())
    assert len(rest) == len(found) == 4
    for one, other in zip(rest, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_mean_speed_can_be_changed_on_the_way():
    data = TrackData(minutes=20, chunk_seconds=300, agents=50)
    chunks = iter(data.train_dataloader())
    assert abs(float(next(chunks)["velocity"].mean())) < 0.05
    data.set_speed_mean(0.4)
    assert float(next(chunks)["velocity"].mean()) == pytest.approx(0.4, abs=0.05)


def test_playback_turns_around_at_the_end():
    """Places 0, 1, 2, 3 of a track of 10 m, a second apart."""
    playback = Playback(torch.tensor([0.0, 1.0, 2.0, 3.0]), dt=1.0, circumference=10.0)
    found = playback.take(7)
    assert found["position"].flatten().tolist() == [1, 2, 3, 2, 1, 0, 1]
    assert found["velocity"].flatten().tolist() == [1, 1, 1, -1, -1, -1, 1]
    assert found["coming"].flatten().tolist() == [1, 1, -1, -1, -1, 1, 1]


def test_a_recording_is_interpolated_and_unwrapped(tmp_path):
    time = np.array([0.0, 0.1, 0.3, 0.4, 0.5])
    np.savez(tmp_path / "walk.npz", t=time, position=(0.9 + time) % 1.0)
    data = TrackData(minutes=1, source=str(tmp_path / "walk.npz"), chunk_seconds=0.2)
    chunk = next(iter(data.train_dataloader()))
    expected = (0.9 + 0.025 * np.arange(1, 9)) % 1
    np.testing.assert_allclose(chunk["position"].flatten().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(chunk["velocity"].flatten().numpy(), 1.0, atol=1e-5)
    with pytest.raises(MisconfigurationException, match="is a recording"):
        data.set_speed_mean(0.2)


def test_the_rat_runs_around_its_box():
    time, place = sargolini()
    assert time.shape == place.shape == (29_800,)
    assert 599 < time[-1] < 600
    assert 0 <= place.min() < 0.01
    assert 0.99 < place.max() < 1
    chunks = list(TrackData(minutes=10, source="sargolini", agents=2).train_dataloader())
    velocity = torch.cat([chunk["velocity"] for chunk in chunks])
    assert velocity.shape == (24_000, 1, 2)
    assert 0.02 < float(velocity.abs().median()) < 0.2
    position = torch.cat([chunk["position"] for chunk in chunks])
    assert float(torch.histc(position, 20, 0, 1).min()) > 500  # it is everywhere


def test_the_rat_needs_ratinabox(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="trajectories"):
        TrackData(source="sargolini")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"minutes": 0}, "minutes=0"),
        ({"minutes": 1.01}, "minutes=1.01"),
        ({"chunk_seconds": 0.03}, "chunk_seconds=0.03"),
        ({"agents": 0}, "agents=0"),
        ({"models": 0}, "models=0"),
        ({"dt": 0}, "dt=0"),
        ({"speed_std": -1}, "speed_std=-1"),
        ({"circumference": 0}, "circumference=0"),
        ({"source": "nowhere.npz"}, "neither walk, sargolini nor a file"),
    ],
)
def test_bad_arguments(options, text):
    with pytest.raises(MisconfigurationException, match=text):
        TrackData(**options)


@pytest.mark.parametrize("arrays", [{"t": [0.0, 1.0]}, {"t": [1.0, 0.0], "position": [0.0, 0.1]}])
def test_bad_recordings(arrays, tmp_path):
    np.savez(tmp_path / "walk.npz", **arrays)
    with pytest.raises(MisconfigurationException, match=r"walk\.npz"):
        TrackData(source=str(tmp_path / "walk.npz"))


def test_signals_have_the_kernel():
    signals = gaussian_process(40_000, 20, 0.025, 1.0, torch.Generator().manual_seed(0)).numpy()
    assert signals.std() == pytest.approx(1.0, abs=0.03)
    for seconds, expected in ((0.5, 0.8825), (1.0, 0.6065), (2.0, 0.1353)):
        lag = round(seconds / 0.025)
        assert (signals[lag:] * signals[:-lag]).mean() / signals.var() == pytest.approx(expected, abs=0.04)


def test_signals_follow_the_conditional_law_of_the_authors_window():
    """Each step given the 119 before: weights and variance from the kernel alone, in float64."""
    lags = np.arange(120) * 0.025
    kernel = np.exp(-(np.subtract.outer(lags, lags) ** 2) / 2) + 1e-5 * np.eye(120)
    weights = cho_solve(cho_factor(kernel[:-1, :-1]), kernel[:-1, -1])
    variance = kernel[-1, -1] - kernel[-1, :-1] @ weights
    np.testing.assert_allclose(weights[-5:], [0.1044, 0.1758, 0.2630, 0.3677, 0.4917], atol=1e-4)
    assert variance == pytest.approx(1.63668e-5, rel=1e-4)
    signals = gaussian_process(20_000, 4, 0.025, 1.0, torch.Generator().manual_seed(1)).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(signals, 120, axis=0).reshape(-1, 120)
    residual = windows[:, -1] - windows[:, :-1] @ weights
    assert residual.var() == pytest.approx(variance, rel=0.03)
    assert abs(residual.mean()) < 1e-4


@pytest.mark.parametrize(
    "options", [{"minutes": 0}, {"agents": 0}, {"latents": 0}, {"timescale": 0}, {"dt": -1}]
)
def test_bad_latents(options):
    with pytest.raises(MisconfigurationException, match=next(iter(options))):
        LatentData(**options)
