"""Checkpoints without the backbone, exact resume in and between sessions, folders in peft's format."""

import csv
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_plasticity.continual import SAFE
from lightning_plasticity.data.preparation import Preparation
from tests.continual.nets import BACKBONES, conv_net, digits, fitted, safe, tensors, trainer, vit

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings(
        "ignore:Could not find a config file"
    ),  # peft, of backbones that are not a hub's
]


class SaveAt(L.Callback):
    """Saves after steps, or when an epoch is over but its end is yet to come to the module."""

    def __init__(self, folder, steps=(), epochs=()):
        self.folder, self.steps, self.epochs = folder, steps, epochs

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch in self.epochs:
            trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")


class SaveEpochs(ModelCheckpoint):
    """Keeps the checkpoint of every epoch."""

    def __init__(self, folder):
        super().__init__(folder, "{epoch}", save_top_k=-1, every_n_epochs=1)


def everything(model, run):
    """All that a run leaves."""
    momentum = [state["momentum_buffer"] for state in run.optimizers[0].state.values()]
    record = model.record.state()
    counts = {f"{n}.{c}": v for n, pair in record["counts"].items() for c, v in pair.items()}
    return (
        tensors(model)
        | counts
        | {"weight": record["weight"]}
        | {f"momentum{i}": value for i, value in enumerate(momentum)}
    )


