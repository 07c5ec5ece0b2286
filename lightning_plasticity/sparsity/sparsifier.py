"""Sparsifier: the engine of sparse training. Owns masks, steps and generator; needs no Lightning.

The way of one optimizer step: dense gradients arrive (masked weights are zero, not cut out of the graph);
:meth:`Sparsifier.before_step` reads what growth needs and zeroes masked gradients; the optimizer steps;
:meth:`Sparsifier.after_step` counts the step and, where an update is due, prunes, drops, grows and applies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.initial import initial_masks
from lightning_plasticity.sparsity.maskable import maskable_parameters
from lightning_plasticity.sparsity.masks import apply_masks_, local, shard_like
from lightning_plasticity.sparsity.optimizer_state import check_optimizer, was_skipped, zero_outside_
from lightning_plasticity.sparsity.plan import Plan
from lightning_plasticity.sparsity.scoring import Captured, Scorer
from lightning_plasticity.sparsity.selection import LazyScores
from lightning_plasticity.sparsity.state import (
    History,
    check_same_shapes,
    pack_masks,
    reordered,
    unpack_masks,
)


@dataclass(frozen=True)
class Update:
    """What one update did, in units (weights or filters).

    ``grown`` and ``dropped`` are net: a connection dropped and grown back at once counts in neither.
    ``skipped`` says that gradients were not finite, so nothing was changed.
    """

    step: int
    pruned: int = 0
    dropped: int = 0
    grown: int = 0
    skipped: bool = False


class Sparsifier:
    """Keep the masks of a set of parameters while any torch loop trains them.

    GraNet (Liu et al. 2021) and its family are settings of one update, done every ``update_every`` optimizer
    steps: prune to the scheduled sparsity, drop a share of the active connections in each layer, grow as many
    by gradient, apply. New connections start at zero weight with zeroed optimizer state; one that is dropped
    and grown back in the same update keeps both, as in the authors' code.

    Args:
        parameters: Name to parameter, or a module, whose linear and convolution weights are taken
            (:func:`maskable_parameters` chooses others).
        config: Settings of the method.
        total_steps: Optimizer steps of the whole run, which fractions in schedules refer to.
        group: Process group over which the parameters are sharded (FSDP2), None if every process holds them
            whole.
        coupled: Groups of parameter names whose filters are pruned and regrown together, such as those of
            :func:`filter_groups`; names that are not masked are passed over.
        state: A :meth:`state_dict` to go on from, where the parameters are those of a stored run already:
            masks drawn anew would zero some of them.

    Raises:
        ValueError: If a schedule, a pattern or the state does not fit.

    Example:
        >>> net = nn.Linear(16, 16)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> config = SparsityConfig(sparsity=0.75, regrow_ratio=0.3, update_every=2)
        >>> sparsifier = Sparsifier(net, config, total_steps=10)
        >>> handles = sparsifier.attach(optimizer)
        >>> for _ in range(10):
        ...     net(torch.randn(4, 16)).square().sum().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> int(sparsifier.masks["weight"].sum()), sparsifier.density
        (64, 0.25)
    """

    def __init__(
        self,
        parameters: nn.Module | Mapping[str, nn.Parameter],
        config: SparsityConfig,
        total_steps: int,
        group: ProcessGroup | None = None,
        coupled: Sequence[Sequence[str]] = (),
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(parameters, nn.Module):
            parameters = maskable_parameters(parameters, granularity=config.pattern)
        self.config, self.group = config, group
        self.plan = Plan(config, {n: tuple(p.shape) for n, p in parameters.items()}, total_steps, coupled)
        self.parameters = {name: parameters[name] for name in self.plan.shapes}
        self.generator = torch.Generator().manual_seed(config.seed)
        self._scorer = Scorer(config, self.parameters, self.plan.coupled, self.generator)
        self.step = 0
        self.updates = self.skipped = self.pruned = self.dropped = self.grown = 0
        self._masks = initial_masks(self.plan, self._scorer, group)
        self.counts = self._count(self._masks)
        self._ever = [mask.clone() for mask in self._masks] if config.track_exploration else []
        self.history: History = [(0, list(self.counts))]
        self._captured: Captured | None = None
        self._is_stepping = False
        if state is None:
            self.apply()
        else:
            self.load_state_dict(state)

    # ------------------------------------------------------------------------------------ what there is

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name to live bool mask of its shape (of its local shard under FSDP2)."""
        return {
            name: mask.expand(local(p).shape)
            for (name, p), mask in zip(self.parameters.items(), self._masks, strict=True)
        }

    @property
    def density(self) -> float:
        """Share of active units over all layers."""
        return sum(self.counts) / sum(self.plan.sizes)

    @property
    def layer_density(self) -> dict[str, float]:
        """Share of active units in each layer."""
        return {
            name: n / size
            for name, n, size in zip(self.parameters, self.counts, self.plan.sizes, strict=True)
        }

    @property
    def exploration(self) -> float | None:
        """Share of positions that were ever active (R_s of ITOP, Liu et al. 2021b), None unless tracked."""
        return sum(self._count(self._ever)) / sum(self.plan.sizes) if self._ever else None

    # ----------------------------------------------------------------------------------------- one step

    @torch.no_grad()
    def before_step(self) -> None:
        """Read dense gradients if the coming step ends in an update, then zero those of masked weights.

        Call when gradients are final (accumulated, reduced, unscaled), before clipping.
        """
        due = self.plan.is_update(self.step + 1, self.counts)
        self._captured = self._scorer.capture(self.plan.regrow_ratio(self.step + 1) > 0) if due else None
        sparse = [(p, mask) for p, mask in self._sparse_layers() if p.grad is not None]
        apply_masks_([local(p.grad) for p, _ in sparse if p.grad is not None], [mask for _, mask in sparse])

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> Update | None:
        """Count an optimizer step that really happened and update the masks where that is due.

        Args:
            optimizer: The optimizer that stepped; its state of changed positions is zeroed.

        Returns:
            What was changed, or None on a step without update.

        Raises:
            RuntimeError: If an update is due but :meth:`before_step` was not called.
        """
        if was_skipped(optimizer):
            return None
        self.step += 1
        captured, self._captured = self._captured, None
        if not self.plan.is_update(self.step, self.counts):
            self.apply()  # some optimizers move weights whose gradient and state are zero
            return None
        if captured is None:
            raise RuntimeError(
                f"step {self.step} ends in an update, but before_step() was not called before it"
            )
        return self._update(optimizer, captured)

    def attach(self, optimizer: Optimizer) -> list[RemovableHandle]:
        """Let a plain torch optimizer drive this object, in loops that step without a closure.

        Returns:
            Handles; ``remove()`` detaches.

        Raises:
            ValueError: If the optimizer does not hold all the masked parameters.
        """
        check_optimizer(optimizer, self.parameters)
        return [
            optimizer.register_step_pre_hook(self._before_hook),
            optimizer.register_step_post_hook(self._after_hook),
        ]

    def _after_hook(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.finish(optimizer)

    def _before_hook(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if kwargs.get("closure") is not None or any(callable(argument) for argument in args[1:]):
            raise ValueError(
                "step(closure) computes gradients after attach() has looked at them: call before_step() at "
                "the end of the closure and after_step(optimizer) after the step instead"
            )
        if self.begin():
            self.before_step()

    def begin(self) -> bool:
        """Open a step, as a pre hook; False if it is open already.

        An optimizer whose ``step`` calls ``super().step()`` runs its hooks in both, so twice for one step.
        """
        opened, self._is_stepping = not self._is_stepping, True
        return opened

    def finish(self, optimizer: Optimizer) -> Update | None:
        """Close a step, as a post hook: :meth:`after_step` once for every :meth:`begin`, then masks only."""
        if not self._is_stepping:
            self.apply()
            return None
        self._is_stepping = False
        return self.after_step(optimizer)

    @torch.no_grad()
    def apply(self) -> None:
        """Zero all masked weights."""
        sparse = self._sparse_layers()
        apply_masks_([local(p) for p, _ in sparse], [mask for _, mask in sparse])

    # ------------------------------------------------------------------------------------------ updates

    def _update(self, optimizer: Optimizer, captured: Captured) -> Update:
        drop_scores = self._scorer.drop_scores(captured)
        pruned = self._prune(drop_scores)
        *counts, infinite = self._count([*pruned, ~captured.finite])
        if infinite:
            self.skipped += 1
            return Update(self.step, skipped=True)
        rewired = self._exchange(drop_scores, captured, pruned, counts)
        new = (
            sum(self._count([a & ~b for a, b in zip(rewired, pruned, strict=True)]))
            if rewired is not pruned
            else 0
        )
        update = Update(self.step, pruned=sum(self.counts) - sum(counts), dropped=new, grown=new)
        self._adopt(optimizer, pruned, rewired)
        self.counts = counts
        self.updates += 1
        self.pruned += update.pruned
        self.dropped += update.dropped
        self.grown += update.grown
        self.history.append((self.step, list(counts)))
        return update

    def set_total_steps(self, total_steps: int) -> None:
        """Lay the schedules over a run of another length; what has happened stays."""
        if total_steps != self.plan.total_steps:
            self.plan = Plan(self.config, self.plan.shapes, total_steps, self.plan.coupled)

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Replace masks, each given in the parameter's full shape, and zero what they exclude."""
        pattern = self.config.pattern
        for index, (name, parameter) in enumerate(self.parameters.items()):
            if name in masks:
                mask = masks[name]
                units = mask.flatten(1).any(1) if not pattern.has_unit_weights else mask
                shape = pattern.mask_shape(tuple(parameter.shape))
                self._masks[index] = shard_like(units.reshape(shape).clone(), parameter)
        self.counts = self._count(self._masks)
        self.history = [entry for entry in self.history if entry[0] < self.step]
        self.history.append((self.step, list(self.counts)))
        self.apply()

    @torch.no_grad()
    def cut(self, optimizer: Optimizer, rate: float, regrow: bool = False) -> None:
        """Cut a share of the active units at once, apart from any schedule; call between backward and step.

        The cut of pruning plasticity (Liu et al. 2021): ``rate`` of what is active now goes, over all layers
        together or in each, by the config's scope. With ``regrow`` each layer gets back as many as it lost,
        by gradient, from zero; positions just cut may return.

        Args:
            optimizer: Its state of changed positions is zeroed.
            rate: Share of the active units that go, in [0, 1).
            regrow: Whether to regenerate.
        """
        pattern, captured = self.config.pattern, self._scorer.capture(regrow)
        keep = self.plan.after_cut(rate, self.counts)
        pruned = pattern.prune(self._scorer.drop_scores(captured), self._masks, keep, self.group)
        left, rewired = self._count(pruned), pruned
        if regrow:
            lost = [before - after for before, after in zip(self.counts, left, strict=True)]
            scores = self._scorer.grow_scores(captured, self._masks)
            rewired = pattern.grow(scores, pruned, pruned, self.counts, lost, self.group)
            left = self.counts
        self._adopt(optimizer, pruned, rewired)
        self.counts = left

    def _prune(self, scores: list[LazyScores]) -> list[Tensor]:
        """GraNet step 1: down to the plan, over all layers together or in each."""
        if not self.plan.is_behind(self.step, self.counts):
            return [mask.clone() for mask in self._masks]
        keep = self.plan.kept(self.step, self.counts)
        return self.config.pattern.prune(scores, self._masks, keep, self.group)

    def _exchange(
        self, drop_scores: list[LazyScores], captured: Captured, pruned: list[Tensor], counts: list[int]
    ) -> list[Tensor]:
        """GraNet steps 2 and 3: in each layer drop a share of the active units and grow as many."""
        exchange = self.plan.exchanged(self.step, counts, captured.has_gradient)
        if not any(exchange):
            return pruned
        pattern = self.config.pattern
        keep = [count - k for count, k in zip(counts, exchange, strict=True)]
        survivors = pattern.drop(drop_scores, pruned, keep, self.group)
        taken = survivors if self.config.allow_readd else pruned
        scores = self._scorer.grow_scores(captured, self._masks)
        return pattern.grow(scores, survivors, taken, counts, exchange, self.group)

    def _adopt(self, optimizer: Optimizer, pruned: list[Tensor], rewired: list[Tensor]) -> None:
        """Take new masks: only units that lived through both halves keep weight and optimizer state."""
        keep = [a & b for a, b in zip(pruned, rewired, strict=True)]
        for mask, new in zip(self._masks, rewired, strict=True):
            mask.copy_(new)
        for ever, new in zip(self._ever, rewired, strict=False):
            ever |= new
        zero_outside_(optimizer, list(self.parameters.values()), keep)

    # -------------------------------------------------------------------------------------------- masks

    def _sparse_layers(self) -> list[tuple[nn.Parameter, Tensor]]:
        layers = zip(self.parameters.values(), self._masks, self.counts, self.plan.sizes, strict=True)
        return [(parameter, mask) for parameter, mask, count, size in layers if count < size]

    def _count(self, masks: Sequence[Tensor]) -> list[int]:
        """Count active entries of each mask, over all shards; one synchronisation."""
        counts = torch.stack([torch.count_nonzero(mask) for mask in masks])
        if self.group is not None:
            torch.distributed.all_reduce(counts, group=self.group)
        return [int(count) for count in counts.tolist()]

    # -------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors and plain Python types; masks at one bit a unit."""
        return {
            "step": self.step,
            "masks": pack_masks(self._masks, self.parameters),
            "shapes": {name: list(shape) for name, shape in self._mask_shapes().items()},
            "ever_active": pack_masks(self._ever, self.parameters),
            "generator": self.generator.get_state(),
            "totals": {key: getattr(self, key) for key in _TOTALS},
            "history": [[step, *counts] for step, counts in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, on any device and number of shards.

        Raises:
            ValueError: If the state belongs to other parameters or another granularity.
        """
        shapes = self._mask_shapes()
        check_same_shapes(shapes, state["shapes"])
        self._masks = unpack_masks(state["masks"], shapes, self.parameters)
        if self._ever:
            self._ever = unpack_masks(state["ever_active"] or state["masks"], shapes, self.parameters)
        self.step = state["step"]
        self.generator.set_state(state["generator"])
        for key in _TOTALS:
            setattr(self, key, state["totals"][key])
        self.history = reordered(state["history"], list(state["shapes"]), list(shapes))
        self.counts = self._count(self._masks)
        self._captured = None
        self.apply()

    def _mask_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.config.pattern.mask_shape(shape) for name, shape in self.plan.shapes.items()}


_TOTALS = ("updates", "skipped", "pruned", "dropped", "grown")
