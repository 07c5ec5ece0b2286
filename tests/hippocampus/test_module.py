"""The module: what it stands for, what it refuses, and that Lightning's machinery works around its rule."""

import csv

import lightning.pytorch as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_plasticity.data import LatentData, TrackData
from lightning_plasticity.hippocampus import HippocampalFormation
from lightning_plasticity.hippocampus.settings import preset

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")


def short(**options):
    """Chunks of a second."""
    return TrackData(**({"minutes": 0.2, "chunk_seconds": 1.0} | options))


@pytest.mark.parametrize(
    ("name", "minutes", "eta", "steps", "l2", "gain"),
    [
        ("track", None, 0.01, (4, 4), {}, None),
        ("remap", None, 0.0, (4, 4), {}, 1.0),
        ("track_tuned", None, 0.0, (6, 2), {}, 3.0),
        ("remap_anchored", None, 0.0, (6, 2), {}, 3.0),
        ("latents", None, 0.001, (4, 4), {"mec_recurrent": 0.005}, None),
    ],
)
def test_presets_are_the_published_settings(name, minutes, eta, steps, l2, gain):
    model = HippocampalFormation(name)
    settings = model.settings
    assert settings.eta["mec_basal"] == eta
    assert (settings.sleep_steps, settings.wake_steps) == steps
    assert dict(settings.l2) == l2
    basal = model.weights["mec_basal"][0].detach()
    if gain is not None:
        assert torch.equal(basal, gain * torch.eye(*basal.shape))
    shapes = {key: tuple(weight.shape[1:]) for key, weight in model.weights.items()}
    expected = {"hpc_apical": (100, 101), "mec_basal": (100, 101), "mec_recurrent": (100, 100)}
    if name == "latents":
        expected = {"hpc_apical": (50, 5), "mec_basal": (5, 50), "mec_recurrent": (5, 5)}
        assert settings.noise_mec_apical == 0.05
    else:
        expected |= {"mec_right": (100, 100), "mec_left": (100, 100)}
    assert shapes == expected


def test_initial_weights():
    model = HippocampalFormation("track", models=4)
    found = {name: float(weight.detach()[:, :, :100].std()) for name, weight in model.weights.items()}
    expected = {
        "hpc_apical": 0.1,
        "mec_basal": 0.1,
        "mec_recurrent": 0.02,
        "mec_right": 0.01414,
        "mec_left": 0.01414,
    }
    assert found == pytest.approx(expected, rel=0.02)
    assert not model.weights["hpc_apical"][:, :, 100].any()
    assert float(HippocampalFormation("latents", models=50).environment.mix.std()) == pytest.approx(
        5**-0.5, rel=0.02
    )


def test_models_at_once_equal_models_alone(make_trainer):
    many = HippocampalFormation("track_tuned", models=3, seed=4)
    make_trainer().fit(many, short(models=3, seed=4))
    for index in range(3):
        alone = HippocampalFormation("track_tuned", seed=4 + index)
        make_trainer().fit(alone, short(seed=4 + index))
        for name, weight in alone.weights.items():
            assert torch.equal(weight[0], many.weights[name][index]), name
        assert torch.equal(alone.state.g[0], many.state.g[index])
        assert torch.equal(alone.error[0], many.error[index])


def test_agents_that_do_the_same_equal_one_agent():
    chunk = TrackData(minutes=1, chunk_seconds=2.0).stream.source.take(80)
    alone = HippocampalFormation("track", engine="eager").double()
    three = HippocampalFormation("track", agents=3, engine="eager").double()
    noise = alone.draw_noise(80, 1, alone._generators)
    for model, agents in ((alone, 1), (three, 3)):
        rule = model_rule(model)
        same = {name: part.expand(-1, -1, agents).double() for name, part in chunk.items()}
        model.state, _ = model.run(same, model.state, model.gate, noise.expand(-1, -1, -1, agents), rule)
    for name, weight in alone.weights.items():
        torch.testing.assert_close(three.weights[name], weight, rtol=0, atol=1e-12)


def model_rule(model):
    from lightning_plasticity.hippocampus import LocalPlasticity

    return LocalPlasticity.of(model.settings, dict(model.weights.items()))


def test_eager_and_native_train_alike(make_trainer):
    found = {}
    for engine in ("eager", "native"):
        model = HippocampalFormation("track", models=2, engine=engine).double()
        make_trainer(precision="64-true").fit(model, short(models=2, minutes=0.1))
        found[engine] = model
    for name, weight in found["eager"].weights.items():
        torch.testing.assert_close(found["native"].weights[name], weight, rtol=0, atol=1e-11)


