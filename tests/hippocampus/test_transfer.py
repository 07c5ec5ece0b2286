"""A new environment: what changes at the switch, and that an anchored transfer brings tracking back."""

from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from lightning_plasticity.callbacks import Remap
from lightning_plasticity.data import LatentData, TrackData
from lightning_plasticity.hippocampus import HippocampalFormation
from lightning_plasticity.hippocampus.transfer import Switch, remap

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")


def test_the_switch():
    model = HippocampalFormation("remap", models=2)
    model.state = model.state.map(torch.ones_like)
    old, ring = model.environment.centres.clone(), model.weights["mec_recurrent"].detach().clone()
    remap(model, Switch())
    new = model.environment.centres
    assert new.shape == old.shape
    assert not torch.equal(new[0], new[1])
    grid = (torch.arange(100) + 0.5) / 100
    assert float((new.sort(1).values - grid).abs().max()) <= 0.0045 + 1e-6  # jittered as before ...
    assert float((new.diff(dim=1) > 0).float().mean()) < 0.7  # ... but shuffled
    assert not any(bool(getattr(model.state, name).any()) for name in ("p", "g", "c", "u"))
    assert bool((model.state.noise == 1).all())
    assert torch.equal(model.weights["mec_recurrent"], ring)
    frozen = dict.fromkeys(("mec_recurrent", "mec_right", "mec_left"), 0.0)
    assert model.eta == {"hpc_apical": 0.01, "mec_basal": 0.01, **frozen}


def test_uniform_basal_map_and_kept_rates():
    model = HippocampalFormation("remap_anchored")
    model.state = model.state.map(torch.ones_like)
    remap(model, Switch(basal="uniform", reset_rates=False, eta=0.02))
    assert bool((model.weights["mec_basal"][:, :, :100] == 0.01).all())
    assert not model.weights["mec_basal"][:, :, 100].any()
    assert bool((model.state.g == 1).all())
    assert model.eta["hpc_apical"] == 0.02


class Watch(Remap):
    """Notes gate, rates and mean speed of every chunk."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        groups = trainer.optimizers[0].groups
        row = (pl_module.gate.hpc, pl_module.gate.mec, groups["hpc_apical"]["lr"], groups["mec_right"]["lr"])
        self.rows = [*getattr(self, "rows", []), (*row, trainer.datamodule.stream.source.mean)]


@pytest.mark.usefixtures("quick_decoder")
def test_stages(make_trainer):
    callback = Watch(3 / 60, anchor_seconds=2.0, speed_mean=0.3, tests=2)
    run = make_trainer(callback)
    run.fit(HippocampalFormation("remap_anchored"), TrackData(minutes=9 / 60, chunk_seconds=1.0))
    hpc, mec, eta, ring, mean = zip(*callback.rows, strict=True)
    assert set(hpc) == {"theta"}
    assert mec == ("theta",) * 3 + ("sleep",) * 2 + ("theta",) * 4
    assert ring[:3] == pytest.approx(eta[:3])
    assert eta[2] < eta[1] <= eta[0]  # annealed to the switch
    assert ring[3:] == (0.0,) * 6
    assert eta[3:6] == pytest.approx([0.01] * 3)  # constant in the anchor
    assert eta[6:] == pytest.approx([0.02 * 0.01 + 0.98 * 0.01 * left for left in (0.75, 0.5, 0.25)])
    assert mean == (0.0,) * 3 + (0.3,) * 6
    assert set(callback.errors) == {"before", "just_after", "after"}
    assert "hippocampus/transfer_after" in run.callback_metrics


class StopAfter(Callback):
    """Ends a run as a time limit does."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = batch_idx == 4


@pytest.mark.usefixtures("quick_decoder")
@pytest.mark.parametrize("end", ["max_steps", "stop"])
def test_the_transfer_is_measured_whatever_ends_the_run(make_trainer, tmp_path, end):
    remap = Remap(3 / 60, anchor_seconds=2.0, tests=2)
    logger = CSVLogger(tmp_path)
    options = {"max_steps": 5} if end == "max_steps" else {}
    run = make_trainer(remap, *([StopAfter()] if end == "stop" else []), logger=logger, **options)
    run.fit(HippocampalFormation("remap_anchored"), TrackData(minutes=9 / 60, chunk_seconds=1.0))
    assert run.global_step == 5
    assert set(remap.errors) == {"before", "just_after", "after"}
    logger.save()
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("hippocampus/transfer_after")
    logged = [row.split(",")[column] for row in rows[1:]]
    assert [float(one) for one in logged if one] == [pytest.approx(float(remap.errors["after"].mean()))]


@pytest.mark.usefixtures("quick_decoder")
def test_presets_fill_what_is_not_given(make_trainer):
    for preset, expected in {
        "remap": (0.0, "keep", True, False, 0.2),
        "remap_anchored": (60.0, "uniform", False, True, 0.0),
    }.items():
        callback = Remap(0.5)
        run = make_trainer(callback)
        run.fit(HippocampalFormation(preset), TrackData(minutes=1))
        found = (
            callback.anchor_seconds,
            callback.basal,
            callback.reset_rates,
            callback.anneal,
            callback.speed_mean,
        )
        assert found == expected


@pytest.mark.slow
def test_an_anchored_transfer_recovers(make_trainer):
    callback = Remap(15.0, tests=20)
    make_trainer(callback).fit(
        HippocampalFormation("remap_anchored", models=2, seed=60), TrackData(minutes=30, models=2, seed=60)
    )
    errors = callback.errors
    assert float(errors["before"].max()) < 0.03
    assert float(errors["just_after"].min()) > 0.12
    assert float(errors["after"].max()) < 0.05


@pytest.mark.parametrize(
    "options",
    [{"at_minutes": 0}, {"anchor_seconds": -1.0}, {"basal": "random"}, {"eta": 0.0}, {"tests": 0}],
)
def test_bad_arguments(options):
    with pytest.raises(MisconfigurationException, match=next(iter(options))):
        Remap(**({"at_minutes": 1.0} | options))


def test_refusals(make_trainer):
    with pytest.raises(MisconfigurationException, match="Remap needs a HippocampalFormation on a track"):
        make_trainer(Remap(1.0)).fit(HippocampalFormation("latents"), LatentData(minutes=1))
    with pytest.raises(MisconfigurationException, match=r"at_minutes=60 is never reached: .* after 1 "):
        make_trainer(Remap(60)).fit(HippocampalFormation("remap_anchored"), TrackData(minutes=1))
    walk = TrackData(minutes=1).train_dataloader()
    with pytest.raises(MisconfigurationException, match="needs data with set_speed_mean"):
        make_trainer(Remap(1.0, speed_mean=0.2)).fit(HippocampalFormation("remap"), walk)
    with pytest.raises(ValueError, match="has none"):
        remap(HippocampalFormation("latents"), Switch())
    with pytest.raises(ValueError, match="basal='none'"):
        Switch(basal="none")
