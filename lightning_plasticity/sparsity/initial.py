"""Initial masks: drawn at random, or the largest weights of a net that is trained already."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from lightning_plasticity.sparsity.masks import shard_like
from lightning_plasticity.sparsity.plan import Plan
from lightning_plasticity.sparsity.scoring import Scorer


def initial_masks(plan: Plan, scorer: Scorer, group: ProcessGroup | None = None) -> list[Tensor]:
    """Masks at the plan's first sparsity, cut like the parameters.

    Args:
        plan: How many units are active in which layer.
        scorer: Scores the layers' weights, and holds the parameters and the generator.
        group: Process group over which the parameters are sharded.
    """
    counts = plan.initial_counts()
    if plan.config.initial == "random" or sum(counts) == sum(plan.sizes):
        return _random_masks(plan, scorer, counts)
    pattern = plan.config.pattern
    shapes = [pattern.mask_shape(shape) for shape in plan.shapes.values()]
    dense = [
        shard_like(torch.ones(shape, dtype=torch.bool), parameter)
        for shape, parameter in zip(shapes, scorer.parameters, strict=True)
    ]
    return pattern.prune(scorer.weights(), dense, plan.targets(0) if plan.is_global else counts, group)


def _random_masks(plan: Plan, scorer: Scorer, counts: Sequence[int]) -> list[Tensor]:
    """Drawn whole on the CPU, so the same on every rank; coupled layers share the first one's draw."""
    pattern, masks = plan.config.pattern, []
    layers = zip(plan.shapes.values(), scorer.parameters, counts, plan.sizes, strict=True)
    for shape, parameter, count, size in layers:
        if count == size:
            mask = torch.ones(pattern.mask_shape(shape), dtype=torch.bool)
        else:
            mask = pattern.draw(shape, count, scorer.generator)
        masks.append(shard_like(mask, parameter))
    for first, *others in scorer.coupled:
        for index in others:
            masks[index] = masks[first].reshape(masks[index].shape).clone()
    return masks