def test_trainer_features(make_trainer, tmp_path):
    saved = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=4, save_top_k=-1)
    model = HippocampalFormation("track_tuned")
    logger = CSVLogger(tmp_path, name="", version="")
    options = {"logger": logger, "enable_checkpointing": True, "max_epochs": -1, "max_steps": 10}
    run = make_trainer(saved, LearningRateMonitor("step"), **options)
    run.fit(model, short())
    assert run.global_step == 10
    assert model.state.step == 400
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "epoch=0-step=4.ckpt", "epoch=0-step=8.ckpt"
    ]  # fmt: skip
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    minutes = [
        float(row["hippocampus/simulated_minutes"]) for row in rows if row["hippocampus/simulated_minutes"]
    ]
    assert minutes == pytest.approx([(k + 1) / 60 for k in range(10)])
    (name,) = [name for name in rows[0] if name.startswith("lr-") and name.endswith("/mec_recurrent")] or [
        next(name for name in rows[0] if name.startswith("lr-"))
    ]
    rates = [float(row[name]) for row in rows if row[name]]
    assert rates[0] == 0.01
    assert rates[-1] < 0.004  # annealed over the ten steps of the run, not over an hour


def test_early_stopping_on_a_metric(make_trainer):
    stop = EarlyStopping(
        "hippocampus/simulated_minutes", patience=2, mode="min", check_on_train_epoch_end=True
    )
    run = make_trainer(stop, max_epochs=20)
    run.fit(HippocampalFormation("track_tuned"), short(minutes=0.05))
    assert run.current_epoch == 3


def test_freeze_unfreeze_and_lesion(make_trainer):
    model = HippocampalFormation("track_tuned")
    model.freeze("mec_recurrent")
    model.lesion("mec_left")
    start = {name: weight.detach().clone() for name, weight in model.weights.items()}
    make_trainer().fit(model, short())
    moved = {name for name, weight in model.weights.items() if not torch.equal(weight, start[name])}
    assert moved == {"hpc_apical", "mec_right"}
    assert not model.weights["mec_left"].any()
    model.unfreeze("mec_recurrent", "mec_basal")
    assert model.eta["mec_recurrent"] == model.eta["mec_basal"] == 0.01
    model.unfreeze()
    model.set_eta({"mec_left": 0.3})
    assert model.eta["mec_left"] == 0  # what was cut stays cut
    with pytest.raises(ValueError, match=r"\['mec_left'\] were cut"):
        model.unfreeze("mec_left")
    model.freeze()
    assert set(model.eta.values()) == {0.0}


@pytest.mark.parametrize("preset", ["track", "track_tuned"])
def test_which_velocity_the_conjunctive_cells_feel(preset):
    """The authors' feel the one that has just moved the animal, one step late for the next; ours the next."""
    model = HippocampalFormation(preset, overrides={"threshold": 0.0})  # nearly all of them fire
    settings, walk = model.settings, TrackData(minutes=1).stream.source
    first, last = walk.take(39), walk.take(1)
    state, _ = model.run(first, model.state, model.gate)
    after, _ = model.run(last, state, model.gate)
    moved = float(last["position"][0, 0, 0] - first["position"][-1, 0, 0])
    moving = (moved - round(moved)) / settings.dt  # along the shorter way around the track
    following = walk.take(1)["velocity"].item()
    assert abs(moving - following) > 1e-3
    u = (moving if settings.lag else following) / settings.full_speed
    expected = [(after.g[0, :, 0] + sign * u).clamp_min(0) for sign in (1, -1)]
    assert any(bool(part.any()) for part in expected)
    torch.testing.assert_close(after.c[0, :, 0], torch.cat(expected), atol=1e-5, rtol=0)
    assert float(after.u) == pytest.approx(following / settings.full_speed)


