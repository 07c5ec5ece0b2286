"""PruningPlasticity: how well a net recovers from a cut, measured on branches of a run."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch.optim import Optimizer

from lightning_plasticity.callbacks.sparse_training import SparseTraining
from lightning_plasticity.sparsity.schedules import check_fraction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]
"""``epoch, step, learning_rate, sparsity, rate, regrow, before, after, plasticity`` of one branch."""


class PruningPlasticity(Callback):
    """Measure pruning plasticity during a run (Liu et al., NeurIPS 2021).

    At the end of chosen epochs the net is copied, a share of its active connections is cut at once, and the
    copy trains on for some epochs at the learning rate of that moment. Plasticity is its accuracy after that
    minus its accuracy just before the cut: about 0 or above means that the net recovered. The run itself goes
    on as if nothing had happened: it ends in the same weights with and without this callback.

    A rate that drops with the last step of an epoch has dropped already when that epoch's branch is taken.

    Logged: ``pruning_plasticity/<rate>``, with ``_regrown`` behind it where connections are regenerated. All
    results are in :attr:`records` and in the checkpoint.

    Args:
        rates: Shares of the active connections to cut, each on a branch of its own (the paper, unstructured:
            .2, .5, .9, .98).
        epochs: Epochs (counted from 0) at whose end to branch off; alternative to ``every_n_epochs``.
        every_n_epochs: Branch off at the end of every n-th epoch.
        continue_epochs: Epochs of continued training (the paper: 30).
        regrow: Whether each layer gets back as many connections as it lost, by gradient.
        scope: Cut the smallest weights over all layers (``"global"``) or that share of each (``"layer"``).
        granularity: ``"weight"`` or ``"filter"``.
        monitor: Accuracy that ``validation_step`` logs.
        include: Name patterns of what is cut, if no sparse training callback has chosen already.
        exclude: Name patterns of what is not.

    Raises:
        ValueError: For a setting out of its range.
        MisconfigurationException: At fit start without validation data or with several processes; at the
            first branch if ``monitor`` is not logged.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PruningPlasticity(every_n_epochs=10)], logger=False)
    """

    def __init__(
        self,
        rates: Sequence[float] = (0.2, 0.5, 0.9, 0.98),
        epochs: Sequence[int] = (),
        every_n_epochs: int | None = None,
        continue_epochs: int = 30,
        regrow: bool = False,
        scope: Literal["global", "layer"] = "global",
        granularity: Literal["weight", "filter"] = "weight",
        monitor: str = "val/accuracy",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        if not rates:
            raise ValueError(
                "rates=() is empty: give the shares of connections to cut, such as rates=(0.5, 0.9)"
            )
        for rate in rates:
            check_fraction("rates", rate)
        if bool(epochs) == (every_n_epochs is not None):
            raise ValueError(f"give either epochs or every_n_epochs, not {epochs=} and {every_n_epochs=}")
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"{every_n_epochs=} must be at least 1")
        if continue_epochs < 1:
            raise ValueError(f"{continue_epochs=} must be at least 1")
        self.rates, self.epochs, self.every_n_epochs = list(rates), list(epochs), every_n_epochs
        self.continue_epochs, self.regrow, self.monitor = continue_epochs, regrow, monitor
        self.cut: dict[str, Any] = {
            "scope": scope,
            "granularity": granularity,
            "include": include,
            "exclude": exclude,
        }
        Branch(0.0, False, **self.cut)  # raises now what would raise at the first branch
        self.records: list[Record] = []
        self._learning_rate, self._drops = 0.0, list[int]()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that branches can be trained and scored here."""
        if trainer.world_size > 1:
            raise MisconfigurationException(
                f"PruningPlasticity trains branches in one process; this run has {trainer.world_size}. "
                "Train on one device, or cut checkpoints of the parallel run afterwards on one."
            )
        if not trainer.enable_validation:
            raise MisconfigurationException("PruningPlasticity needs validation data to score its branches")
        others = [c for c in trainer.callbacks if isinstance(c, SparseTraining)]  # type: ignore[attr-defined]
        for other in others if self.cut["granularity"] == "filter" else []:
            if other.config.granularity != "filter":
                raise MisconfigurationException(
                    f"granularity='filter' cuts whole filters, but {type(other).__name__} masks by "
                    f"'{other.config.granularity}': cut by 'weight', or train sparse by 'filter'."
                )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the learning rate drops, for the figure."""
        rate = learning_rate(trainer)
        if rate < self._learning_rate * 2 / 3:
            self._drops.append(trainer.current_epoch)
        self._learning_rate = rate

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Branch off, if it is time."""
        epoch = trainer.current_epoch
        chosen = epoch in self.epochs or (self.every_n_epochs and (epoch + 1) % self.every_n_epochs == 0)
        if not chosen or trainer.sanity_checking:
            return
        for record in self._measure(trainer, pl_module):
            self.records.append(record)
            pl_module.log(
                f"pruning_plasticity/{record['rate']:g}{'_regrown' if self.regrow else ''}",
                record["plasticity"],
            )
            rank_zero_info(describe(record))

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[Record]:
        masks = {n: m for c in trainer.callbacks if isinstance(c, SparseTraining) for n, m in c.masks.items()}  # type: ignore[attr-defined]
        before = None
        for rate in self.rates:
            with undisturbed(trainer):
                module, optimizers = copy_run(pl_module, trainer.optimizers)
                branch = Branch(rate, self.regrow, masks, **self.cut)
                inner = branch_trainer(trainer, self.continue_epochs, branch)
                if before is None:
                    before = self._score(inner, module, trainer)
                module.configure_optimizers = lambda optimizers=optimizers: optimizers  # type: ignore[method-assign, misc]
                inner.fit(module, trainer.train_dataloader, trainer.val_dataloaders)
                after = float(inner.callback_metrics[self.monitor])
            yield {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "learning_rate": learning_rate(trainer),
                "learning_rate_drops": list(self._drops),
                "sparsity": branch.sparsity_before,
                "rate": rate,
                "regrow": self.regrow,
                "before": before,
                "after": after,
                "plasticity": after - before,
            }

    def _score(self, inner: Trainer, module: LightningModule, trainer: Trainer) -> float:
        inner.validate(module, trainer.val_dataloaders, verbose=False)
        if self.monitor not in inner.callback_metrics:
            raise MisconfigurationException(
                f"monitor='{self.monitor}' is not logged in validation; "
                f"there are {sorted(inner.callback_metrics)}"
            )
        return float(inner.callback_metrics[self.monitor])

    def figures(self) -> "dict[str, Figure]":
        """The paper's figure: plasticity over training time, a line per rate, learning-rate drops marked."""
        from lightning_plasticity.sparsity.figures import plasticity_over_time

        suffix = "_regrown" if self.regrow else ""
        return {f"pruning_plasticity{suffix}": plasticity_over_time(self.records)} if self.records else {}

    @property
    def state_key(self) -> str:
        """Identity only: what kind of cut this instance measures."""
        return self._generate_state_key(regrow=self.regrow, **self.cut)

    def state_dict(self) -> dict[str, Any]:
        """The records so far."""
        return {
            "records": [dict(record) for record in self.records],
            "learning_rate": self._learning_rate,
            "drops": list(self._drops),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the records of the stored run."""
        self.records = [dict(record) for record in state_dict["records"]]
        self._learning_rate, self._drops = state_dict["learning_rate"], list(state_dict["drops"])


class Branch(SparseTraining):
    """One branch: a cut between the first backward pass and optimizer step, then constant masks."""

    def __init__(
        self, rate: float, regrow: bool, masks: Mapping[str, torch.Tensor] | None = None, **cut: Any
    ) -> None:
        super().__init__(sparsity=0.0, **cut)
        self.rate, self.regrow, self.start_masks = rate, regrow, dict(masks or {})
        self.sparsity_before = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the run's masks."""
        if self.start_masks:
            self.include, self.exclude = list(self.start_masks), []
        super().on_fit_start(trainer, pl_module)
        for _, engine in self._engines:
            engine.set_masks(self.start_masks)
        self.sparsity_before = 1.0 - self.density

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Cut once, with the gradients of the uncut net; every later step only holds the masks."""
        for owner, engine in self._engines:
            if owner is optimizer and engine.step == 0:
                engine.cut(optimizer, self.rate, self.regrow)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say nothing: the run that branched reports."""
        self._detach()


def learning_rate(trainer: Trainer) -> float:
    """The present learning rate of the first parameter group."""
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def copy_run(
    pl_module: LightningModule, optimizers: Sequence[Optimizer]
) -> tuple[LightningModule, list[Optimizer]]:
    """Copy a module and its optimizers, state and present learning rates included, without schedulers."""
    memo: dict[int, Any] = {}
    module = copy.deepcopy(pl_module, memo)
    module._metric_attributes = None  # Lightning's cache of metrics by id, which are others in the copy
    return module, [copy.deepcopy(optimizer, memo) for optimizer in optimizers]


def branch_trainer(trainer: Trainer, epochs: int, branch: Callback) -> Trainer:
    """A silent Trainer like the given one, which writes nothing and validates once, at its end."""
    return type(trainer)(
        accelerator=trainer.accelerator,
        devices=1,
        precision=trainer.precision,
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        limit_train_batches=trainer.limit_train_batches,
        limit_val_batches=trainer.limit_val_batches,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        callbacks=[branch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def undisturbed(trainer: Trainer) -> Iterator[None]:
    """Put back every random state that a branch moves, and keep its Trainer quiet."""
    generators = {id(g): (g, g.get_state()) for g in _generators(trainer)}
    log = logging.getLogger(type(trainer).__module__.split(".trainer")[0])
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with isolate_rng():
            yield
    finally:
        log.setLevel(level)
        for generator, state in generators.values():
            generator.set_state(state)


def _generators(trainer: Trainer) -> Iterator[torch.Generator]:
    """Generators that the run's dataloaders and samplers draw from."""
    for loaders in (trainer.train_dataloader, trainer.val_dataloaders):
        for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
            for owner in (loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler"))):
                for inner in (owner, getattr(owner, "sampler", None)):
                    if isinstance(generator := getattr(inner, "generator", None), torch.Generator):
                        yield generator


def describe(record: Mapping[str, Any]) -> str:
    """One branch in one line."""
    return (
        f"pruning plasticity, epoch {record['epoch']}, learning rate {record['learning_rate']:g}: "
        f"cut {record['rate']:g} of the active connections{', regrown' if record['regrow'] else ''}: "
        f"{record['before']:.4f} -> {record['after']:.4f} ({record['plasticity']:+.4f})"
    )
