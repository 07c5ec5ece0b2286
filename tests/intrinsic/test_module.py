import itertools

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from lightning_plasticity.callbacks.figures import FigureLogger
from lightning_plasticity.data import IntensityData
from lightning_plasticity.intrinsic import (
    IntrinsicPlasticityMixture,
    PoissonGammaMixture,
    distribution,
    em,
    starts,
)

# many tests here need no validation, which Lightning would rather have
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def trainer(**settings):
    return Trainer(accelerator="cpu", **{**QUIET, **settings})


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def bumps():
    data = IntensityData("bumps", batch_size=100)
    data.setup()
    return data


@pytest.mark.parametrize(
    ("rule", "shape_update"), [("online", None), ("em", None), ("online", "gradient"), ("em", "minka")]
)
def test_it_learns_the_example_as_the_estimator_does(example, stimuli, rule, shape_update):
    data = TensorDataset(stimuli, example.sample(4000)[1])
    loader = DataLoader(data, batch_size=None, sampler=BatchSampler(SequentialSampler(data), 50, False))
    model = IntrinsicPlasticityMixture(4, 16, num_labels=4, rule=rule, seed=0, shape_update=shape_update)
    run = trainer(max_epochs=15, num_sanity_val_steps=0)
    run.fit(model, loader, loader)
    assert float(run.callback_metrics["intrinsic/val_log_likelihood"]) > example.score(stimuli) * 1.001
    assert float(run.callback_metrics["intrinsic/val_accuracy"]) > 0.98
    assert float(run.callback_metrics["intrinsic/dead_classes"]) == 0
    assert run.global_step == (15 * 80 if rule == "online" else 15)
    torch.testing.assert_close(
        model.mean.sort().values.data, torch.tensor([30.4, 60.3, 60.5, 149.8]).double(), rtol=0.06, atol=0
    )


def test_em_epochs_are_passes_of_the_estimators_em(stimuli):
    data = DataLoader(
        TensorDataset(stimuli[:1000]),
        batch_size=1000,
        collate_fn=lambda rows: torch.stack([r[0] for r in rows]),
    )
    model = IntrinsicPlasticityMixture(3, 16, rule="em", dtype="float64", seed=5)
    trainer(max_epochs=3).fit(model, data)
    params = starts.start(stimuli[:1000], 3, torch.Generator().manual_seed(5))
    for _ in range(3):
        params = em.m_step(em.e_step(stimuli[:1000], params), params)
    for one, two in zip(model.learned, params, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", ["online", "em"])
def test_resumed_equals_uninterrupted(tmp_path, rule):
    def run(folder, **resume):
        data = IntensityData("digits8x8", batch_size=100, labelled=5)
        model = IntrinsicPlasticityMixture(12, 64, num_labels=10, rule=rule, warmup_epochs=1)
        saver = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        fit = trainer(max_epochs=4, callbacks=[saver], enable_checkpointing=True)
        fit.fit(model, data, **resume)
        return model, fit

    whole, first_fit = run("whole")
    with pytest.warns(UserWarning, match="dirpath has changed"):
        resumed, fit = run("resumed", ckpt_path=tmp_path / "whole" / "epoch=1.ckpt", weights_only=True)
    assert fit.global_step == first_fit.global_step
    for name, value in state(whole).items():
        assert torch.equal(value, state(resumed)[name]), name
    assert whole.optimizers().optimizer.state_dict() == resumed.optimizers().optimizer.state_dict()
    assert whole.trace.seen == resumed.trace.seen
    assert all(itertools.starmap(torch.equal, zip(whole.trace.mean, resumed.trace.mean, strict=True)))


class SaveAt(Callback):
    """Saves a checkpoint after one batch of one epoch."""

    def __init__(self, path, epoch, batch):
        self.path, self.at = path, (epoch, batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (1, 4), (2, 11), (1, 12)])
@pytest.mark.parametrize("rule", ["online", "em"])
def test_resumed_inside_an_epoch_equals_uninterrupted(tmp_path, rule, epoch, batch):
    """13 batches to an epoch, with a dead class that watches for the worst explained; 12 is the last."""

    def run(*callbacks, **resume):
        data = IntensityData("digits8x8", batch_size=100, labelled=5)
        model = IntrinsicPlasticityMixture(12, 64, num_labels=10, rule=rule, warmup_epochs=1)
        if not resume:
            model.dead[3] = True
        fit = trainer(max_epochs=4, callbacks=list(callbacks))
        fit.fit(model, data, **resume)
        return model, fit

    path = tmp_path / "inside.ckpt"
    whole, first_fit = run(SaveAt(path, epoch, batch))
    resumed, fit = run(ckpt_path=path, weights_only=True)
    assert fit.global_step == first_fit.global_step
    for name, value in state(whole).items():
        assert torch.equal(value, state(resumed)[name]), name
    assert whole.optimizers().optimizer.state_dict() == resumed.optimizers().optimizer.state_dict()
    assert whole.trace.seen == resumed.trace.seen
    assert fit.callback_metrics == first_fit.callback_metrics