class FreezeAt(L.Callback):
    """Freezes a map in the middle of a run."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 4:
            pl_module.freeze("hpc_apical")
            self.weight = pl_module.weights["hpc_apical"].detach().clone()
            self.induction = trainer.optimizers[0].induction("hpc_apical").clone()


def test_freeze_inside_a_run_also_stops_the_induction(make_trainer):
    model, freeze = HippocampalFormation("track_tuned"), FreezeAt()
    run = make_trainer(freeze)
    run.fit(model, short())
    assert torch.equal(model.weights["hpc_apical"], freeze.weight)
    assert torch.equal(run.optimizers[0].induction("hpc_apical"), freeze.induction)
    assert freeze.induction.any()


def test_mode_names_and_rate_maps(tracker):
    model = HippocampalFormation("track_tuned")
    model.mode = "sleep"
    assert model.gate.hpc == model.gate.mec == "sleep"
    with pytest.raises(ValueError, match="mode hpc='awake'"):
        model.mode = "awake"
    positions = tracker.environment.centres[0]
    basal = tracker.rate_map("hpc", "wake", positions)[0]
    torch.testing.assert_close(basal.diagonal(), torch.ones(100))
    mec = tracker.rate_map("mec", "wake", positions)[0]
    torch.testing.assert_close(mec, torch.tanh(3 * basal))  # W_gB = 3 I
    generated = tracker.rate_map("hpc", "sleep", positions)[0]
    assert float((generated - basal).abs().mean()) < 0.03  # learned
    apical = tracker.rate_map("mec", "sleep", positions)[0]
    assert float((apical - mec).abs().mean()) < 0.06
    with pytest.raises(ValueError, match="layer='ca1'"):
        tracker.rate_map("ca1", "wake", positions)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"preset": "maze"}, "preset='maze'"),
        ({"models": 0}, "models=0"),
        ({"agents": 0}, "agents=0"),
        ({"engine": "cuda"}, "engine='cuda'"),
        ({"reduction": "max"}, "reduction='max'"),
        ({"sync": "all"}, "sync='all'"),
        ({"overrides": {"sleepsteps": 3}}, "sleepsteps"),
        ({"overrides": {"threshold": 1.0, "dt": -1.0}}, "dt=-1.0"),
        ({"overrides": {"sleep_steps": 2.5}}, "whole steps"),
        ({"overrides": {"eta": {"mec": 0.1}}}, "eta names mec"),
        ({"overrides": {"anneal_from": 2.0}}, "anneal_from=2.0"),
    ],
)
def test_bad_arguments(options, text):
    with pytest.raises(ValueError, match=text):
        HippocampalFormation(**options)


@pytest.mark.parametrize("name", ["freeze", "unfreeze", "lesion"])
def test_unknown_maps(name):
    with pytest.raises(ValueError, match="choose from hpc_apical"):
        getattr(HippocampalFormation(), name)("ca3")


def test_refuses_what_it_cannot_run(make_trainer):
    model = HippocampalFormation()
    with pytest.raises(MisconfigurationException, match="precision='bf16-mixed'"):
        make_trainer(precision="bf16-mixed").fit(model, short())
    with pytest.raises(ValueError, match="a chunk of 42 steps is no whole number of theta cycles of 8"):
        make_trainer().fit(model, TrackData(minutes=0.35, chunk_seconds=1.05))
    with pytest.raises(MisconfigurationException, match="is not for task='track': give TrackData"):
        make_trainer().fit(model, LatentData(minutes=0.1, chunk_seconds=1.0))
    with pytest.raises(MisconfigurationException, match="agents=2, the model agents=1"):
        make_trainer().fit(model, short(agents=2))
    with pytest.raises(MisconfigurationException, match="models=3, the model models=1"):
        make_trainer().fit(model, short(models=3))
    with pytest.raises(ValueError, match="models=3, agents=1, the model models=1, agents=1"):
        make_trainer().fit(model, short(models=3).train_dataloader())
    with pytest.raises(MisconfigurationException, match="latents=3, the model latents=5"):
        make_trainer().fit(
            HippocampalFormation("latents"), LatentData(minutes=0.1, chunk_seconds=1.0, latents=3)
        )
    with pytest.raises(MisconfigurationException, match=r"weights of torch.bfloat16 would lose"):
        make_trainer().fit(HippocampalFormation().bfloat16(), short())
    with pytest.raises(MisconfigurationException, match=r"dt=0.05"):
        make_trainer().fit(model, short(dt=0.05))
    with pytest.raises(MisconfigurationException, match=r"circumference=2.0"):
        make_trainer().fit(model, short(circumference=2.0))


def test_overrides_are_merged():
    changed = preset("track").replace(eta={"mec_basal": 0.0}, threshold=0.4)
    assert changed.eta == dict(preset("track").eta) | {"mec_basal": 0.0}
    assert changed.threshold == 0.4


def test_prediction_error_is_the_low_passed_difference(make_trainer):
    model = HippocampalFormation("track", engine="eager")
    errors, run = [], model.run

    def watched(*args, **options):
        state, trace = run(*args, **options)
        errors.extend(trace.error[:, 0].double())
        return state, trace

    model.run = watched
    make_trainer().fit(model, short(minutes=0.1))
    counted = errors[16:]  # after two cycles
    value = counted[0]
    for error in counted[1:]:
        value = value + 0.025 / 60 * (error - value)
    torch.testing.assert_close(model.error[0].double(), value, rtol=1e-5, atol=1e-7)


def test_record_is_bounded():
    from lightning_plasticity.hippocampus.dynamics import Trace
    from lightning_plasticity.hippocampus.recorder import MOST, Recorder

    recorder = Recorder()
    chunk = {"position": torch.zeros(8, 1, 1)}
    trace = Trace(torch.zeros(8, 1, 3, 1), torch.zeros(8, 1, 2, 1), torch.zeros(8, 1, 2))
    for k in range(10 * MOST):
        recorder.record(chunk, trace, torch.zeros(1, 2), float(k + 1))
    minutes, errors = recorder.history()
    assert MOST <= len(minutes) < 2 * MOST
    assert errors.shape == (len(minutes), 1, 2)
    assert len(set(torch.tensor(minutes).diff().tolist())) == 1  # evenly spaced
