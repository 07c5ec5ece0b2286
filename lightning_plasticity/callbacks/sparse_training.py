"""SparseTraining: masks that are pruned and regrown while a Trainer trains. Plumbing only."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_plasticity.callbacks.claims import by_optimizer, check_claims, coupled_groups
from lightning_plasticity.callbacks.run_length import few_updates, scheduled_steps
from lightning_plasticity.callbacks.support import (
    batch_size,
    callbacks_of,
    check_equal_masks,
    check_strategy,
    log_now,
    mask_averages,
    shard_group,
    unscales_itself,
)
from lightning_plasticity.sparsity.checkpoints import stored_masks
from lightning_plasticity.sparsity.config import Distribution, Scope, SparsityConfig
from lightning_plasticity.sparsity.maskable import maskable_parameters
from lightning_plasticity.sparsity.report import SparsityReport, density_of, numbers_to_log
from lightning_plasticity.sparsity.schedules import Schedule
from lightning_plasticity.sparsity.scores import Score
from lightning_plasticity.sparsity.sparsifier import Sparsifier, Update

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SparseTrainingError(MisconfigurationException, ValueError):
    """A setting that does not fit the model or the run; raised at fit start."""


class SparseTraining(Callback):
    """Train sparse: prune along a schedule, drop and regrow connections. The presets are settings of it.

    Add it to any Trainer; the LightningModule is not changed. Masked weights and their optimizer state stay
    exactly zero, updates happen after optimizer steps, everything needed to resume is in the checkpoint.
    Logged: ``sparsity/density`` (also in the progress bar), ``sparsity/pruned``, ``sparsity/dropped``,
    ``sparsity/grown`` (of the last update, in weights or filters), ``sparsity/skipped_updates`` and, if
    tracked, ``sparsity/exploration``.

    Args:
        sparsity: Fraction of masked weights (or filters), in [0, 1): a number, a schedule, or a mapping of
            name pattern to either.
        regrow_ratio: Share of a layer's active connections exchanged at each update: a number or a schedule.
        update_every: Optimizer steps between updates.
        drop: Score of what goes: ``"magnitude"``, ``"sensitivity"``, ``"random"``, or the import path of a
            function ``(weight, gradient, generator) -> scores``.
        grow: Score of what comes back: ``"gradient"``, ``"random"``, or an import path.
        scope: Whether pruning ranks weights over all layers (``"global"``; all layers of one optimizer, if
            there are several) or in each (``"layer"``).
        distribution: Layer densities where the method chooses them: ``"erk"`` or ``"uniform"``.
        granularity: ``"weight"``, ``"filter"`` or an N:M string such as ``"2:4"``.
        include: Name patterns of parameters or modules to mask; default: all linear and convolution weights.
        exclude: Name patterns of parameters or modules that stay dense.
        initial: How initial masks are drawn if the run starts sparse: ``"random"``, or ``"magnitude"`` for a
            net that is trained already.
        allow_readd: Whether a connection dropped in an update may grow back in the same update.
        track_exploration: Log the share of positions ever active; costs one more byte a weight.
        total_steps: Optimizer steps of the run, where the trainer cannot know them (open-ended runs, manual
            optimization with accumulation).
        coupled: With granularity ``"filter"``, score and mask filters together that have to go together for
            :func:`shrink` to remove them, such as those that add to one residual stream. True finds them with
            the module's ``example_input_array``; or give groups of parameter names
            (:func:`filter_groups`).
        check_ranks: Compare checksums of the masks over all processes after every update, for debugging.
        seed: Seed of everything random here; the same on every rank.

    Raises:
        ValueError: At construction or fit start, for a setting out of its range, a pattern that matches
            nothing, a shape that the granularity does not fit.
        MisconfigurationException: At fit start, for an unsupported strategy, a parameter claimed by two
            callbacks or held by no optimizer, a run of unknown length, a checkpoint without masks.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SparseTraining(sparsity=0.8, regrow_ratio=0.3)], logger=False)
    """

    def __init__(
        self,
        sparsity: float | Schedule | Mapping[str, float | Schedule] = 0.9,
        regrow_ratio: float | Schedule = 0.0,
        update_every: int = 100,
        drop: str | Score = "magnitude",
        grow: str | Score = "gradient",
        scope: Scope = "global",
        distribution: Distribution = "erk",
        granularity: str = "weight",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        initial: Literal["random", "magnitude"] = "random",
        allow_readd: bool = True,
        track_exploration: bool = False,
        total_steps: int | None = None,
        check_ranks: bool = False,
        coupled: bool | Sequence[Sequence[str]] = False,
        seed: int = 0,
    ) -> None:
        self.config = SparsityConfig(
            sparsity, regrow_ratio, update_every, drop, grow, scope, distribution, granularity, initial,
            allow_readd, track_exploration, seed,
        )  # fmt: skip
        for argument, patterns in (("include", include), ("exclude", exclude)):
            if isinstance(patterns, str):
                raise ValueError(f"{argument}='{patterns}' must be a list: {argument}=['{patterns}']")
        if total_steps is not None and (type(total_steps) is not int or total_steps < 1):
            raise ValueError(f"{total_steps=} must be a positive number of optimizer steps, or None")
        self.include, self.exclude = list(include), list(exclude)
        self.total_steps, self.check_ranks = total_steps, check_ranks
        if coupled and self.config.pattern.has_unit_weights:
            raise ValueError(f"coupled={coupled} needs granularity='filter', it is '{granularity}'")
        self.coupled = coupled if isinstance(coupled, bool) else [list(group) for group in coupled]
        self._engines: list[tuple[Optimizer, Sparsifier]] = []
        self._handles: list[RemovableHandle] = []
        self._is_fitting = False
        self._fresh: list[Update] = []
        self._restored: dict[str, Any] | None = None
        self._report = SparsityReport()
        self._flops_seen = self._reloads = False

    # ------------------------------------------------------------------------------------ what there is

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name to bool mask of the parameter's shape; True = active. Live during and after fit."""
        if self._restored is not None:  # came with a checkpoint for validation only
            return stored_masks(self._restored)
        return {name: mask for _, engine in self._engines for name, mask in engine.masks.items()}

    @property
    def density(self) -> float:
        """Share of active weights (or filters) among those in reach of masks; 1 before the fit."""
        return density_of([engine for _, engine in self._engines])

    @property
    def filter_groups(self) -> list[list[str]]:
        """Groups of masked parameters whose filters go together in this run; empty without ``coupled``."""
        return [list(group) for _, engine in self._engines for group in engine.plan.coupled]

    def summary(self) -> str:
        """What happened, as text: accuracy, density per layer, FLOPs, connections grown and dropped."""
        return self._report.text(type(self).__name__, [engine for _, engine in self._engines])

    def flops(self) -> dict[str, float]:
        """FLOPs: ``dense`` (forward, one sample); ``forward`` and ``training`` as shares of it; or empty."""
        return self._report.flop_shares([engine for _, engine in self._engines])

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The table of layers for FigureLogger: units, active units and density."""
        return {"sparsity": self._report.layers([engine for _, engine in self._engines])}

    def figures(self) -> "dict[str, Figure]":
        """Figures for FigureLogger: density and accuracy over the run, density per layer."""
        return self._report.figures([engine for _, engine in self._engines])

    # ---------------------------------------------------------------------------------------- fit start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last fit, and any state that came with a checkpoint for validation only."""
        if stage == "fit":
            self._detach()
            self._engines, self._restored = [], None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose parameters, and draw or restore masks."""
        check_strategy(trainer, type(self).__name__)
        try:
            self._set_up(trainer, pl_module)
        except ValueError as error:
            raise SparseTrainingError(str(error)) from error

    def _set_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = maskable_parameters(pl_module, self.include, self.exclude, self.config.pattern)
        parameters = self.config.named_layers(parameters)
        check_claims(type(self).__name__, parameters, self._others(trainer))
        total, groups = self._total_steps(trainer), coupled_groups(self.coupled, pl_module)
        owned = by_optimizer(parameters, trainer.optimizers)
        self._engines = [
            (
                optimizer,
                Sparsifier(
                    mine, self.config.for_layers(mine), total, shard_group(mine.values()), groups, state
                ),
            )
            for (optimizer, mine), state in zip(owned, self._stored(len(owned)), strict=True)
        ]
        self._report, self._flops_seen, self._is_fitting = SparsityReport(), False, True
        if self._restored is not None:
            self._report.curve = list(self._restored["curve"])
            self._restored = None

    def _others(self, trainer: Trainer) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """What every other sparse training callback masks."""
        for other in callbacks_of(trainer):
            if other is not self and isinstance(other, SparseTraining):
                yield from ((type(other).__name__, engine.parameters) for _, engine in other._engines)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook into the optimizers, and lay schedules over the run as it is now.

        Not before: a batch-size finder may have changed the run's length, and FSDP2 makes an empty step to
        load the optimizer's state.
        """
        self._handles = [
            register(hook)
            for optimizer, _ in self._engines
            for register, hook in (
                (optimizer.register_step_pre_hook, partial(self._begin_step, trainer)),
                (optimizer.register_step_post_hook, self._after_step),
            )
        ]
        total = self._total_steps(trainer)
        for _, engine in self._engines:
            engine.set_total_steps(total)
        mask_averages(trainer, self.masks)
        changes = any(e.plan.regrows or not e.plan.has_arrived(0) for _, e in self._engines)
        if changes and (hint := few_updates(self.config.update_every, total)):
            rank_zero_info(f"{type(self).__name__}: {hint}")

    def _total_steps(self, trainer: Trainer) -> int:
        return scheduled_steps(trainer, self.config, self.total_steps, type(self).__name__)

    # ----------------------------------------------------------------------------------------- training

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Gradients are accumulated, reduced and unscaled, not yet clipped: read them, then mask them."""
        for owner, engine in self._engines:
            if owner is optimizer and not unscales_itself(trainer, optimizer):
                engine.before_step()

    def _begin_step(self, trainer: Trainer, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Where the scaler looks for infinite gradients only now, mask only now, lest it overlook one.

        Trial steps of learning-rate and batch-size finders, which take the callbacks away, count nowhere.
        """
        if self not in callbacks_of(trainer):
            return
        for owner, engine in self._engines:
            if owner is optimizer and engine.begin() and unscales_itself(trainer, optimizer):
                engine.before_step()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Runs only after a step that really happened: one that a gradient scaler skips counts nowhere."""
        for owner, engine in self._engines:
            if owner is optimizer and (update := engine.finish(optimizer)) is not None:
                self._fresh.append(update)
                if update.skipped:
                    rank_zero_warn(f"step {update.step}: gradients are not finite, masks stay as they are")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the FLOPs of the first batch that comes by."""
        if not self._flops_seen:
            self._report.watch_flops(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after updates and at an epoch's start, so that the progress bar always has a density."""
        if first := not self._flops_seen:
            self._report.close_flops(batch_size(batch))
            self._flops_seen = True
        if not (self._fresh or batch_idx == 0 or first):
            return
        if self._fresh:
            mask_averages(trainer, self.masks)
            if self.check_ranks:
                check_equal_masks(engine for _, engine in self._engines)
        numbers = numbers_to_log([engine for _, engine in self._engines], self._fresh)
        for name, value in numbers.items():
            pl_module.log(name, value, prog_bar=name == "sparsity/density")
        if self._fresh:  # loggers hear of every update, not only of those that fall on log_every_n_steps
            log_now(trainer, numbers)
        self._fresh.clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the accuracies for the figure."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._engines:
            self._report.record(trainer.callback_metrics, self._engines[0][1].step, self.density)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mask what weight averaging has put into the model."""
        for _, engine in self._engines:
            engine.apply()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary."""
        self._detach()
        rank_zero_info(self.summary())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers as they were found."""
        self._detach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._is_fitting = [], False
        self._report.close_flops()

    # -------------------------------------------------------------------------------------------- state

    @property
    def state_key(self) -> str:
        """Identity only: which parameters this instance owns. A changed setting can still resume."""
        return self._generate_state_key(include=self.include, exclude=self.exclude)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to go on from a checkpoint that holds no masks."""
        loaded = {id(p) for p in pl_module.parameters()}
        self._reloads = bool(self._engines) and all(
            id(p) in loaded for _, engine in self._engines for p in engine.parameters.values()
        )
        if trainer.state.fn == "fit" and self.state_key not in checkpoint["callbacks"]:
            raise MisconfigurationException(
                f"ckpt_path={trainer.ckpt_path} holds no masks for state_key '{self.state_key}'. Resume with "
                "the callback, include and exclude of the stored run; to start sparse training from its "
                "weights, load them into the model (load_from_checkpoint) and fit without ckpt_path."
            )

    def state_dict(self) -> dict[str, Any]:
        """Masks (one bit a weight), counters, generators and the report's curve, in plain types."""
        if self._restored is not None:
            return self._restored  # what was loaded and not yet used, for validation or before a tuner
        return {
            "engines": [engine.state_dict() for _, engine in self._engines],
            "curve": list(self._report.curve),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the model and optimizers are there; some strategies load after that."""
        if not state_dict["engines"]:
            return  # saved before the fit had begun, as tuners do
        self._restored = state_dict
        if self._is_fitting or self._reloads:  # the weights of another moment, with its masks
            for (_, engine), state in zip(self._engines, self._stored(len(self._engines)), strict=True):
                if state is not None:
                    engine.load_state_dict(state)
            self._report.curve = list(state_dict["curve"])
            self._restored = None

    def _stored(self, count: int) -> list[dict[str, Any] | None]:
        """The restored state of each of ``count`` engines, None where nothing was restored."""
        if self._restored is None:
            return [None] * count
        stored: list[dict[str, Any] | None] = self._restored["engines"]
        if len(stored) != count:
            raise MisconfigurationException(
                f"the checkpoint holds masks for {len(stored)} optimizers, this run has {count}: resume with "
                "the model and configure_optimizers of the stored run."
            )
        return stored