def test_sums_that_a_checkpoint_lacks_are_missed(tmp_path):
    """As in one that two processes wrote inside an epoch."""
    for rule in ("em", "online"):
        path, data = tmp_path / f"{rule}.ckpt", IntensityData("digits8x8", batch_size=100)
        model = IntrinsicPlasticityMixture(5, 64, num_labels=10, rule=rule)
        trainer(max_epochs=2, callbacks=[SaveAt(path, 1, 3)]).fit(model, data)
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["intrinsic_pass"]
        torch.save(checkpoint, path)
        again = IntrinsicPlasticityMixture(5, 64, num_labels=10, rule=rule)
        outcome = (
            pytest.raises(MisconfigurationException, match="rule='em' resume from the end of an epoch")
            if rule == "em"
            else pytest.warns(UserWarning, match="resumed inside an epoch without the counts")
        )
        with outcome:
            trainer(max_epochs=2).fit(again, IntensityData("digits8x8", batch_size=100), ckpt_path=path)


@pytest.mark.parametrize("rule", ["online", "em"])
def test_two_processes_equal_one(rule):
    """1,295 and 143 stimuli for training and validation: a repeated one of each must not count."""
    one, two = (
        IntrinsicPlasticityMixture(6, 64, num_labels=10, rule=rule, dtype="float64", warmup_epochs=1)
        for _ in range(2)
    )
    single = trainer(max_epochs=2)
    single.fit(one, IntensityData("digits8x8", batch_size=200))
    strategy = DDPStrategy(start_method="spawn", process_group_backend="gloo")
    double = trainer(max_epochs=2, devices=2, strategy=strategy)
    double.fit(two, IntensityData("digits8x8", batch_size=100))
    for name, value in state(one).items():
        torch.testing.assert_close(value, state(two)[name], rtol=1e-9, atol=1e-12, msg=name)
    for name in ("val_log_likelihood", "val_accuracy", "train_log_likelihood"):
        key = f"intrinsic/{name}"
        assert float(double.callback_metrics[key]) == pytest.approx(
            float(single.callback_metrics[key]), rel=1e-6
        )


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("rule", ["online", "em"])
def test_the_trainers_precision_does_not_touch_the_arithmetic(bumps, rule, precision):
    models = [IntrinsicPlasticityMixture(8, 144, rule=rule) for _ in range(2)]
    loader = DataLoader(TensorDataset(*bumps.stimuli("val")), batch_size=250)
    for model, kind in zip(models, ("32-true", precision), strict=True):
        trainer(max_epochs=2, precision=kind).fit(model, loader)
    for name, value in state(models[0]).items():
        assert value.dtype == state(models[1])[name].dtype, name
        assert torch.equal(value, state(models[1])[name]), name


def test_matrix_products_are_not_rounded_by_a_global_setting(bumps):
    y, _ = bumps.stimuli("val")
    params = PoissonGammaMixture(8, 144).fit(y[:200]).parameters
    expected = distribution.evidence(y, params)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(distribution.evidence(y, params), expected)
            assert all(
                torch.equal(a, b) for a, b in zip(em.e_step(y, params), em.e_step(y, params), strict=True)
            )
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_moving_never_changes_a_dtype():
    model = IntrinsicPlasticityMixture(2, 4).to(torch.bfloat16).double().half()
    assert model.weights.dtype == torch.float32
    assert {model.mean.dtype, model.shape.dtype, model.prior.dtype} == {torch.float64}
    assert model.to("meta").weights.device.type == "meta"


def test_a_dead_class_is_revived_in_training():
    generator = torch.Generator().manual_seed(0)
    plenty = torch.poisson(torch.full((400, 6), 8.0), generator=generator)
    rare = torch.poisson(torch.tensor([[0.0, 0, 0, 0, 0, 90.0]]).repeat(12, 1), generator=generator)
    model = IntrinsicPlasticityMixture(3, 6, rule="em")
    with torch.no_grad():
        model._take(starts.start(plenty, 3, generator))
        model.prior.copy_(torch.tensor([0.5, 0.5, 0.0]))
        model.mean[2], model.weights[2] = 1e5, torch.tensor([1.0, 0, 0, 0, 0, 0])
    model.started.fill_(True)
    model.trace.record(0.0, model.learned)
    loader = DataLoader(torch.cat([plenty, rare]), batch_size=103)
    run = trainer(max_epochs=1)
    run.fit(model, loader)
    assert model.dead.tolist() == [False, False, True]
    again = trainer(max_epochs=12)
    again.fit(model, loader)
    assert not model.dead.any()
    found = model(rare).argmax(1)
    assert found.unique().tolist() == [2]
    assert not (model(plenty).argmax(1) == 2).any()


