"""Small networks, data and trainers for the tests of SAFE."""

import lightning.pytorch as L
import torch
from torch import nn

from lightning_plasticity.continual import SAFE
from lightning_plasticity.data import ClassIncrementalData


def conv_net(seed=0):
    """A convolutional network with BatchNorm whose statistics are not those of a new one."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        net(torch.rand(64, 3, 16, 16))
    net.num_features = 64
    return net.eval()


def vit(seed=0):
    """A transformer of timm's with random weights."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return VisionTransformer(
            img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0
        ).eval()


BACKBONES = {"conv": conv_net, "vit": vit}


def digits(**options):
    """Digits in three sessions."""
    given = {"sessions": [4, 3, 3], "epochs_per_session": [2, 1, 1], "image_size": 16, "batch_size": 64}
    return ClassIncrementalData("digits", **(given | {"with_index": True} | options))


def safe(backbone="conv", **options):
    """SAFE on a small network."""
    given = {
        "num_classes": 10,
        "losses": {"alignment": 5.0},
        "prediction": {"random_features": 64, "views": 1},
    }
    return SAFE(BACKBONES[backbone](), **(given | options))


def trainer(epochs=4, callbacks=(), **options):
    """A Trainer without output."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        max_epochs=epochs, reload_dataloaders_every_n_epochs=1, accelerator="cpu", callbacks=list(callbacks),
        enable_model_summary=False, num_sanity_val_steps=0, **(quiet | options),
    )  # fmt: skip


def fitted(model, data=None, callbacks=(), ckpt_path=None, **options):
    """The model after a fit of all sessions, or as many as the trainer takes."""
    data = digits() if data is None else data
    run = trainer(sum(data.epochs_per_session), callbacks, **options)
    run.fit(model, data, ckpt_path=ckpt_path)
    return run


def tensors(model):
    """Everything that the model has, by name."""
    return {
        name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)
    }


class Watch(L.Callback):
    """Calls `function(trainer, module)` at the end of each epoch, before the module's own."""

    def __init__(self, **functions):
        for name, function in functions.items():
            setattr(self, name, lambda trainer, module, *_, function=function: function(trainer, module))
