"""`IntrinsicPlasticityMixture`: the mixture as a LightningModule, for streams, processes and checkpoints."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_plasticity.intrinsic import circuit, em, shapes, starts
from lightning_plasticity.intrinsic.distribution import Intensity, Parameters
from lightning_plasticity.intrinsic.inference import Batch, MixtureInference
from lightning_plasticity.intrinsic.mixture import PoissonGammaMixture
from lightning_plasticity.intrinsic.optimizers import CircuitPlasticity, ExpectationMaximization, check_rates
from lightning_plasticity.intrinsic.padding import padding_weight
from lightning_plasticity.intrinsic.passes import Pass, over_processes, worst_of_all
from lightning_plasticity.intrinsic.precision import full_precision
from lightning_plasticity.intrinsic.scores import Scores
from lightning_plasticity.intrinsic.trace import Trace
from lightning_plasticity.strategies import check_unsharded

PRECISIONS = ("32-true", "64-true", "bf16-mixed")

SHAPE_RULES = {"online": get_args(shapes.OnlineRule), "em": get_args(shapes.BatchRule)}


class IntrinsicPlasticityMixture(MixtureInference):
    """Neurons that learn the form and the strength of their stimuli (Monk, Savin and Luecke, NIPS 2016).

    Batches are stimuli `[B, D]` (any further dimensions are flattened), or pairs with labels `[B]`, -1 where
    the label is not given. Learning is unsupervised: labels name the classes afterwards. With `rule="online"`
    every batch is a step of the circuit's local rules, with `rule="em"` every epoch is a step of exact EM;
    both count as steps of a real optimizer. The arithmetic is that of `dtype` whatever the Trainer's
    precision. Checkpoints at the end of an epoch resume exactly; inside an epoch they do so in one process,
    if the data loader can go on where it stopped, as that of `IntensityData` can.

    Args:
        num_classes: `C`, neurons.
        num_features: `D`, inputs.
        num_labels: `K`, labels that classes can be named by; 0 for none.
        rule: `"online"` or `"em"`.
        intensity: `"nb"`, `"poisson"` or `"none"`, see `Intensity`.
        shape_update: how spreads are learned with `intensity="nb"`: `"moments"` or `"gradient"` online,
            `"newton"` or `"minka"` in EM; None: the first of them.
        lr: `eps` of the online rules; a neuron forgets after about `C / eps` stimuli.
        decay: stimuli after which `eps` has halved; None: 1000 for each class.
        warmup_epochs: epochs in which the online rules learn directions and means alone.
        learn_prior: False holds the prior uniform.
        smoothing: pseudo-count of the weights in EM.
        input_scale: factor of all stimuli. Evidence grows with it: choose it so that energies are counts.
        dtype: of weights and matrix products.
        image_shape: height and width of a stimulus, for the figures; None: a square, or else a row.
        seed: of the start.

    Attributes:
        weights: `W [C, D]`.
        mean: `mu [C]`, in units of scaled energy.
        shape: `a [C]`.
        prior: `pi [C]`.
        second_moment: `q [C]`.
        label_counts: `[C, K]`, how often each class answered for each label in the last pass.
        trace: what was learned when.
        scores: of the last validation or test.

    Raises:
        ValueError: if a setting is out of range.
        MisconfigurationException: at the start of a fit, if the Trainer's precision or strategy is not
            supported.

    Example:
        >>> model = IntrinsicPlasticityMixture(num_classes=4, num_features=9)
        >>> model(torch.ones(2, 3, 3)).shape                           # activities of 4 neurons
        torch.Size([2, 4])
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        num_labels: int = 0,
        rule: Literal["online", "em"] = "online",
        intensity: Intensity = "nb",
        shape_update: shapes.OnlineRule | shapes.BatchRule | None = None,
        lr: float = circuit.RATE,
        decay: float | None = None,
        warmup_epochs: int = 2,
        learn_prior: bool = True,
        smoothing: float = 1e-6,
        input_scale: float = 1.0,
        dtype: Literal["float32", "float64"] = "float32",
        image_shape: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        _check("rule", rule, tuple(SHAPE_RULES))
        _check("dtype", dtype, ("float32", "float64"))
        for name, number in {"num_labels": num_labels, "warmup_epochs": warmup_epochs}.items():
            if number < 0:
                raise ValueError(f"{name}={number} must not be negative")
        if not 0 < input_scale < torch.inf:
            raise ValueError(f"input_scale={input_scale} must be positive and finite")
        if image_shape is not None and math.prod(image_shape) != num_features:
            raise ValueError(
                f"image_shape={image_shape} has {math.prod(image_shape)} pixels, {num_features=}"
            )
        check_rates(lr, decay)
        self.shape_update = _shape_rule(shape_update, rule, intensity)
        self.rule, self.input_scale, self.warmup_epochs = rule, input_scale, warmup_epochs
        by_em: Any = self.shape_update if rule == "em" else "newton"
        self.learning = em.Learning.checked(intensity, learn_prior, smoothing, shapes.MAX_SHAPE, by_em)
        self.lr, self.decay = lr, circuit.DECAY_PER_CLASS * num_classes if decay is None else decay
        start = PoissonGammaMixture(num_classes, num_features, seed).parameters
        self.weights = nn.Parameter(start.weights.to(getattr(torch, dtype)))
        self.mean, self.shape, self.prior = (nn.Parameter(part) for part in start[1:])
        self.second_moment = nn.Parameter(circuit.Circuit.of(start).second_moment)
        self.started: Tensor
        self.label_counts: Tensor
        self.dead: Tensor
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("label_counts", start.prior.new_zeros(num_classes, num_labels))
        self.register_buffer("dead", torch.zeros(num_classes, dtype=torch.bool))
        self.trace, self.scores, self.image_shape = Trace(), Scores(), image_shape
        self._pass = Pass.empty(self.label_counts)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "IntrinsicPlasticityMixture":
        """Moves between devices but never between dtypes: precision is a setting of the model."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self

    def setup(self, stage: str) -> None:
        """Refuses what would silently change the arithmetic or the sums over processes."""
        if self.trainer.precision not in PRECISIONS:
            raise MisconfigurationException(
                f"precision={self.trainer.precision!r} rounds stimuli or scales gradients: choose one of "
                f"{', '.join(PRECISIONS)}; the model computes in dtype={self.hparams['dtype']!r} under each"
            )
        check_unsharded(self.trainer)

    def configure_optimizers(self) -> Optimizer:
        """The local rules, or EM."""
        if self.rule == "online":
            return CircuitPlasticity(
                [self.weights, self.mean, self.second_moment, self.prior],
                lr=self.lr,
                decay=self.decay,
                shape_update=shapes.check_online(self.shape_update),
            )
        return ExpectationMaximization([self.weights, self.mean, self.shape, self.prior], self.learning)

    def on_train_epoch_start(self) -> None:
        """Begins a pass over the data."""
        self._pass = Pass.empty(self.label_counts)

    @torch.no_grad()
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of the circuit, or one batch of an E pass."""
        with full_precision(self.device.type):
            y, labels = self._batch(batch)
            weight = padding_weight(self.trainer.train_dataloader, len(y), batch_idx, self.device)
            if not self.started:
                self._start(y)
            if batch_idx and not self._pass.begun:
                self._miss_beginning()
            if self.label_counts.shape[1]:
                self._pass.name(self._joint(y).softmax(1), labels.where(weight > 0, -1))
            if bool(self.dead.any()):
                self._pass.watch(y, self.learned, self.learning.intensity, weight)
            learn = self._online_step if self.rule == "online" else self._em_step
            learn(y, weight)
            if self.trainer.is_last_batch:
                self._end_pass()

    def _miss_beginning(self) -> None:
        """A run that goes on inside an epoch without the sums of its first batches."""
        if self.rule == "em":
            raise MisconfigurationException(
                "the checkpoint was saved inside an epoch and lacks the sums of its first batches, since "
                "several processes wrote it or read it: with rule='em' resume from the end of an epoch"
            )
        rank_zero_warn(
            "resumed inside an epoch without the counts of its first batches: classes are named, and dead "
            "ones found, from the rest of this epoch"
        )

    def _start(self, y: Tensor) -> None:
        """Starts from the first batch of all processes together, in the order that one process would have."""
        if self.trainer.world_size > 1:
            y = self._gather(y).transpose(0, 1).flatten(0, 1)
        generator = torch.Generator().manual_seed(self.hparams["seed"])
        self._take(starts.start(y, len(self.mean), generator))
        self.started.fill_(True)
        self.trace.record(0.0, self.learned)

    def _take(self, params: Parameters) -> None:
        new = (*params, circuit.Circuit.of(params).second_moment)
        old = (self.weights, self.mean, self.shape, self.prior, self.second_moment)
        for target, value in zip(old, new, strict=True):
            target.copy_(value)

    def _online_step(self, y: Tensor, weight: Tensor) -> None:
        optimizer, warm = self._optimizer(), self.current_epoch >= self.warmup_epochs
        rule: Any = optimizer.optimizer
        rule.param_groups[0]["learn_prior"] = self.learning.learn_prior and warm
        state = circuit.Circuit(*rule.param_groups[0]["params"])
        intensity = circuit.stage(self.learning.intensity, warm)
        drive = circuit.drive(
            y, state, rule.rate, intensity, sample_weight=weight, shape_update=rule.shape_update
        )
        self._pass.count(drive, y, weight)
        optimizer.step(closure=lambda: over_processes(drive, self._sum))
        self.shape.copy_(shapes.moment_shape(self.mean, self.second_moment))

    def _em_step(self, y: Tensor, weight: Tensor) -> None:
        sums = em.e_step(y, self.learned, self.learning.intensity, sample_weight=weight)
        self._pass.count(sums, y, weight)
        if self.trainer.is_last_batch:
            self._optimizer().step(closure=lambda: over_processes(self._pass.sums, self._sum))
            self._take(self.learned)

    def _end_pass(self) -> None:
        """Names the classes, revives one that has died, and logs."""
        tally = over_processes(self._pass.tally, self._sum)
        self.label_counts.copy_(tally.labels)
        dead = starts.dead_classes(tally.activity)
        if self._pass.worst is not None:
            worst = worst_of_all(self._pass.worst, self._gather)
            revived = starts.revive(self.learned, dead, worst, tally.weight, self.learning)
            changed = revived.mean != self.mean
            if bool(changed.any()):
                self._take(revived)
        self.dead.copy_(dead)
        seen = self.trace.seen[-1] + float(tally.weight)
        self.trace.record(seen, self.learned)
        numbers = {
            "train_log_likelihood": tally.log_likelihood / tally.weight,
            "dead_classes": dead.sum().double(),
            "lowest_mean": self.mean.min(),
            "highest_mean": self.mean.max(),
            "median_shape": self.learned.shape.median(),
        }
        self.log_dict({f"intrinsic/{name}": value.float() for name, value in numbers.items()})
        # a run resumed after the last batch begins the next epoch without on_train_epoch_start
        self._pass = Pass.empty(self.label_counts)

    def on_train_epoch_end(self) -> None:
        """Steps a learning-rate scheduler, which Lightning leaves to modules with rules of their own."""
        schedulers: Any = self.lr_schedulers() or []
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            scheduler.step()

    def _optimizer(self) -> Any:
        return self.optimizers()

    def _gather(self, tensor: Tensor) -> Tensor:
        """Stacks the processes' tensors along a new first dimension."""
        every: Any = self.all_gather(tensor)
        return every if self.trainer.world_size > 1 else every.unsqueeze(0)  # type: ignore[no-any-return]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the trace, and what one process alone has summed up of the epoch."""
        checkpoint["intrinsic_trace"] = self.trace.state_dict()
        if self.trainer.world_size == 1:
            checkpoint["intrinsic_pass"] = self._pass.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back."""
        self.trace.load_state_dict(checkpoint["intrinsic_trace"])
        alone = self._trainer is None or self._trainer.world_size == 1
        if alone and "intrinsic_pass" in checkpoint:
            self._pass = Pass.of_state(checkpoint["intrinsic_pass"])


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")


def _shape_rule(shape_update: str | None, rule: str, intensity: str) -> Any:
    """The rule by which shapes are learned; raises ValueError if another was asked for."""
    if shape_update is None:
        return SHAPE_RULES[rule][0]
    if shape_update not in SHAPE_RULES[rule]:
        raise ValueError(
            f"{shape_update=} must be one of {', '.join(SHAPE_RULES[rule])} with rule={rule!r}, or None"
        )
    if intensity != "nb":
        raise ValueError(f"{shape_update=} has no effect with intensity={intensity!r}, which knows no spread")
    return shape_update
