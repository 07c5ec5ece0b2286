"""`SAFE`: a LightningModule that learns in sessions without forgetting (Zhao et al., NeurIPS 2024)."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_plasticity.continual import sessions, steps
from lightning_plasticity.continual.adapters import AdapterPair
from lightning_plasticity.continual.backbones import PACKAGED
from lightning_plasticity.continual.cache import FeatureCache
from lightning_plasticity.continual.construction import feature_width, make_adapters, plain_adapter
from lightning_plasticity.continual.learners import Answers, SlowFast
from lightning_plasticity.continual.optimizers import make_optimizer, make_schedule, no_loss, restart
from lightning_plasticity.continual.report import Record
from lightning_plasticity.continual.saving import SavedModule
from lightning_plasticity.continual.settings import Losses, Optimization, Prediction
from lightning_plasticity.entropy import predictive_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SAFE(SavedModule):
    """Slow and fast parameter-efficient tuning of one frozen backbone, session after session.

    Session 1 tunes an adapter, the transfer loss keeping what the backbone knows; a frozen copy of it is the
    slow learner for ever. Later sessions go on tuning the fast one, which alignment and cross-classification
    tie to the slow one. At the end of each session a ridge head is solved for either learner from streamed
    sums, and predictions are their logits, weighed by entropy. No image is kept.

    All sessions are epochs of one `trainer.fit(model, ClassIncrementalData(...))` with
    `reload_dataloaders_every_n_epochs=1`. Momentum and the cosine schedule start anew with each session; at
    its end all sessions seen so far are evaluated. Checkpoints hold no backbone, and resume exactly at the
    end of an epoch.

    Args:
        backbone: a name for `load_backbone`, or any module that gives features `[B, d]`; it is changed in
            place.
        num_classes: classes of all sessions together.
        peft_config: the adapter: a `PeftConfig`, a method's name, a mapping of `method` and its settings, or
            None: SSF on the norms of convolutional nets, a bottleneck on transformers.
        losses: `Losses`, or a mapping of its fields.
        optimization: `Optimization`, likewise.
        prediction: `Prediction`, likewise.
        adapt: which sessions tune the adapter: `"all"`; `"first"`: one learner alone, the slow one
            (RanPAC, if the transfer loss has no weight either); `"none"`: the backbone as it is.
        evaluate: images that are evaluated at the end of each session: `"test"`, or `"val"` to choose
            settings.
        weights: of a backbone given by name, see `load_backbone`.
        image_size: likewise.
        seed: of the adapter's start, the random features and the views.

    Attributes:
        learners: everything that is learned, `SlowFast`.
        record: accuracy of `slow`, `fast` and `aggregate` on each session after each, see `Record`.
        plasticity_entropy: 0-d, mean normalised entropy of the fast head's logits in the last training batch;
            0: sure, 1: clueless.
        joint_accuracy: of learning all classes at once, if known: an upper bound in the figure.

    Raises:
        ValueError: for a setting out of range, an unknown backbone or method; while training, for labels of a
            later session or a loss that is not finite.
        MisconfigurationException: at the start of a fit, for a Trainer or data that do not fit.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> net.num_features = 8
        >>> model = SAFE(net, num_classes=4, prediction={"random_features": 16})
        >>> model.features(torch.zeros(2, 3, 8, 8), learner="slow").shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        backbone: str | nn.Module | AdapterPair = PACKAGED,
        num_classes: int = 10,
        peft_config: Any = None,
        losses: Losses | dict[str, Any] | None = None,
        optimization: Optimization | dict[str, Any] | None = None,
        prediction: Prediction | dict[str, Any] | None = None,
        adapt: Literal["all", "first", "none"] = "all",
        evaluate: Literal["test", "val"] = "test",
        weights: str | None = None,
        image_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("adapt", adapt, ("all", "first", "none")),
            ("evaluate", evaluate, ("test", "val")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1")
        groups = Losses.of(losses), Optimization.of(optimization), Prediction.of(prediction)
        self.losses, self.optimization, self.prediction = groups
        self.adapt, self.evaluate, self.num_classes, self.seed = adapt, evaluate, num_classes, seed
        self._keep_settings(backbone, plain_adapter(backbone, peft_config), weights, image_size)
        adapters = make_adapters(backbone, peft_config, weights, image_size, seed)
        width = feature_width(adapters)
        self.learners = SlowFast(adapters, width, num_classes, self.losses, self.prediction, seed)
        self.record: Record | None = None
        self.class_order: list[int] | None = None
        self.plasticity_entropy = torch.tensor(1.0)
        self.joint_accuracy: float | None = None
        self._cache: tuple[int, FeatureCache] | None = None

    def _keep_settings(self, backbone: Any, peft_config: Any, weights: Any, image_size: Any) -> None:
        """Hyper-parameters of plain types alone: a backbone that is a module must be given again."""
        plain = {
            "num_classes": self.num_classes,
            "losses": self.losses.plain(),
            "optimization": self.optimization.plain(),
            "prediction": self.prediction.plain(),
            "adapt": self.adapt,
            "evaluate": self.evaluate,
            "seed": self.seed,
            "peft_config": peft_config,
            "weights": weights,
            "image_size": image_size,
        }
        if isinstance(backbone, str):
            plain["backbone"] = backbone
        self.save_hyperparameters(plain)

    # --- what it gives ---

    def features(self, images: Tensor, learner: Literal["slow", "fast", "pretrained"] = "slow") -> Tensor:
        """Features `[B, d]` of a learner, in eval mode and without gradients."""
        return self.learners.features(images, learner)

    def forward(self, images: Tensor) -> Tensor:
        """The aggregate's logits `[B, num_classes]`; `-inf` for classes not learned yet.

        Before the end of the first session all are 0.
        """
        logits = images.new_zeros(len(images), self.num_classes, dtype=torch.float32)
        if self.ended:
            known = self.answers(images).aggregate
            logits = logits.fill_(-torch.inf)
            logits[:, : known.shape[1]] = known
        return logits

    def answers(self, images: Tensor) -> Answers:
        """Logits `[B, C]` of both learners and their mixture, over the classes learned.

        Raises:
            RuntimeError: before the end of the first session.
        """
        if not self.ended:
            raise RuntimeError("nothing is learned yet: the first session has not ended")
        with self.precision():
            return self.learners.answers(images, self.learned_classes, self._both(self.ended - 1))

    def _both(self, session: int) -> bool:
        """Whether the fast learner differs from the slow one after a session."""
        return self.adapt == "all" and session > 0

    # --- the fit ---

    def setup(self, stage: str) -> None:
        """Refuses a Trainer or data that do not fit."""
        # all but the fast adapter stays in eval mode, which Lightning takes for a mistake
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        data = sessions.require_sessions(self.trainer)
        sessions.check_classes(data, self.num_classes)
        if stage == "fit":
            sessions.check_trainer(self.trainer, data)
            sessions.check_images(data, self.evaluate)
        order = sessions.order_of(data)
        if self.begun:
            sessions.check_order(self.class_order, order)
        else:
            self.class_order = order
        if self.record is None:
            self.record = Record(len(data.session_classes))

    def configure_optimizers(self) -> Any:
        """SGD with three groups, `adapter`, `head` and `scale`, and a cosine schedule for each session."""
        optimizer = make_optimizer(self.learners, self.optimization)
        epochs = sessions.require_sessions(self.trainer).epochs_per_session
        return [optimizer], [make_schedule(optimizer, self.optimization, epochs, self._adapts)]

    def _adapts(self, session: int) -> bool:
        return self.adapt == "all" or (self.adapt == "first" and session == 0)

    def locate(self, old: int, seen: int) -> None:
        """Tells the learners which classes are old and which are seen."""
        self.learners.old, self.learners.seen = old, seen

    def begin_session(self, session: int) -> None:
        """Momentum and learning rates start anew, new classes get rows in the trained head."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        schedule: Any = self.lr_schedulers()
        restart(optimizer, schedule, self.current_epoch)
        with self.precision():
            self.learners.begin(self.training_images(session), self.processes())

    def end_session(self, session: int) -> dict[str, float]:
        """Hand-over after the first, statistics, heads, evaluation."""
        if session == 0:
            self.learners.hand_over()
        with self.precision():
            batches = self.training_images(session)
            self.learners.consolidate(batches, self.processes(), self._both(session), session)
            for head in (self.learners.slow_ridge, self.learners.fast_ridge):
                head.weight.copy_(self.trainer.strategy.broadcast(head.weight))
            self.ended, self._cache = session + 1, None
            self._evaluate_all(session)
        record = self._record()
        rank_zero_info(record.line(session))
        return {f"continual/{name}": value for name, value in record.numbers().items()}

    def _evaluate_all(self, session: int) -> None:
        """Evaluates every session seen so far."""
        record = self._record()
        for part in range(session + 1):
            for images, labels, *_ in self.images(part, self.evaluate):
                answers = self.learners.answers(images, self.learned_classes, self._both(session))
                record.add(answers, labels, part, session)
        record.gather(self.processes().sum, session, self.device)

    def _record(self) -> Record:
        if self.record is None:
            raise MisconfigurationException("there is no record yet: call trainer.fit first")
        return self.record

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch of the current session."""
        images, labels = batch[0], batch[1]
        session = self.begun - 1
        if not self._adapts(session):
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            return no_loss(optimizer)
        place = self.current_epoch, batch_idx, self.global_rank
        with steps.seeded_dropout(self.adapters, self.device, self.seed, *place):
            fast = self.adapters.features(images)
        guide = self._guide(images, batch, session)
        with torch.autocast(images.device.type, enabled=False):
            wide = fast if fast.dtype == torch.float64 else fast.float()
            steps.check_labels(labels, self.learners.seen, self.begun)
            share = 1 / self.trainer.world_size
            terms, logits = self.learners.terms(wide, guide, labels, share, self._everyone)
            loss = torch.stack(list(terms.values())).sum()
            self.plasticity_entropy = predictive_entropy(logits.detach(), normalize=True).mean().clamp(0, 1)
        steps.check_loss(loss, self.begun, self.optimization.lr, self.losses)
        numbers = {f"continual/loss_{name}": term.detach() for name, term in terms.items()}
        numbers["continual/entropy"] = self.plasticity_entropy
        self.log_dict(numbers, on_step=False, on_epoch=True, batch_size=len(labels))
        self.log("continual/session", float(session + 1), prog_bar=True, batch_size=len(labels))
        self.log("continual/loss", loss.detach(), prog_bar=True, batch_size=len(labels))
        return loss

    def _guide(self, images: Tensor, batch: Any, session: int) -> Tensor | None:
        """Features that guide: pre-trained in session 1, then the slow learner's; kept if they can be."""
        learner = self.learners.guide
        if learner is None:
            return None
        if self._cacheable(batch):
            if self._cache is None or self._cache[0] != session:
                with self.precision():
                    self._cache = (
                        session,
                        FeatureCache(
                            self.images(session, "train"), lambda x: self.learners.features(x, learner)
                        ),
                    )
            return self._cache[1].take(batch[2])
        guide = self.adapters.features(images, learner).detach()
        return guide if guide.dtype == torch.float64 else guide.float()

    def _everyone(self, features: Tensor) -> Tensor:
        """Features `[B, d]` of all processes, with gradients."""
        if self.trainer.world_size == 1:
            return features
        gathered: Any = self.all_gather(features, sync_grads=features.requires_grad)
        return gathered.flatten(0, 1)  # type: ignore[no-any-return]

    def _cacheable(self, batch: Any) -> bool:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        plain = getattr(getattr(data, "preparation", None), "augment", None) == "none"
        return plain and len(batch) > 2 and self.trainer.world_size == 1

    # --- what is told ---

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs the accuracy of slow, fast and aggregate on a session's test images."""
        if dataloader_idx >= self.ended:
            return  # a session that has not been learned
        images, labels = batch[0], batch[1]
        answers = self.answers(images)
        for name in ("slow", "fast", "aggregate"):
            right = (getattr(answers, name).argmax(1) == labels).float().mean()
            self.log(f"test/{name}", right, batch_size=len(labels), sync_dist=True)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Accuracies of the sessions learned, for FigureLogger."""
        return {"sessions": self.record.rows()} if self.record is not None else {}

    def figures(self) -> Mapping[str, "Figure"]:
        """Figures of the sessions learned, for FigureLogger."""
        from lightning_plasticity.continual.figures import of_record

        if self.record is None or not self.ended:
            return {}
        return of_record(self.record, self.joint_accuracy)