def assert_identical(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_resume_at_the_end_of_any_epoch(tmp_path, backbone):
    """In the middle of a session (epochs 0, 2) and between sessions (1, 3); the transformer has dropout."""
    options = {"epochs_per_session": [2, 2, 1]}
    whole = safe(backbone)
    expected = everything(
        whole, fitted(whole, digits(**options), [SaveEpochs(tmp_path)], enable_checkpointing=True)
    )
    for epoch in range(4):
        model = safe(backbone, seed=0)
        torch.manual_seed(100 + epoch)  # the global generator has no say
        run = fitted(model, digits(**options), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert_identical(everything(model, run), expected)


def two_batches():
    """Two sessions of two batches each, shuffled and augmented."""
    shifted = Preparation(augment="shift", padding=1)
    return digits(sessions=2, epochs_per_session=1, batch_size=330, preparation=shifted, with_index=False)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_resume_inside_an_epoch(tmp_path, stop):
    """In the middle of a session, and after its last batch but before its end: the last session's too."""
    assert_resumes(tmp_path, SaveAt(tmp_path, steps=(stop,)), f"step{stop}.ckpt")


@pytest.mark.parametrize("epoch", [0, 1])
def test_resume_from_another_callback_at_the_end_of_an_epoch(tmp_path, epoch):
    """Callbacks' ends come before the module's own; after the last, Lightning has nothing left to run."""
    assert_resumes(tmp_path, SaveAt(tmp_path, epochs=(epoch,)), f"epoch{epoch}.ckpt")


def assert_resumes(folder, save, name):
    """A run that goes on from a checkpoint leaves what one without a stop does, in the logger as well."""
    whole, log = safe(), CSVLogger(folder, "whole")
    expected = everything(whole, fitted(whole, two_batches(), [save], logger=log))
    saved = torch.load(folder / name, weights_only=True)["safe"]
    model, again = safe(), CSVLogger(folder, "resumed")
    run = fitted(model, two_batches(), ckpt_path=folder / name, logger=again)
    assert run.global_step == 4
    assert_identical(everything(model, run), expected)
    assert model.ended == 2
    assert len(ends(log)) == 2
    assert ends(again) == pytest.approx(ends(log)[saved["ended"] :], abs=1e-6)


def test_a_limited_epoch_does_not_shorten_the_next(tmp_path):
    """A place in one epoch is none in the next."""
    whole = safe()
    run = fitted(whole, digits(), [SaveEpochs(tmp_path)], enable_checkpointing=True, limit_train_batches=3)
    model = safe()
    again = fitted(model, digits(), ckpt_path=tmp_path / "epoch=1.ckpt", limit_train_batches=3)
    assert run.global_step == again.global_step == 12
    assert_identical(everything(model, again), everything(whole, run))


def ends(logger):
    """What was logged at the ends of sessions."""
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    name = "continual/aggregate_accuracy"
    return [float(row[name]) for row in rows if row.get(name)]


def test_a_checkpoint_without_the_backbone(tmp_path):
    model = safe("vit")
    run = fitted(model, digits(epochs_per_session=1))
    run.save_checkpoint(tmp_path / "safe.ckpt")
    state = torch.load(tmp_path / "safe.ckpt", weights_only=True)["state_dict"]
    assert not [
        name for name in state if ".adapters." in name and not {"fast", "slow"} & set(name.split("."))
    ]
    images = torch.rand(3, 3, 16, 16)
    again = SAFE.load_from_checkpoint(tmp_path / "safe.ckpt", backbone=vit(), weights_only=True)
    assert torch.equal(again(images), model(images))
    assert again.record.table() == model.record.table()
    with pytest.raises(MisconfigurationException, match="the checkpoint is for the backbone"):
        SAFE.load_from_checkpoint(tmp_path / "safe.ckpt", backbone=vit(seed=1), weights_only=True)
    with pytest.raises(MisconfigurationException, match="does not fit this model"):
        SAFE.load_from_checkpoint(
            tmp_path / "safe.ckpt", backbone=vit(), peft_config="deep_prompt", weights_only=True
        )


def test_a_checkpoint_knows_its_adapters_settings(tmp_path):
    """Also those of a PeftConfig, whose tensors have the names and shapes of the default's."""
    from lightning_plasticity.continual.adapters import BottleneckConfig

    model, images = safe("vit", peft_config=BottleneckConfig(scale=1.0)), torch.rand(3, 3, 16, 16)
    fitted(model, digits(epochs_per_session=1)).save_checkpoint(tmp_path / "safe.ckpt")
    again = SAFE.load_from_checkpoint(tmp_path / "safe.ckpt", backbone=vit(), weights_only=True)
    assert torch.equal(again(images), model(images))
    with pytest.raises(MisconfigurationException, match=r"its adapters have \{'scale': 1.0\}, this model's"):
        SAFE.load_from_checkpoint(
            tmp_path / "safe.ckpt", backbone=vit(), peft_config="bottleneck", weights_only=True
        )
    model.save_pretrained(tmp_path / "saved")
    folder = SAFE.from_pretrained(vit(), tmp_path / "saved")
    assert folder.hparams["peft_config"]["scale"] == 1.0
    torch.testing.assert_close(folder(images), model(images))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_folders(tmp_path, backbone):
    model, images = safe(backbone), torch.rand(3, 3, 16, 16)
    fitted(model, digits(epochs_per_session=1))
    model.save_pretrained(tmp_path / "saved")
    again = SAFE.from_pretrained(BACKBONES[backbone](), tmp_path / "saved")
    torch.testing.assert_close(again(images), model(images))
    with pytest.raises(ValueError, match="backbone"):
        SAFE.from_pretrained(BACKBONES[backbone](seed=1), tmp_path / "saved")
    with pytest.raises(ValueError, match=r"no safe\.pt"):
        SAFE.from_pretrained(BACKBONES[backbone](), tmp_path)


def test_the_order_of_classes_is_kept(tmp_path):
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    model = safe()
    assert model.class_order is None
    run = fitted(model, digits(epochs_per_session=1, class_order=order), limit_train_batches=1)
    assert model.class_order == order
    model.save_pretrained(tmp_path / "saved")
    run.save_checkpoint(tmp_path / "whole.ckpt")
    again = SAFE.from_pretrained(conv_net(), tmp_path / "saved")
    loaded = SAFE.load_from_checkpoint(tmp_path / "whole.ckpt", backbone=conv_net())
    for one in (again, loaded):
        assert one.class_order == order
        same = trainer().test(one, digits(epochs_per_session=1, class_order=order), verbose=False)
        assert same == run.test(model, digits(epochs_per_session=1, class_order=order), verbose=False)
        with pytest.raises(MisconfigurationException, match=r"class_order=\[0, 1, 2.*in the order \[3, 1, 4"):
            trainer().test(one, digits(epochs_per_session=1, class_order="sorted"), verbose=False)


def test_a_merged_model_of_class_means():
    model, images = safe(prediction={"head": "means", "random_features": 8}), torch.rand(3, 3, 16, 16)
    fitted(model, digits(epochs_per_session=1), limit_train_batches=1)
    torch.testing.assert_close(model.merged()(images), model.answers(images).slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_merged_slow_model_for_serving(backbone):
    """Plain modules, no peft: the slow learner's logits."""
    model, images = safe(backbone), torch.rand(3, 3, 16, 16)
    fitted(model, digits(epochs_per_session=1))
    served = model.merged()
    torch.testing.assert_close(served(images), model.answers(images).slow, rtol=1e-4, atol=1e-4)
    assert not any("peft" in type(module).__module__ for module in served.modules())
    assert not any(parameter.requires_grad for parameter in served.parameters())


def test_nothing_to_serve_before_the_first_session():
    with pytest.raises(RuntimeError, match="first session"):
        SAFE(conv_net(), 4, prediction={"random_features": 8}).merged()
