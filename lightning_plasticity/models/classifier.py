"""A plain image classifier, as a user would write it: it knows nothing of plasticity."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from lightning_plasticity.models.convnets import create_model

ScheduleName = Literal["multistep", "cosine", "constant"]
Batch = tuple[Tensor, Tensor]


def learning_rate_factor(
    step: int, *, total: float, warmup: int, schedule: ScheduleName, milestones: Sequence[float]
) -> float:
    """Give the share of the full learning rate at an optimizer step.

    Args:
        step: optimizer steps done so far.
        total: optimizer steps of the whole run.
        warmup: steps over which the rate rises linearly to the full rate.
        schedule: ``multistep``: a tenth from each milestone on; ``cosine``: half a cosine down to 0 after the
            warm-up; ``constant``: the full rate.
        milestones: fractions of ``total`` at which ``multistep`` drops.

    Returns:
        Between 0 and 1.

    Example:
        >>> run = {"total": 100, "warmup": 0, "schedule": "multistep", "milestones": (0.5, 0.75)}
        >>> [round(learning_rate_factor(step, **run), 4) for step in (0, 49, 50, 75)]
        [1.0, 1.0, 0.1, 0.01]
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "multistep":
        return 0.1 ** sum(step >= round(fraction * total) for fraction in milestones)
    if schedule == "cosine":
        progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
        return (1.0 + math.cos(math.pi * progress)) / 2.0
    return 1.0


class ImageClassifier(LightningModule):
    """Cross-entropy classification of images by a network chosen by name.

    Logs ``loss`` and ``accuracy`` below ``train/``, ``val/`` and ``test/``, once per epoch. The defaults are
    the CIFAR settings of the sparse-training papers (GraNet, Liu et al. 2021, appendix): SGD with Nesterov
    momentum, the learning rate divided by 10 at 1/2 and 3/4 of the run.

    Args:
        model: name for ``create_model``.
        num_classes: number of classes.
        in_channels: channels of the images.
        pretrained: let timm fetch its weights.
        optimizer: ``sgd`` or ``adamw``.
        lr: full learning rate.
        momentum: of SGD.
        nesterov: whether SGD's momentum looks ahead.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        decay_norms: whether norm layers and biases decay too (the CIFAR setting; ImageNet's leaves them out).
        schedule: ``multistep``, ``cosine`` or ``constant``, per optimizer step.
        milestones: fractions of the run at which ``multistep`` divides the rate by 10.
        warmup_epochs: epochs over which the rate rises linearly.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Raises:
        MisconfigurationException: if an argument is out of range.

    Example:
        >>> classifier = ImageClassifier("small_convnet", num_classes=10, in_channels=1)
        >>> classifier(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        model: str = "small_convnet",
        num_classes: int = 10,
        in_channels: int = 1,
        pretrained: bool = False,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        decay_norms: bool = True,
        schedule: ScheduleName = "multistep",
        milestones: Sequence[float] = (0.5, 0.75),
        warmup_epochs: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        milestones = list(milestones)
        self.save_hyperparameters()
        self._check()
        self.model = create_model(model, num_classes, in_channels, pretrained=pretrained)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.accuracies = nn.ModuleDict(
            {
                f"{stage}_accuracy": MulticlassAccuracy(num_classes, average="micro")
                for stage in ("train", "val", "test")
            }
        )

    def _check(self) -> None:
        """Refuse arguments out of range."""
        given: Any = self.hparams
        ranges = {
            "optimizer": (given.optimizer in ("sgd", "adamw"), "must be sgd or adamw"),
            "schedule": (
                given.schedule in ("multistep", "cosine", "constant"),
                "must be multistep, cosine or constant",
            ),
            "lr": (given.lr > 0, "must be above 0"),
            "momentum": (0 <= given.momentum < 1, "must be 0 or more and below 1"),
            "nesterov": (
                not given.nesterov or given.optimizer != "sgd" or given.momentum > 0,
                "needs a momentum above 0; set momentum, or nesterov to false",
            ),
            "weight_decay": (given.weight_decay >= 0, "must be 0 or more"),
            "milestones": (
                all(0 <= m <= 1 for m in given.milestones),
                "must be fractions of the run, 0 to 1",
            ),
            "warmup_epochs": (given.warmup_epochs >= 0, "must be 0 or more"),
            "label_smoothing": (0 <= given.label_smoothing < 1, "must be 0 or more and below 1"),
        }
        for name, (fine, rule) in ranges.items():
            if not fine:
                raise MisconfigurationException(f"{name}={given[name]!r} {rule}.")

    def forward(self, images: Tensor) -> Tensor:
        """Give logits [B, num_classes] of images [B, C, H, W]."""
        return torch.as_tensor(self.model(images))

    def _step(self, batch: Batch, stage: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss: Tensor = self.loss(logits, labels)
        accuracy: Any = self.accuracies[f"{stage}_accuracy"]
        accuracy(logits, labels)
        for name, value in (("loss", loss), ("accuracy", accuracy)):
            self.log(
                f"{stage}/{name}",
                value,
                on_step=False,
                on_epoch=True,
                prog_bar=stage == "val",
                batch_size=len(labels),
                sync_dist=name == "loss" and stage != "train",
            )
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Give the loss of a batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._step(batch, "test")

    def configure_optimizers(self) -> Any:
        """Make the optimizer and its schedule, stepped after every optimizer step."""
        given: Any = self.hparams
        groups = self._parameter_groups()
        if given.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                groups, given.lr, momentum=given.momentum, nesterov=given.nesterov
            )
        else:
            optimizer = torch.optim.AdamW(groups, given.lr)
        total, warmup = self._run_length()
        factor = partial(
            learning_rate_factor,
            total=total,
            warmup=warmup,
            schedule=given.schedule,
            milestones=given.milestones,
        )
        scheduler = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Split off what doesn't decay: biases and norm layers, known by having one axis."""
        given: Any = self.hparams
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if given.decay_norms:
            return [{"params": parameters, "weight_decay": given.weight_decay}]
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": given.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def _run_length(self) -> tuple[float, int]:
        """Give the optimizer steps of the run and of the warm-up."""
        given: Any = self.hparams
        if given.schedule == "constant" and not given.warmup_epochs:
            return math.inf, 0
        total = self.trainer.estimated_stepping_batches
        if not (math.isfinite(total) and total > 0):
            raise MisconfigurationException(
                f"schedule={given.schedule!r}, warmup_epochs={given.warmup_epochs!r} need the run's length: "
                "give the trainer max_epochs or max_steps, or set schedule=constant and warmup_epochs=0."
            )
        if not given.warmup_epochs:
            return total, 0  # with max_steps alone an epoch's length may not be known yet
        per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        return total, round(given.warmup_epochs * per_epoch)
