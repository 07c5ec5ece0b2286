"""Every preset of callbacks/ attaches to a LightningCLI that knows nothing of this package."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

PRESETS = sorted(path.name for path in (Path(__file__).parents[2] / "callbacks").glob("*.yaml"))


class ForeignModule(LightningModule):
    """Somebody's module; its first layer has 4 inputs, so that 2:4 fits."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)]
        self.net = nn.Sequential(*layers)
        self.example_input_array = torch.zeros(2, 4, 8, 8)  # for the preset of coupled filters

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class ForeignData(LightningDataModule):
    """Somebody's data."""

    def train_dataloader(self):
        images = torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, images.mean((1, 2, 3)).gt(0).long()), 4)

    val_dataloader = train_dataloader


OF_HIPPOCAMPUS = {  # presets for one module of ours, in a LightningCLI that is not; what to shorten
    "path_integration.yaml": {"every_n_chunks": 2, "seconds": 1.0, "tests": 2},
    "remap.yaml": {"at_minutes": 0.5, "anchor_seconds": 10.0, "tests": 2},
}


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - set(OF_HIPPOCAMPUS)))
def test_preset_runs_in_a_foreign_project(preset, repository, tmp_path):
    own = "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.ModelSummary}]}"
    (tmp_path / "theirs.yaml").write_text(own)
    options = {
        "max_epochs": 1, "accelerator": "cpu", "logger": "false", "enable_checkpointing": "false",
        "enable_progress_bar": "false", "num_sanity_val_steps": 0,
    }  # fmt: skip
    text = (repository / "callbacks" / preset).read_text()
    quick = {
        "update_every": 2,
        "every_n_epochs": 1,
        "continue_epochs": 1,
    }  # lest nothing happen in so few steps
    quick = {name: value for name, value in quick.items() if f"{name}:" in text}
    cli = LightningCLI(
        ForeignModule,
        ForeignData,
        save_config_callback=None,
        seed_everything_default=0,
        args=[
            "fit", f"--config={tmp_path / 'theirs.yaml'}", f"--config={repository / 'callbacks' / preset}",
            *(f"--trainer.{name}={value}" for name, value in options.items()),
            *(f"--trainer.callbacks.{name}={value}" for name, value in quick.items()),
        ],
    )  # fmt: skip
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert "ModelSummary" in names, "the preset must append to the project's own callbacks"
    ours = [c for c in cli.trainer.callbacks if type(c).__module__.startswith("lightning_plasticity")]
    assert ours
    for callback in ours:
        if "update_every" in quick:
            assert sum(engine.updates for _, engine in callback._engines) >= 2
        if "continue_epochs" in quick:
            assert [record["rate"] for record in callback.records] == callback.rates
        for name, mask in getattr(callback, "masks", {}).items():
            weight = dict(cli.model.named_parameters())[name]
            assert not weight[~mask].any()
            assert not mask.all(), f"{preset} left {name} dense"


@pytest.mark.parametrize("preset", OF_HIPPOCAMPUS)
def test_preset_of_the_hippocampal_formation(preset, repository):
    from lightning_plasticity.data import TrackData
    from lightning_plasticity.hippocampus import HippocampalFormation

    cli = LightningCLI(
        HippocampalFormation,
        TrackData,
        save_config_callback=None,
        seed_everything_default=0,
        args=[
            "fit", f"--config={repository / 'callbacks' / preset}", "--data.minutes=1",
            "--model.preset=track_tuned", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
            "--trainer.logger=false", "--trainer.enable_checkpointing=false",
            "--trainer.enable_progress_bar=false",
            *(f"--trainer.callbacks.{name}={value}" for name, value in OF_HIPPOCAMPUS[preset].items()),
        ],
    )  # fmt: skip
    callback = next(c for c in cli.trainer.callbacks if type(c).__module__.startswith("lightning_plasticity"))
    assert cli.trainer.global_step == 6
    assert callback.state_dict(), "it did something that a checkpoint keeps"


def test_there_is_a_preset_for_every_public_callback(repository):
    from lightning_plasticity import callbacks

    text = "".join((repository / "callbacks" / name).read_text() for name in PRESETS)
    missing = [name for name in callbacks.__all__ if f"callbacks.{name}\n" not in text]
    assert not missing
