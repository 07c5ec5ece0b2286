"""Sparse training restated in plain NumPy: sorted lists and loops, slow, and nothing shared with the package.

Layers are lists of arrays in one fixed order. Ranking is by value, then by layer, then by row-major index.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Arrays = list[np.ndarray]


def cubic(t: int, s_i: float, s_f: float, t0: int, tf: int) -> float:
    """The sparsity of gradual pruning, exactly ``s_f`` from ``tf`` on."""
    if t >= tf:
        return s_f
    return s_i if t <= t0 else s_f + (s_i - s_f) * (1 - (t - t0) / (tf - t0)) ** 3


def cosine(t: int, total: int, r_0: float, r_min: float) -> float:
    """The share of regeneration, from ``r_0`` to ``r_min`` over the whole run."""
    return r_min + (r_0 - r_min) * (1 + math.cos(math.pi * min(t, total) / total)) / 2


def best(scores: Sequence[np.ndarray], eligible: Sequence[np.ndarray], k: int) -> Arrays:
    """Mark the ``k`` largest eligible scores over all layers."""
    entries = [
        (-float(score), layer, index)
        for layer, (values, allowed) in enumerate(zip(scores, eligible, strict=True))
        for index, (score, ok) in enumerate(zip(values.ravel(), allowed.ravel(), strict=True))
        if ok
    ]
    chosen = [np.zeros(values.size, dtype=bool) for values in scores]
    for _, layer, index in sorted(entries)[:k]:
        chosen[layer][index] = True
    return [mask.reshape(values.shape) for mask, values in zip(chosen, scores, strict=True)]


def best_per_layer(
    scores: Sequence[np.ndarray], eligible: Sequence[np.ndarray], counts: Sequence[int]
) -> Arrays:
    """Mark the ``counts`` largest eligible scores of each layer."""
    return [best([s], [e], k)[0] for s, e, k in zip(scores, eligible, counts, strict=True)]


def exchange(w: np.ndarray, g: np.ndarray, mask: np.ndarray, k: int, readd: bool = True) -> np.ndarray:
    """Drop the ``k`` active weights of smallest ``|w|``, grow ``k`` of largest ``|g|`` outside the survivors.

    Where just-dropped positions may not return, at most as many are exchanged as there were inactive ones.
    """
    k = k if readd else min(k, int((~mask).sum()))
    survivors = best([np.abs(w)], [mask], int(mask.sum()) - k)[0]
    taken = survivors if readd else mask
    return survivors | best([np.abs(g)], [~taken], k)[0]


def groups_of(shape: Sequence[int], m: int) -> list[list[tuple[int, ...]]]:
    """Positions of every group of ``m`` consecutive entries along dimension 1."""
    rest = [index for index in np.ndindex(*shape) if index[1] % m == 0]
    return [[(i[0], i[1] + offset, *i[2:]) for offset in range(m)] for i in rest]


def best_in_groups(scores: np.ndarray, eligible: np.ndarray, n: int, m: int) -> np.ndarray:
    """Mark the ``n`` largest eligible scores in every group of ``m``."""
    chosen = np.zeros(scores.shape, dtype=bool)
    for group in groups_of(scores.shape, m):
        ranked = sorted((-float(scores[i]), place) for place, i in enumerate(group) if eligible[i])
        for _, place in ranked[:n]:
            chosen[group[place]] = True
    return chosen


@dataclass
class Family:
    """GraNet and its relatives on single weights, fed step by step with what a real run did.

    Args:
        masks: Initial masks, bool.
        sparsity: Optimizer step -> sparsity wanted.
        arrival: Step from which the final sparsity holds.
        ratio: Optimizer step -> share exchanged in each layer.
        update_every: Optimizer steps between updates.
        per_layer: Step -> weights to keep in each layer; None for global pruning.
        readd: Whether just-dropped positions may grow.
    """

    masks: Arrays
    sparsity: Callable[[int], float]
    arrival: int
    ratio: Callable[[int], float]
    update_every: int
    per_layer: Callable[[int], list[int]] | None = None
    readd: bool = True
    updates: int = 0
    skipped: int = 0
    history: list[tuple[int, list[int]]] = field(default_factory=list)

    def targets(self, t: int) -> int | list[int]:
        """Active weights wanted after step ``t``."""
        if self.per_layer is not None:
            return self.per_layer(t)
        return round(sum(mask.size for mask in self.masks) * (1.0 - self.sparsity(t)))

    def is_due(self, t: int) -> bool:
        """Every ``update_every`` steps; from the arrival on also while too many weights are active."""
        target, active = self.targets(t), [int(mask.sum()) for mask in self.masks]
        behind = sum(active) > target if isinstance(target, int) else any(np.array(active) > np.array(target))
        if t % self.update_every == 0:
            return behind or self.ratio(t) > 0
        return t >= self.arrival and behind

    def step(self, t: int, weights: Arrays, gradients: Arrays) -> Arrays | None:
        """Update after step ``t``: which weights keep value and state, or None if nothing changes."""
        if not self.is_due(t):
            return None
        if not all(np.isfinite(g).all() for g in gradients):
            self.skipped += 1
            return None
        magnitudes, target = [np.abs(w) for w in weights], self.targets(t)
        if isinstance(target, int):
            target = min(target, sum(int(mask.sum()) for mask in self.masks))
            pruned = best(magnitudes, self.masks, target)
        else:
            target = [min(k, int(mask.sum())) for k, mask in zip(target, self.masks, strict=True)]
            pruned = best_per_layer(magnitudes, self.masks, target)
        self.masks = [
            exchange(w, g, mask, math.ceil(self.ratio(t) * int(mask.sum())), self.readd)
            for w, g, mask in zip(weights, gradients, pruned, strict=True)
        ]
        self.updates += 1
        self.history.append((t, [int(mask.sum()) for mask in self.masks]))
        return [before & after for before, after in zip(pruned, self.masks, strict=True)]
