"""Plan: how many units are active at each optimizer step. Pure numbers, no tensors."""

import math
from collections.abc import Mapping, Sequence

from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.distributions import erk_densities, exact_counts, uniform_densities
from lightning_plasticity.sparsity.maskable import check_patterns, matches
from lightning_plasticity.sparsity.schedules import Constant, Schedule

Targets = int | list[int]
"""Active units wanted: over all layers together, or in each."""


class Plan:
    """The sparsity schedule of a config, laid over the layers of one model and the steps of one run.

    Args:
        config: Settings of the method.
        shapes: Parameter name to shape. Layers that a mapping of sparsities leaves out are not in the plan.
        total_steps: Optimizer steps of the whole run.
        coupled: Groups of layers whose filters go and come together; names that are not masked are passed
            over.

    Raises:
        ValueError: If a pattern matches nothing or two match one layer, or a schedule leaves its range, or
            coupled layers have different numbers of filters.
    """

    def __init__(
        self,
        config: SparsityConfig,
        shapes: Mapping[str, Sequence[int]],
        total_steps: int,
        coupled: Sequence[Sequence[str]] = (),
    ) -> None:
        config.check_schedules(total_steps)
        self.config, self.total_steps = config, total_steps
        self._schedules = _schedule_per_layer(config, shapes)
        self.shapes = {name: tuple(shapes[name]) for name in self._schedules}
        self.sizes = [math.prod(config.pattern.mask_shape(shape)) for shape in self.shapes.values()]
        masked = ([name for name in group if name in self.shapes] for group in coupled)
        self.coupled = [group for group in masked if len(group) > 1]
        self._check_coupled()
        self._end = self._sparsities(total_steps)
        self._last: tuple[list[float], Targets] = ([], 0)

    @property
    def is_global(self) -> bool:
        """Whether pruning ranks all layers together."""
        config = self.config
        return (
            config.scope == "global"
            and config.pattern.has_global_scope
            and not isinstance(config.sparsity, Mapping)
        )

    def targets(self, step: int) -> Targets:
        """Active units after the update of optimizer step ``step``."""
        sparsities = self._sparsities(step)
        if self._last[0] != sparsities:
            density = 1.0 - sparsities[0]
            targets = round(sum(self.sizes) * density) if self.is_global else self._per_layer(sparsities)
            self._last = (sparsities, targets)
        return self._last[1]

    def initial_counts(self) -> list[int]:
        """Active units of each layer before the first step."""
        return self._per_layer(self._sparsities(0))

    def has_arrived(self, step: int) -> bool:
        """Whether the sparsity of step ``step`` is the final one."""
        return self._sparsities(step) == self._end

    def is_behind(self, step: int, counts: Sequence[int]) -> bool:
        """Whether more units are active than the plan wants after step ``step``."""
        targets = self.targets(step)
        if isinstance(targets, int):
            return targets < sum(counts)
        return any(target < count for target, count in zip(targets, counts, strict=True))

    def is_update(self, step: int, counts: Sequence[int]) -> bool:
        """Whether masks change after optimizer step ``step``.

        Besides every ``update_every`` steps: where the schedule has arrived and the masks have not, so that
        the target is met exactly at its step, and right after it if gradients were not finite just then.
        """
        if step % self.config.update_every == 0:
            return self.regrow_ratio(step) > 0 or self.is_behind(step, counts)
        return self.has_arrived(step) and self.is_behind(step, counts)

    def kept(self, step: int, counts: Sequence[int]) -> Targets:
        """Active units that pruning leaves after step ``step``: the targets, never more than there are."""
        targets = self.targets(step)
        if isinstance(targets, int):
            return targets
        return [min(target, count) for target, count in zip(targets, counts, strict=True)]

    def exchanged(self, step: int, counts: Sequence[int], has_gradient: Sequence[bool]) -> list[int]:
        """Units that each layer drops and grows at step ``step``: ``ceil(r_t * active)``, if there is room.

        Args:
            step: Optimizer step.
            counts: Active units of each layer after pruning.
            has_gradient: Which layers had a gradient; the others sit out.
        """
        ratio = self.regrow_ratio(step)
        units = [
            math.ceil(ratio * count) if has else 0 for count, has in zip(counts, has_gradient, strict=True)
        ]
        if not self.config.allow_readd:
            units = [min(k, size - n) for k, size, n in zip(units, self.sizes, counts, strict=True)]
        if not self.config.pattern.has_unit_weights:  # a layer without filters computes nothing
            units = [min(k, n - 1) for k, n in zip(units, counts, strict=True)]
        return units

    def after_cut(self, rate: float, counts: Sequence[int]) -> Targets:
        """Active units left when a share ``rate`` goes at once; of filters at least one a layer."""
        if self.is_global:
            return sum(counts) - round(rate * sum(counts))
        left = [count - round(rate * count) for count in counts]
        return left if self.config.pattern.has_unit_weights else [max(1, count) for count in left]

    @property
    def regrows(self) -> bool:
        """Whether connections are exchanged at any time."""
        return self.config.regrow_schedule not in (Constant(0.0), Constant(0))

    def regrow_ratio(self, step: int) -> float:
        """Share of the active connections exchanged at step ``step``."""
        return self.config.regrow_schedule(step, self.total_steps)

    def _check_coupled(self) -> None:
        if self.coupled and self.config.pattern.has_unit_weights:
            raise ValueError(f"coupled layers need granularity='filter', not '{self.config.pattern}'")
        for group in self.coupled:
            filters = {name: self.shapes[name][0] for name in group}
            schedules = {self._schedules[name] for name in group}
            if len(set(filters.values())) > 1 or len(schedules) > 1:
                raise ValueError(
                    f"coupled layers must have one number of filters and one sparsity: {filters}"
                )

    def _sparsities(self, step: int) -> list[float]:
        if isinstance(self.config.sparsity, Mapping):
            return [schedule(step, self.total_steps) for schedule in self._schedules.values()]
        return [next(iter(self._schedules.values()))(step, self.total_steps)]

    def _per_layer(self, sparsities: list[float]) -> list[int]:
        pattern, shapes = self.config.pattern, self.shapes.values()
        if isinstance(self.config.sparsity, Mapping):
            return [pattern.count(shape, 1.0 - s) for shape, s in zip(shapes, sparsities, strict=True)]
        density = 1.0 - sparsities[0]
        if not pattern.has_global_scope:
            return [pattern.count(shape, density) for shape in shapes]
        distribute = erk_densities if self.config.distribution == "erk" else uniform_densities
        densities = distribute(self.shapes, density)
        return list(exact_counts(self.shapes, densities, round(sum(self.sizes) * density)).values())


def _schedule_per_layer(config: SparsityConfig, shapes: Mapping[str, Sequence[int]]) -> dict[str, Schedule]:
    schedules = config.sparsity_schedules
    if not isinstance(config.sparsity, Mapping):
        return dict.fromkeys(shapes, schedules["*"])
    check_patterns("sparsity", list(schedules), shapes)
    matching = {name: [p for p in schedules if matches(name, [p])] for name in shapes}
    if twice := {name: patterns for name, patterns in matching.items() if len(patterns) > 1}:
        raise ValueError(f"sparsity: several patterns match one layer, make them disjoint: {twice}")
    return {name: schedules[patterns[0]] for name, patterns in matching.items() if patterns}