def test_predictions_and_estimator_agree(bumps):
    y, _ = bumps.stimuli("test")
    model = IntrinsicPlasticityMixture(8, 144, num_labels=8, image_shape=(12, 12))
    run = trainer(max_epochs=1)
    run.fit(model, bumps)
    found = run.predict(model, DataLoader(y, batch_size=300))
    assert set(found[0]) == {"class", "intensity", "intensity_map", "label"}
    estimator = model.mixture()
    assert torch.equal(torch.cat([part["class"] for part in found]), estimator.predict(y))
    torch.testing.assert_close(torch.cat([part["intensity"] for part in found]), estimator.intensity(y).mean)
    torch.testing.assert_close(model(y), estimator.predict_proba(y))


def test_input_scale_is_a_change_of_unit(stimuli):
    plain, scaled = (IntrinsicPlasticityMixture(3, 16, input_scale=s, dtype="float64") for s in (1.0, 4.0))
    trainer(max_epochs=1).fit(plain, DataLoader(stimuli[:200], batch_size=50))
    trainer(max_epochs=1).fit(scaled, DataLoader(stimuli[:200] / 4, batch_size=50))
    for one, two in zip(plain.learned, scaled.learned, strict=True):
        torch.testing.assert_close(one, two)


def test_figures_are_written(tmp_path, bumps):
    model = IntrinsicPlasticityMixture(8, 144, num_labels=8)
    logger = CSVLogger(tmp_path)
    run = trainer(max_epochs=2, logger=logger, callbacks=[FigureLogger()], log_every_n_steps=10)
    run.fit(model, bumps)
    names = {path.stem for path in (tmp_path / "lightning_logs" / "version_0" / "figures").glob("*.png")}
    assert names == {"weights", "intensities", "intensities_over_time", "weights_over_time"}


def test_a_scheduler_of_the_users_is_stepped(bumps):
    class Scheduled(IntrinsicPlasticityMixture):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    model = Scheduled(8, 144)
    trainer(max_epochs=2).fit(model, bumps)
    assert model.optimizers().optimizer.param_groups[0]["lr"] == pytest.approx(0.02 / 4)


def test_max_steps_is_kept(bumps):
    run = trainer(max_steps=7)
    run.fit(IntrinsicPlasticityMixture(8, 144), bumps)
    assert run.global_step == 7


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precisions_that_round_stimuli_are_refused(bumps, precision):
    with pytest.raises(MisconfigurationException, match="precision="):
        trainer(max_epochs=1, precision=precision).fit(IntrinsicPlasticityMixture(8, 144), bumps)


@pytest.mark.parametrize("bad", [float("nan"), -1.0, float("inf"), 1e31])
def test_bad_batches_are_refused(bad):
    y = torch.ones(4, 3)
    y[2, 1] = bad
    with pytest.raises(ValueError, match="stimuli"):
        trainer(max_epochs=1).fit(IntrinsicPlasticityMixture(2, 3), DataLoader(y, batch_size=2))


def test_an_empty_batch_of_stimuli_is_learned_from_as_documented():
    y = torch.cat([torch.ones(4, 3), torch.zeros(4, 3)])
    model = IntrinsicPlasticityMixture(2, 3)
    trainer(max_epochs=2).fit(model, DataLoader(y, batch_size=4))
    assert all(bool(part.isfinite().all()) for part in model.learned)


@pytest.mark.parametrize(
    "setting",
    [
        {"rule": "gradient"},
        {"dtype": "bfloat16"},
        {"intensity": "gauss"},
        {"input_scale": 0.0},
        {"warmup_epochs": -1},
        {"num_labels": -1},
        {"image_shape": (2, 3)},
        {"smoothing": -1.0},
        {"shape_update": "newton"},
        {"shape_update": "minka", "rule": "em", "intensity": "poisson"},
        {"shape_update": "gradient", "rule": "em"},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        IntrinsicPlasticityMixture(2, 4, **setting)
    with pytest.raises(ValueError, match="num_features=4"):
        IntrinsicPlasticityMixture(2, 4)(torch.ones(1, 5))
