"""SparseTraining: masks that are pruned and regrown while a Trainer trains. Plumbing only; see
``sparsity``.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import _extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_plasticity.callbacks.support import check_strategy, optimizer_of, optimizer_steps, shard_group
from lightning_plasticity.sparsity.config import Distribution, Scope, SparsityConfig
from lightning_plasticity.sparsity.maskable import maskable_parameters
from lightning_plasticity.sparsity.report import SparsityReport
from lightning_plasticity.sparsity.schedules import Schedule
from lightning_plasticity.sparsity.scores import Score
from lightning_plasticity.sparsity.sparsifier import Sparsifier, Update

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ENDLESS = 2**62
"""Steps of a run without end, for schedules that need no end."""


class SparseTraining(Callback):
    """Train sparse: keep masks, prune along a schedule, drop and regrow connections. The general form of the
    presets.

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
        scope: Whether pruning ranks weights over all layers (``"global"``) or in each (``"layer"``).
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
        seed: int = 0,
    ) -> None:
        self.config = SparsityConfig(
            sparsity, regrow_ratio, update_every, drop, grow, scope, distribution, granularity, initial, allow_readd,
            track_exploration, seed,
        )  # fmt: skip
        self.include, self.exclude, self.total_steps = list(include), list(exclude), total_steps
        self._engines: list[tuple[Optimizer, Sparsifier]] = []
        self._handles: list[RemovableHandle] = []
        self._fresh: list[Update] = []
        self._restored: dict[str, Any] | None = None
        self._report = SparsityReport()
        self._flops_seen = False

    # ------------------------------------------------------------------------------------------------ what there is

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name to bool mask of the parameter's shape; True = active. Live during and after fit."""
        return {name: mask for _, engine in self._engines for name, mask in engine.masks.items()}

    @property
    def density(self) -> float:
        """Share of active weights (or filters) among all that are masked by this callback; 1 before the
        fit.
        """
        sizes = sum(sum(engine.plan.sizes) for _, engine in self._engines)
        return sum(sum(engine.counts) for _, engine in self._engines) / sizes if sizes else 1.0

    def summary(self) -> str:
        """What happened, as text: accuracy, density per layer, FLOPs, connections grown and dropped."""
        return self._report.text(type(self).__name__, [engine for _, engine in self._engines])

    def flops(self) -> dict[str, float]:
        """Dense forward FLOPs of a sample, and forward and training FLOPs as shares of dense; empty if unknown."""
        return self._report.flop_shares([engine for _, engine in self._engines])

    def figures(self) -> "dict[str, Figure]":
        """Figures for FigureLogger: density and accuracy over the run, density per layer."""
        return self._report.figures([engine for _, engine in self._engines])

    # -------------------------------------------------------------------------------------------------- fit start

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose parameters, draw or restore masks, and hook into the optimizers."""
        self._detach()
        check_strategy(trainer, type(self).__name__)
        parameters = maskable_parameters(pl_module, self.include, self.exclude, self.config.pattern)
        self._check_claims(trainer, parameters)
        total = self._total_steps(trainer)
        owners = {name: optimizer_of(p, trainer.optimizers) for name, p in parameters.items()}
        if orphans := [name for name, owner in owners.items() if owner is None]:
            raise MisconfigurationException(
                f"no optimizer received these masked parameters: {orphans}. Return them from configure_optimizers, or "
                f"leave them dense with {type(self).__name__}(exclude={orphans[:1]})."
            )
        self._engines = [
            (optimizer, Sparsifier(mine, self.config, total, shard_group(mine.values())))
            for optimizer in trainer.optimizers
            if (mine := {name: p for name, p in parameters.items() if owners[name] is optimizer})
        ]
        self._handles = [
            register(hook)
            for optimizer, _ in self._engines
            for register, hook in (
                (optimizer.register_step_pre_hook, self._begin_step),
                (optimizer.register_step_post_hook, self._after_step),
            )
        ]
        self._report, self._flops_seen = SparsityReport(), False
        if self._restored is not None:
            self._restore(self._restored)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to go on from a checkpoint that holds no masks."""
        if trainer.ckpt_path is not None and self._restored is None:
            raise MisconfigurationException(
                f"ckpt_path={trainer.ckpt_path} holds no masks for state_key '{self.state_key}'. Resume with the callback, "
                "include and exclude of the stored run; to start sparse training from its weights, load them into the "
                "model (load_from_checkpoint) and fit without ckpt_path."
            )
        self._restored = None

    def _total_steps(self, trainer: Trainer) -> int:
        total = self.total_steps or optimizer_steps(trainer)
        schedules = [*self.config.sparsity_schedules.values(), self.config.regrow_schedule]
        if total is None and any(schedule.needs_total for schedule in schedules):
            raise MisconfigurationException(
                f"{type(self).__name__} has times given as fractions of the run, but the run has no known end: set "
                "Trainer(max_steps=...) or max_epochs, give the callback total_steps=..., or give times as steps (int)."
            )
        if total is not None and not all(s(total, total) == s(_ENDLESS, total) for s in schedules[:-1]):
            rank_zero_warn(
                f"{type(self).__name__}: the run ends after {total} optimizer steps, before its sparsity is reached."
            )
        return _ENDLESS if total is None else total

    def _check_claims(self, trainer: Trainer, parameters: Mapping[str, Any]) -> None:
        mine = {id(p) for p in parameters.values()}
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is self or not isinstance(other, SparseTraining):
                continue
            for _, engine in other._engines:
                if shared := [name for name, p in engine.parameters.items() if id(p) in mine]:
                    raise MisconfigurationException(
                        f"{type(self).__name__} and {type(other).__name__} both mask {shared}: give each its own layers "
                        "with include=[...] or exclude=[...]."
                    )

    # --------------------------------------------------------------------------------------------------- training

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Gradients are accumulated, reduced and unscaled, not yet clipped: read them, then mask them."""
        for owner, engine in self._engines:
            if owner is optimizer:
                engine.before_step()

    def _begin_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for owner, engine in self._engines:
            if owner is optimizer:
                engine.begin()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Runs only after a step that really happened: a step that a gradient scaler skips counts nowhere."""
        for owner, engine in self._engines:
            if owner is optimizer and (update := engine.finish(optimizer)) is not None:
                self._fresh.append(update)
                if update.skipped:
                    rank_zero_warn(f"step {update.step}: gradients are not finite, masks stay as they are")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the FLOPs of the first batch that comes by."""
        if not self._flops_seen:
            self._report.watch_flops(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after updates and once an epoch, so that the density is always in the progress bar."""
        if not self._flops_seen:
            self._report.close_flops(_batch_size(batch))
            self._flops_seen = True
        if self._fresh or batch_idx == 0:
            self.log("sparsity/density", self.density, prog_bar=True)
            self.log("sparsity/skipped_updates", float(sum(engine.skipped for _, engine in self._engines)))
        if self._fresh:
            for key in ("pruned", "dropped", "grown"):
                self.log(f"sparsity/{key}", float(sum(getattr(update, key) for update in self._fresh)))
            explored = [e for _, engine in self._engines if (e := engine.exploration) is not None]
            if explored:
                self.log("sparsity/exploration", sum(explored) / len(explored))
        self._fresh.clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the accuracies for the figure."""
        if not trainer.sanity_checking and self._engines:
            self._report.record(trainer.callback_metrics, self._engines[0][1].step, self.density)

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
        self._handles = []
        self._report.close_flops()

    # ------------------------------------------------------------------------------------------------------ state

    @property
    def state_key(self) -> str:
        """Identity only: which parameters this instance owns. A changed setting can still resume."""
        return self._generate_state_key(include=self.include, exclude=self.exclude)

    def state_dict(self) -> dict[str, Any]:
        """Masks (one bit a weight), counters, generators and the report's curve, in plain types."""
        return {"engines": [engine.state_dict() for _, engine in self._engines], "curve": self._report.curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the model and optimizers are there; some strategies load after that."""
        self._restored = state_dict
        if self._handles:
            self._restore(state_dict)

    def _restore(self, state: dict[str, Any]) -> None:
        if len(state["engines"]) != len(self._engines):
            raise MisconfigurationException(
                f"the checkpoint holds masks for {len(state['engines'])} optimizers, this run has {len(self._engines)}"
            )
        for (_, engine), stored in zip(self._engines, state["engines"], strict=True):
            engine.load_state_dict(stored)
        self._report.curve = list(state["curve"])


def _batch_size(batch: Any) -> int | None:
    """Samples in a batch, None where it cannot be told."""
    try:
        return next(_extract_batch_size(batch))
    except (StopIteration, TypeError):
        return None
