"""What users are told: every update reaches the loggers, and a target that was missed is said."""

import csv

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_plasticity.callbacks import GraNet, RigL
from lightning_plasticity.sparsity import Sparsifier, SparsityConfig
from tests.trainer.modules import ConvNet, ManualNet, ScoredNet, loader, make_trainer, sgd


def test_every_update_reaches_the_loggers_at_the_default_interval(tmp_path):
    callback = GraNet(0.9, update_every=7)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[callback], logger=CSVLogger(tmp_path),
        log_every_n_steps=50, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(ConvNet(sgd), loader(400, 4))
    with (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    grown = [float(row["sparsity/grown"]) for row in rows if row["sparsity/grown"]]
    engine = callback._engines[0][1]
    assert engine.updates >= 8
    assert len(grown) >= engine.updates
    densities = {float(row["sparsity/density"]) for row in rows if row["sparsity/density"]}
    assert min(densities) == pytest.approx(callback.density)


def test_a_run_that_ends_before_its_target_says_so():
    manual = GraNet(0.9, update_every=2, total_steps=1000)
    make_trainer([manual], max_epochs=1).fit(ManualNet(), loader(64))
    assert "NOT as sparse as asked" in manual.summary()
    reached = GraNet(0.9, update_every=2)
    make_trainer([reached], max_epochs=1).fit(ConvNet(sgd), loader(64))
    assert "NOT as sparse as asked" not in reached.summary()


def test_accumulation_that_changes_needs_the_number_of_steps():
    changing = GradientAccumulationScheduler({0: 1, 1: 4})
    with pytest.raises(MisconfigurationException, match="total_steps"):
        make_trainer([GraNet(0.9), changing], max_epochs=2).fit(ConvNet(sgd), loader(32))


def test_masks_belong_to_the_weights_that_are_loaded_later(tmp_path):
    callback, module = GraNet(0.9, update_every=2, prune_until=1.0), ScoredNet(sgd)
    early: list = []
    trainer = make_trainer([callback], max_epochs=2)
    module.on_train_epoch_end = lambda: early.append(trainer.save_checkpoint(tmp_path / f"{len(early)}.ckpt"))
    trainer.fit(module, loader(32), loader(8))
    end = {name: mask.clone() for name, mask in callback.masks.items()}
    trainer.validate(module, loader(8), ckpt_path=tmp_path / "0.ckpt", verbose=False)
    weights = dict(module.named_parameters())
    assert any(not torch.equal(mask, end[name]) for name, mask in callback.masks.items())
    for name, mask in callback.masks.items():
        assert not weights[name][~mask].any()
    total = sum(mask.numel() for mask in end.values())
    assert callback.density > sum(int(mask.sum()) for mask in end.values()) / total


def test_attach_refuses_a_closure():
    net = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    Sparsifier(net, SparsityConfig(0.5), 10).attach(optimizer)
    with pytest.raises(ValueError, match="before_step"):
        optimizer.step(lambda: net(torch.ones(1, 8)).sum())


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_patterns_must_be_a_list(argument):
    with pytest.raises(ValueError, match=rf"{argument}=\['head'\]"):
        RigL(0.5, **{argument: "head"})
