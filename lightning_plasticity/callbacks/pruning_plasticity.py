"""PruningPlasticity: how well a net recovers from a cut, measured on branches of a run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_plasticity.callbacks.branches import (
    Branch,
    branch_trainer,
    copy_run,
    random_state,
    set_random_state,
    undisturbed,
    validation_data,
)
from lightning_plasticity.callbacks.run_length import epochs_of
from lightning_plasticity.callbacks.sparse_training import SparseTraining
from lightning_plasticity.callbacks.support import callbacks_of, leaves_no_trace
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
    In a run that trains sparse, what is active is cut, and coupled filters are cut together.

    If the run is interrupted in a branch, the resumed run takes the branches that are missing before it
    trains on (if that epoch was the last, when the fit ends). They are those of an uninterrupted run, unless
    a dataloader shuffles by a generator of its own, whose state no checkpoint holds.

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
        include: Name patterns of what is cut, in a run without a sparse training callback, which would have
            chosen already.
        exclude: Name patterns of what is not; the same.

    Raises:
        ValueError: For a setting out of its range.
        MisconfigurationException: At fit start without validation data, with several processes, or if the
            cut does not go with a sparse training callback of the run; at the first validation, which is the
            sanity check if there is one, if ``monitor`` is not logged.

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
        for epoch in epochs:
            if type(epoch) is not int or epoch < 0:
                raise ValueError(f"epochs={list(epochs)} must be ints, counted from 0")
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
        self._ended = -1  # the last epoch whose branches are all taken, or that had none to take
        self._taken: list[float] = []  # rates of those taken of the epoch after it
        self._resumes, self._random = False, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that branches can be trained and scored here."""
        if trainer.world_size > 1:
            raise MisconfigurationException(
                f"PruningPlasticity trains branches in one process; this run has {trainer.world_size}. "
                "Train on one device, or cut checkpoints of the parallel run afterwards on one."
            )
        if not trainer.enable_validation:
            raise MisconfigurationException("PruningPlasticity needs validation data to score its branches")
        for other in sparse_callbacks(trainer):
            name, granularity = type(other).__name__, other.config.granularity
            if self.cut["granularity"] == "filter" != granularity:
                raise MisconfigurationException(
                    f"granularity='filter' cuts whole filters, but {name} masks by '{granularity}': cut by "
                    "'weight', or train sparse by 'filter'."
                )
            for argument in ("include", "exclude"):
                if patterns := self.cut[argument]:
                    raise MisconfigurationException(
                        f"{argument}={list(patterns)} has no say here: what {name} masks is what is cut. "
                        f"Leave it out, or give it to {name}."
                    )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the branches that a stored run was about to; say which the run will not come to."""
        self._catch_up(trainer, pl_module)
        length = epochs_of(trainer)
        if length is None or leaves_no_trace(trainer):
            return
        if self.every_n_epochs is not None and self.every_n_epochs > length:
            rank_zero_warn(
                f"PruningPlasticity: every_n_epochs={self.every_n_epochs} is longer than the run, which has "
                f"{length} epochs: no branch will be taken."
            )
        if late := [epoch for epoch in self.epochs if epoch >= length]:
            rank_zero_warn(
                f"PruningPlasticity: no branch will be taken at epochs={late}: the run has {length} epochs, "
                "counted from 0. Train longer, or choose earlier ones."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the metric as soon as there can be one, not at the first branch.

        A sanity check in which the module logs nothing at all says nothing.
        """
        if trainer.state.fn == "fit" and not (trainer.sanity_checking and not trainer.callback_metrics):
            self._check_monitor(trainer)

    def _check_monitor(self, trainer: Trainer) -> None:
        if self.monitor not in trainer.callback_metrics:
            raise MisconfigurationException(
                f"monitor='{self.monitor}' is not logged in validation; "
                f"there are {sorted(trainer.callback_metrics)}"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the epochs in which the learning rate drops, for the figure.

        Lightning leaves out the hook of an epoch's start if it resumes behind the last batch of another.
        """
        if batch_idx != 0:
            return
        rate = learning_rate(trainer)
        if rate < self._learning_rate * 2 / 3:
            self._drops.append(trainer.current_epoch)
        self._learning_rate = rate

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Branch off, if it is time."""
        if trainer.current_epoch > self._ended:  # Lightning may come twice to the end of a resumed epoch
            for record in self._take(trainer, pl_module, trainer.current_epoch):
                pl_module.log(self._key(record), record["plasticity"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the branches of a stored run that was at its last epoch's end: it is not trained again."""
        self._catch_up(trainer, pl_module)

    def _catch_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In a resumed run, whose weights are those of an epoch's end: take what is missing of that epoch.

        Lightning doesn't call the hooks of that end again.
        """
        progress: Any = trainer.fit_loop.epoch_progress.current
        last, resumes, self._resumes = progress.processed - 1, self._resumes, False
        if resumes and last > self._ended:
            before = len(self.records) - len(self._taken)  # what was taken isn't logged yet either
            for _ in self._take(trainer, pl_module, last, self._random):
                pass
            metrics = {self._key(record): record["plasticity"] for record in self.records[before:]}
            for logger in trainer.loggers if metrics else ():
                logger.log_metrics({**metrics, "epoch": last}, step=trainer.global_step - 1)
                logger.save()
        self._ended, self._taken, self._random = last, [], None

    def _take(
        self, trainer: Trainer, pl_module: LightningModule, epoch: int, random: dict[str, Any] | None = None
    ) -> Iterator[Record]:
        """Take the branches of an epoch that are not taken yet, if it is one of those to branch off at."""
        if epoch in self.epochs or (self.every_n_epochs and (epoch + 1) % self.every_n_epochs == 0):
            left = list(self.rates)
            for rate in self._taken:
                if rate in left:
                    left.remove(rate)
            for record in self._measure(trainer, pl_module, epoch, left, random):
                self.records.append(record)
                self._taken.append(record["rate"])
                rank_zero_info(describe(record))
                yield record
        self._ended, self._taken = epoch, []

    def _key(self, record: Record) -> str:
        return f"pruning_plasticity/{record['rate']:g}{'_regrown' if self.regrow else ''}"

    def _measure(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        epoch: int,
        rates: Sequence[float],
        random: dict[str, Any] | None,
    ) -> Iterator[Record]:
        masks = {name: mask for c in sparse_callbacks(trainer) for name, mask in c.masks.items()}
        coupled = [group for c in sparse_callbacks(trainer) for group in c.filter_groups]
        scored_on = validation_data(trainer)
        before = self.records[-1]["before"] if self._taken else None
        for rate in rates:
            with undisturbed(trainer):
                if random is not None:
                    set_random_state(random)
                module, optimizers = copy_run(pl_module, trainer.optimizers)
                branch = Branch(rate, self.regrow, masks, coupled, **self.cut)
                inner = branch_trainer(trainer, self.continue_epochs, branch)
                if before is None:
                    before = self._score(inner, module, scored_on)
                module.configure_optimizers = lambda optimizers=optimizers: optimizers  # type: ignore[method-assign, misc]
                inner.fit(module, trainer.train_dataloader, scored_on)
                after = float(inner.callback_metrics[self.monitor])
            yield {
                "epoch": epoch,
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

    def _score(self, inner: Trainer, module: LightningModule, dataloaders: Any) -> float:
        inner.validate(module, dataloaders, verbose=False)
        self._check_monitor(inner)
        return float(inner.callback_metrics[self.monitor])

    def figures(self) -> "dict[str, Figure]":
        """The paper's figure: plasticity over training time, a line per rate, learning-rate drops marked."""
        from lightning_plasticity.sparsity.figures import plasticity_over_time

        if not self.records:
            return {}
        title = f"Pruning plasticity, {'with' if self.regrow else 'without'} regeneration"
        suffix = "_regrown" if self.regrow else ""
        return {f"pruning_plasticity{suffix}": plasticity_over_time(self.records, title)}

    @property
    def state_key(self) -> str:
        """Identity only: what kind of cut this instance measures."""
        return self._generate_state_key(regrow=self.regrow, **self.cut)

    def state_dict(self) -> dict[str, Any]:
        """The records so far, and what a run that is resumed at an epoch's end needs to complete them."""
        return {
            "records": [dict(record) for record in self.records],
            "learning_rate": self._learning_rate,
            "drops": list(self._drops),
            "ended": self._ended,
            "taken": list(self._taken),
            "random": self._random or random_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the records of the stored run."""
        self.records = [dict(record) for record in state_dict["records"]]
        self._learning_rate, self._drops = state_dict["learning_rate"], list(state_dict["drops"])
        self._resumes = "ended" in state_dict
        self._ended, self._taken = state_dict.get("ended", -1), list(state_dict.get("taken", ()))
        self._random = state_dict.get("random")


def sparse_callbacks(trainer: Trainer) -> list[SparseTraining]:
    """The sparse training callbacks of a run."""
    return [c for c in callbacks_of(trainer) if isinstance(c, SparseTraining)]


def learning_rate(trainer: Trainer) -> float:
    """The present learning rate of the first parameter group."""
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def describe(record: Mapping[str, Any]) -> str:
    """One branch in one line."""
    return (
        f"pruning plasticity, epoch {record['epoch']}, learning rate {record['learning_rate']:g}: "
        f"cut {record['rate']:g} of the active connections{', regrown' if record['regrow'] else ''}: "
        f"{record['before']:.4f} -> {record['after']:.4f} ({record['plasticity']:+.4f})"
    )
