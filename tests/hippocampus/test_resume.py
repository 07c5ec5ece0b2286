"""A run stopped after any chunk and resumed equals the run that was never stopped, bit for bit."""

import lightning.pytorch as L
import pytest
import torch

from lightning_plasticity.callbacks import PathIntegrationTest, Remap
from lightning_plasticity.data import LatentData, TrackData
from lightning_plasticity.hippocampus import HippocampalFormation
from tests.identical import assert_identical

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

CHUNKS = 12


class SaveEach(L.Callback):
    """Saves a checkpoint after every chunk."""

    def __init__(self, folder):
        self.folder = folder

    def path(self, step):
        return self.folder / f"{step}.ckpt"

    def on_train_batch_end(self, trainer, pl_module, *_):
        trainer.save_checkpoint(self.path(trainer.global_step))


def everything(run, model, data):
    """All that a run leaves."""
    return {
        "weights": dict(model.weights.items()),
        "optimizer": run.optimizers[0].state_dict(),
        "scheduler": {
            k: v for k, v in run.lr_scheduler_configs[0].scheduler.state_dict().items() if k[0] != "_"
        },
        "state": model.state.tensors(),
        "step": model.state.step,
        "error": model.error,
        "environment": model.environment.tensors(),
        "generators": [generator.get_state() for generator in model._generators],
        "recorder": model.recorder.state_dict(),
        "gate": vars(model.gate),
        "eta": model.eta,
        "data": data.state_dict(),
    }


def run(make_trainer, preset, callbacks=(), ckpt_path=None, engine="auto", seed=0, **options):
    model = HippocampalFormation(preset, models=2, seed=seed, engine=engine)
    make_data = LatentData if preset == "latents" else TrackData
    data = make_data(minutes=CHUNKS / 60, chunk_seconds=1.0, models=2, seed=seed)
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return everything(trainer, model, data)


@pytest.mark.parametrize(
    ("preset", "engine", "stops"),
    [("track_tuned", "auto", range(1, CHUNKS)), ("track", "eager", (5,)), ("latents", "auto", (1, 7))],
)
def test_stop_after_any_chunk(make_trainer, tmp_path, preset, engine, stops):
    save = SaveEach(tmp_path)
    whole = run(make_trainer, preset, [save], engine=engine)
    assert whole["step"] == CHUNKS * 40
    for step in stops:
        # another seed: everything must come from the checkpoint
        again = run(make_trainer, preset, ckpt_path=save.path(step), engine=engine, seed=9)
        assert_identical(whole, again, f"resumed after chunk {step}")


@pytest.mark.usefixtures("quick_decoder")
def test_stop_around_a_remapping(make_trainer, tmp_path):
    """Before the switch, in the anchor, and after it; with tests in the dark on the way."""

    def callbacks():
        remap = Remap(4 / 60, anchor_seconds=3.0, speed_mean=0.3, tests=2)
        return remap, PathIntegrationTest(every_n_chunks=5, seconds=1.0, tests=2)

    save, first = SaveEach(tmp_path), callbacks()
    whole = run(make_trainer, "remap_anchored", [*first, save])
    assert first[0].stage == "after"
    assert whole["gate"]["mec"] == "theta"
    for step in (3, 4, 5, 8):
        again = callbacks()
        found = run(make_trainer, "remap_anchored", again, ckpt_path=save.path(step), seed=9)
        assert_identical(whole, found, f"resumed after chunk {step}")
        for one, other in zip(first, again, strict=True):
            assert_identical(one.state_dict(), other.state_dict(), f"callback resumed after chunk {step}")


@pytest.mark.usefixtures("quick_decoder")
def test_a_test_in_the_dark_does_not_disturb(make_trainer):
    alone = run(make_trainer, "track_tuned")
    torch.manual_seed(3)
    watched = run(
        make_trainer, "track_tuned", [PathIntegrationTest(every_n_chunks=2, seconds=1.0, tests=3, noise=True)]
    )
    assert_identical(alone, watched)


def test_a_second_epoch_walks_on(make_trainer):
    whole = run(make_trainer, "track_tuned", max_epochs=2)
    assert whole["step"] == 2 * CHUNKS * 40
    model = HippocampalFormation("track_tuned", models=2)
    data = TrackData(minutes=2 * CHUNKS / 60, chunk_seconds=1.0, models=2)
    make_trainer().fit(model, data)
    assert torch.equal(model.weights["mec_recurrent"], whole["weights"]["mec_recurrent"])


def test_loads_without_a_trainer(make_trainer, tmp_path):
    save = SaveEach(tmp_path)
    whole = run(make_trainer, "track_tuned", [save])
    model = HippocampalFormation.load_from_checkpoint(save.path(CHUNKS), weights_only=True)
    assert_identical(whole["weights"], dict(model.weights.items()))
    assert_identical(whole["environment"], model.environment.tensors())
    make_trainer().fit(model, TrackData(minutes=0.05, chunk_seconds=1.0, models=2))
    assert model.state.step == (CHUNKS + 3) * 40


def test_another_shape_is_refused(make_trainer, tmp_path):
    save = SaveEach(tmp_path)
    run(make_trainer, "track_tuned", [save])
    with pytest.raises(Exception, match=r"models=3|size mismatch"):
        make_trainer().fit(
            HippocampalFormation("track_tuned", models=3),
            TrackData(minutes=0.2, chunk_seconds=1.0, models=3),
            ckpt_path=save.path(2),
        )
