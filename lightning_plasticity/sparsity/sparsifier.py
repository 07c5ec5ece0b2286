"""Sparsifier: the engine of sparse training. Owns masks, steps and generator; needs no Lightning.

The way of one optimizer step: dense gradients arrive (masked weights are zero, not cut out of the graph);
:meth:`Sparsifier.before_step` reads what growth needs and zeroes masked gradients; the optimizer steps;
:meth:`Sparsifier.after_step` counts the step and, where an update is due, prunes, drops, grows and applies.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.maskable import maskable_parameters
from lightning_plasticity.sparsity.masks import (
    apply_masks_,
    local,
    pack_mask,
    shard_like,
    unpack_mask,
    unshard_like,
)
from lightning_plasticity.sparsity.plan import Plan
from lightning_plasticity.sparsity.scores import Score, magnitude, random
from lightning_plasticity.sparsity.selection import LazyScores


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


@dataclass
class _Captured:
    """What an update needs from the dense gradients, taken before they are masked."""

    finite: Tensor
    has_gradient: list[bool]
    scores: dict[Score, list[Tensor]]


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

    Raises:
        ValueError: If a schedule or pattern does not fit.

    Example:
        >>> net = nn.Linear(16, 16)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> sparsifier = Sparsifier(net, SparsityConfig(sparsity=0.75, regrow_ratio=0.3, update_every=2), total_steps=10)
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
    ) -> None:
        if isinstance(parameters, nn.Module):
            parameters = maskable_parameters(parameters, granularity=config.pattern)
        self.config, self.group = config, group
        self.plan = Plan(config, {name: tuple(p.shape) for name, p in parameters.items()}, total_steps)
        self.parameters = {name: parameters[name] for name in self.plan.shapes}
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.updates = self.skipped = self.pruned = self.dropped = self.grown = 0
        self.counts = self.plan.initial_counts()
        self._masks = self._initial_masks()
        self._ever = [mask.clone() for mask in self._masks] if config.track_exploration else []
        self.history: list[tuple[int, list[int]]] = [(0, list(self.counts))]
        self._captured: _Captured | None = None
        self._is_stepping = False
        self.apply()

    # ------------------------------------------------------------------------------------------------ what there is

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name to bool mask of the parameter's shape (of its local shard under FSDP2); live
        views.
        """
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

    # -------------------------------------------------------------------------------------------------- one step

    @torch.no_grad()
    def before_step(self) -> None:
        """Read dense gradients if the coming step ends in an update, then zero those of masked weights.

        Call when gradients are final (accumulated, reduced, unscaled), before clipping.
        """
        due = self.plan.is_update(self.step + 1, self.counts)
        self._captured = self._capture(self.plan.regrow_ratio(self.step + 1) > 0) if due else None
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
        """Let a plain torch optimizer drive this object, for loops that call ``optimizer.step()`` without a
        closure.

        Returns:
            Handles; ``remove()`` detaches.

        Raises:
            ValueError: If the optimizer does not hold all the masked parameters.
        """
        self.check_optimizer(optimizer)
        return [
            optimizer.register_step_pre_hook(lambda *_: self.before_step() if self.begin() else None),
            optimizer.register_step_post_hook(lambda stepped, *_: self.finish(stepped) and None),
        ]

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

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse an optimizer that does not hold all the masked parameters.

        Raises:
            ValueError: Names the parameters.
        """
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if missing := [name for name, p in self.parameters.items() if id(p) not in owned]:
            raise ValueError(
                f"the optimizer never received these masked parameters: {missing}. "
                "Give them to the optimizer, or leave them dense with exclude=[...]."
            )

    @torch.no_grad()
    def apply(self) -> None:
        """Zero all masked weights."""
        sparse = self._sparse_layers()
        apply_masks_([local(p) for p, _ in sparse], [mask for _, mask in sparse])

    # -------------------------------------------------------------------------------------------------- updates

    def _update(self, optimizer: Optimizer, captured: _Captured) -> Update:
        drop_scores = self._scores(self.config.drop_score, captured)
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
        self.history = [(self.step, list(self.counts))]
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
        pattern, captured = self.config.pattern, self._capture(regrow)
        keep = [count - round(rate * count) for count in self.counts]
        if not pattern.has_unit_weights:
            keep = [max(1, count) for count in keep]
        total = sum(self.counts) - round(rate * sum(self.counts))
        scores = self._scores(self.config.drop_score, captured)
        pruned = pattern.prune(scores, self._masks, total if self.plan.is_global else keep, self.group)
        left, rewired = self._count(pruned), pruned
        if regrow:
            lost = [before - after for before, after in zip(self.counts, left, strict=True)]
            grow_scores = self._grow_scores(captured)
            rewired = pattern.grow(grow_scores, pruned, pruned, self.counts, lost, self.group)
            left = self.counts
        self._adopt(optimizer, pruned, rewired)
        self.counts = left

    def _prune(self, scores: list[LazyScores]) -> list[Tensor]:
        """GraNet step 1: down to the plan, over all layers together or in each."""
        if not self.plan.is_behind(self.step, self.counts):
            return [mask.clone() for mask in self._masks]
        keep = self.plan.targets(self.step)
        if not isinstance(keep, int):
            keep = [min(target, count) for target, count in zip(keep, self.counts, strict=True)]
        return self.config.pattern.prune(scores, self._masks, keep, self.group)

    def _exchange(
        self, drop_scores: list[LazyScores], captured: _Captured, pruned: list[Tensor], counts: list[int]
    ) -> list[Tensor]:
        """GraNet steps 2 and 3: in each layer drop a share of the active units and grow as many."""
        pattern, ratio = self.config.pattern, self.plan.regrow_ratio(self.step)
        exchange = [
            math.ceil(ratio * count) if has_gradient else 0
            for count, has_gradient in zip(counts, captured.has_gradient, strict=True)
        ]
        if not self.config.allow_readd:
            exchange = [
                min(k, size - n) for k, size, n in zip(exchange, self.plan.sizes, counts, strict=True)
            ]
        if not any(exchange):
            return pruned
        keep = [count - k for count, k in zip(counts, exchange, strict=True)]
        survivors = pattern.drop(drop_scores, pruned, keep, self.group)
        taken = survivors if self.config.allow_readd else pruned
        return pattern.grow(self._grow_scores(captured), survivors, taken, counts, exchange, self.group)

    def _adopt(self, optimizer: Optimizer, pruned: list[Tensor], rewired: list[Tensor]) -> None:
        """Take new masks: only units that lived through both halves keep weight and optimizer state."""
        keep = [a & b for a, b in zip(pruned, rewired, strict=True)]
        for mask, new in zip(self._masks, rewired, strict=True):
            mask.copy_(new)
        for ever, new in zip(self._ever, rewired, strict=False):
            ever |= new
        self._zero_outside(optimizer, keep)

    def _zero_outside(self, optimizer: Optimizer, masks: Sequence[Tensor]) -> None:
        tensors, keep = [], []
        for parameter, mask in zip(self.parameters.values(), masks, strict=True):
            for tensor in (parameter, *shaped_state(optimizer, parameter)):
                tensors.append(local(tensor))
                keep.append(mask)
        apply_masks_(tensors, keep)

    # --------------------------------------------------------------------------------------------------- scores

    def _capture(self, regrows: bool) -> _Captured:
        config, parameters = self.config, list(self.parameters.values())
        gradients = [local(p.grad) if p.grad is not None else torch.zeros_like(local(p)) for p in parameters]
        wanted = {config.drop_score} | ({config.grow_score} if regrows else set())
        return _Captured(
            finite=torch.stack(torch._foreach_norm(gradients, math.inf)).isfinite().all(),
            has_gradient=[p.grad is not None for p in parameters],
            scores={
                score: [
                    config.pattern.reduce(score(local(p).detach(), gradient, self.generator))
                    for p, gradient in zip(parameters, gradients, strict=True)
                ]
                for score in wanted - {magnitude, random}
            },
        )

    def _scores(self, score: Score, captured: _Captured) -> list[LazyScores]:
        """Scores of all layers: of the weights as they are now, drawn now, or as captured with the
        gradients.
        """
        pattern, parameters = self.config.pattern, self.parameters.values()
        if score is magnitude:
            weights = [local(p).detach() for p in parameters]
            if pattern.has_unit_weights:
                return [LazyScores(torch.abs, (weight,)) for weight in weights]
            return [_known(pattern.reduce(weight.abs())) for weight in weights]
        if score is random:
            return [_known(self._draw(p)) for p in parameters]
        return [_known(scores) for scores in captured.scores[score]]

    def _grow_scores(self, captured: _Captured) -> list[LazyScores]:
        """Grow scores of all layers, made comparable between units that were active and those that were
        not.
        """
        return [
            _known(self.config.pattern.grow_scores(score.function(*score.tensors), mask, self.generator))
            for score, mask in zip(self._scores(self.config.grow_score, captured), self._masks, strict=True)
        ]

    def _draw(self, parameter: Tensor) -> Tensor:
        """Random scores, drawn whole on the CPU, so that every device and rank sees the same."""
        shape = self.config.pattern.mask_shape(tuple(parameter.shape))
        return shard_like(torch.rand(shape, generator=self.generator), parameter)

    # ---------------------------------------------------------------------------------------------------- masks

    def _initial_masks(self) -> list[Tensor]:
        """Masks at the plan's first sparsity, drawn whole on the CPU, so that every device and rank sees the
        same.
        """
        pattern, masks = self.config.pattern, []
        for parameter, count, size in zip(
            self.parameters.values(), self.counts, self.plan.sizes, strict=True
        ):
            shape = tuple(parameter.shape)
            if count == size:
                mask = torch.ones(pattern.mask_shape(shape), dtype=torch.bool)
            else:
                mask = pattern.draw(shape, count, self.generator)
            masks.append(shard_like(mask, parameter))
        if self.config.initial == "magnitude" and sum(self.counts) < sum(self.plan.sizes):
            everything = [torch.ones_like(mask) for mask in masks]
            weights = [local(p).detach() for p in self.parameters.values()]
            scores = [_known(pattern.reduce(weight.abs())) for weight in weights]
            keep = self.plan.targets(0) if self.plan.is_global else self.counts
            masks = pattern.prune(scores, everything, keep, self.group)
            self.counts = self._count(masks)
        return masks

    def _sparse_layers(self) -> list[tuple[nn.Parameter, Tensor]]:
        layers = zip(self.parameters.values(), self._masks, self.counts, self.plan.sizes, strict=True)
        return [(parameter, mask) for parameter, mask, count, size in layers if count < size]

    def _count(self, masks: Sequence[Tensor]) -> list[int]:
        """Count active entries of each mask, over all shards; one synchronisation."""
        counts = torch.stack([torch.count_nonzero(mask) for mask in masks])
        if self.group is not None:
            torch.distributed.all_reduce(counts, group=self.group)
        return [int(count) for count in counts.tolist()]

    # ---------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors and plain Python types; masks at one bit a unit."""
        return {
            "step": self.step,
            "masks": {
                name: self._pack(name, mask) for name, mask in zip(self.parameters, self._masks, strict=True)
            },
            "shapes": {
                name: list(self.config.pattern.mask_shape(shape)) for name, shape in self.plan.shapes.items()
            },
            "ever_active": {
                name: self._pack(name, mask) for name, mask in zip(self.parameters, self._ever, strict=False)
            },
            "generator": self.generator.get_state(),
            "totals": {key: getattr(self, key) for key in _TOTALS},
            "history": [[step, *counts] for step, counts in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, on any device and number of shards.

        Raises:
            ValueError: If the state belongs to other parameters or another granularity.
        """
        here = {name: list(self.config.pattern.mask_shape(shape)) for name, shape in self.plan.shapes.items()}
        there = {name: list(shape) for name, shape in state["shapes"].items()}
        if here != there:
            different = sorted(
                name for name in here.keys() | there.keys() if here.get(name) != there.get(name)
            )
            raise ValueError(
                f"the stored masks do not fit the masked parameters; they differ in {different}. "
                "Resume with the model, include, exclude and granularity of the stored run."
            )
        self._masks = self._unpack_all(state["masks"], there)
        self._ever = self._unpack_all(state["ever_active"] or state["masks"], there) if self._ever else []
        self.step = state["step"]
        self.generator.set_state(state["generator"])
        for key in _TOTALS:
            setattr(self, key, state["totals"][key])
        self.history = [(step, list(counts)) for step, *counts in state["history"]]
        self.counts = self._count(self._masks)
        self._captured = None
        self.apply()

    def _pack(self, name: str, mask: Tensor) -> Tensor:
        return pack_mask(unshard_like(mask, self.parameters[name])).cpu()

    def _unpack_all(self, packed: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> list[Tensor]:
        return [
            shard_like(unpack_mask(packed[name].cpu(), shapes[name]), parameter)
            for name, parameter in self.parameters.items()
        ]


_TOTALS = ("updates", "skipped", "pruned", "dropped", "grown")


def _known(scores: Tensor) -> LazyScores:
    """Scores that exist already."""
    return LazyScores(lambda values: values, (scores,))


def shaped_state(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """The optimizer's state tensors that hold one number per weight, whatever the optimizer calls them."""
    return [
        value
        for value in optimizer.state.get(parameter, {}).values()
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point()
    ]
