"""ImageClassifier: it learns, its schedules equal torch's, its numbers are logged and right."""

import math

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from lightning_plasticity.data import ImageData
from lightning_plasticity.models import ImageClassifier
from lightning_plasticity.models.classifier import learning_rate_factor


def trainer(**arguments):
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(**(quiet | arguments))


def tiny_loader(count=40, batch_size=4):
    images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(count) % 10), batch_size)


def rates(epochs=4, steps_per_epoch=10, **arguments):
    """The learning rate of every optimizer step of a run."""
    seen = []

    class Watched(ImageClassifier):
        def on_before_optimizer_step(self, optimizer):
            seen.append(optimizer.param_groups[0]["lr"])

    model = Watched(**arguments)
    trainer(max_epochs=epochs).fit(model, tiny_loader(4 * steps_per_epoch))
    return seen


def test_it_learns_digits_well():
    seed_everything(0)
    data = ImageData("digits", batch_size=64)
    run = trainer(max_epochs=4)
    model = ImageClassifier("small_convnet", lr=0.05)
    run.fit(model, datamodule=data)
    logged = run.callback_metrics
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= set(logged)
    assert logged["val/accuracy"] > 0.95
    (tested,) = run.test(model, datamodule=data, verbose=False)
    assert set(tested) == {"test/loss", "test/accuracy"}
    assert tested["test/accuracy"] > 0.95


def test_logged_numbers_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    data = ImageData("digits", batch_size=100)
    model = ImageClassifier("small_convnet")
    (tested,) = trainer().test(model, datamodule=data, verbose=False)
    images, labels = (torch.cat(part) for part in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        logits = model.eval()(images).double().numpy()
    log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = -log_probability[np.arange(len(labels)), labels].mean()
    assert tested["test/loss"] == pytest.approx(loss, rel=1e-4)
    assert tested["test/accuracy"] == pytest.approx((logits.argmax(1) == labels.numpy()).mean(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_multistep_drops_at_the_fractions_of_the_run():
    seen = rates(lr=0.2)
    assert seen == pytest.approx([0.2] * 20 + [0.02] * 10 + [0.002] * 10)
    assert rates(lr=0.2, milestones=(0.25,)) == pytest.approx([0.2] * 10 + [0.02] * 30)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_cosine_and_warm_up_equal_torchs_own_schedulers():
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert rates(schedule="cosine") == pytest.approx(expected)
    warm = rates(schedule="cosine", warmup_epochs=1)
    assert warm[:10] == pytest.approx([0.1 * (k + 1) / 11 for k in range(10)])
    assert warm[10:] == pytest.approx([0.05 * (1 + math.cos(math.pi * k / 30)) for k in range(30)])
    assert rates(schedule="constant", warmup_epochs=0.5)[4:] == pytest.approx([0.1 * 5 / 6] + [0.1] * 35)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_steps_are_optimizer_steps_under_accumulation():
    seen = []

    class Watched(ImageClassifier):
        def on_before_optimizer_step(self, optimizer):
            seen.append(optimizer.param_groups[0]["lr"])

    trainer(max_epochs=4, accumulate_grad_batches=5).fit(Watched(warmup_epochs=1), tiny_loader())
    assert seen == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_an_endless_run_needs_a_constant_rate():
    with pytest.raises(MisconfigurationException, match=r"schedule='multistep'.*max_steps"):
        trainer(max_epochs=-1).fit(ImageClassifier(), tiny_loader())

    class Stops(ImageClassifier):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = True

    model = Stops(schedule="constant")
    trainer(max_epochs=-1).fit(model, tiny_loader())
    assert model.optimizers().param_groups[0]["lr"] == 0.1


def test_norm_layers_and_biases_can_be_left_out_of_the_decay():
    model = ImageClassifier(decay_norms=False, weight_decay=0.01)
    decayed, others = model._parameter_groups()
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.01
    assert others["weight_decay"] == 0.0
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in others["params"]} == {1}
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    (everything,) = ImageClassifier()._parameter_groups()
    assert everything["weight_decay"] == 5e-4
    assert len(everything["params"]) == len(names)


def test_optimizers_take_their_settings():
    sgd = ImageClassifier(schedule="constant", momentum=0.8, lr=0.3).configure_optimizers()["optimizer"]
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"], sgd.param_groups[0]["lr"]) == (0.8, True, 0.3)
    adamw = ImageClassifier(schedule="constant", optimizer="adamw", weight_decay=0.1).configure_optimizers()
    assert isinstance(adamw["optimizer"], torch.optim.AdamW)
    assert adamw["optimizer"].param_groups[0]["weight_decay"] == 0.1


def test_label_smoothing_is_in_the_loss():
    logits, labels = torch.randn(6, 10, dtype=torch.float64), torch.arange(6)
    target = torch.nn.functional.one_hot(labels, 10) * 0.9 + 0.01
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert ImageClassifier(label_smoothing=0.1).loss(logits, labels).item() == pytest.approx(expected.item())


def test_a_checkpoint_makes_the_same_model_again(tmp_path):
    seed_everything(0)
    model = ImageClassifier("small_convnet", num_classes=4, schedule="cosine", milestones=(0.1,))
    run = trainer(max_epochs=0)
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    images = torch.randn(2, 1, 8, 8)
    assert again.hparams == model.hparams
    assert torch.equal(again.eval()(images), model.eval()(images))
    assert isinstance(again, LightningModule)


def test_the_factor_never_leaves_0_to_1():
    for schedule in ("multistep", "cosine", "constant"):
        for total, warmup in ((10, 0), (10, 3), (3, 5), (1, 0)):
            factors = [
                learning_rate_factor(step, total=total, warmup=warmup, schedule=schedule, milestones=(0.5,))
                for step in range(15)
            ]
            assert all(0.0 <= factor <= 1.0 for factor in factors)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("optimizer", "adam"),
        ("schedule", "linear"),
        ("lr", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("milestones", [80, 120]),
        ("warmup_epochs", -1),
        ("label_smoothing", 1.0),
    ],
)
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(MisconfigurationException) as caught:
        ImageClassifier(**{argument: value})
    assert f"{argument}={value!r}" in str(caught.value)


def test_nesterov_needs_momentum():
    with pytest.raises(MisconfigurationException, match=r"nesterov=True needs a momentum"):
        ImageClassifier(momentum=0.0)
    assert ImageClassifier(momentum=0.0, nesterov=False, schedule="constant").configure_optimizers()


def test_max_steps_alone_is_a_run_length():
    images = TensorDataset(torch.randn(12, 1, 8, 8), torch.arange(12) % 10)
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(ImageClassifier("small_convnet"), DataLoader(images, 4), DataLoader(images, 4))
    assert trainer.global_step == 3
