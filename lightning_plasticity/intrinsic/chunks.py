"""A data set cut into chunks, so that no pass over it needs a temporary larger than one of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Self

import torch
from torch import Tensor

from lightning_plasticity.intrinsic import em, starts
from lightning_plasticity.intrinsic.distribution import Intensity, Parameters, log_base
from lightning_plasticity.intrinsic.stimuli import (
    as_labels,
    as_sample_weight,
    as_stimuli,
    check_stimuli,
    computable,
)

CHUNK = 4096
"""Stimuli handled at a time: no temporary is larger than `CHUNK x max(C, D)`."""

START_ROWS = 4096
"""Most stimuli that a random start looks at."""


@dataclass(frozen=True)
class Chunks:
    """Stimuli `[n, D]` with what is known of them; checked, and never copied whole."""

    stimuli: Tensor
    labels: Tensor | None = None
    weight: Tensor | None = None

    @classmethod
    def of(
        cls, stimuli: Any, num_features: int, num_classes: int, labels: Any = None, sample_weight: Any = None
    ) -> Self:
        """Chunks of user data; raises ValueError if anything about it is wrong."""
        y = as_stimuli(stimuli, num_features)
        for part in torch.split(y, CHUNK):
            check_stimuli(part)
        known = as_labels(labels, len(y), num_classes, y.device)
        return cls(y, known, as_sample_weight(sample_weight, len(y), y.device))

    def parts(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Stimuli in the dtype of computation, labels and weights, chunk by chunk."""
        return map(self._part, range(0, len(self.stimuli), CHUNK))

    def _part(self, first: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        cut = slice(first, first + CHUNK)
        labels = None if self.labels is None else self.labels[cut]
        return computable(self.stimuli[cut]), labels, None if self.weight is None else self.weight[cut]

    def map(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Results of a function of stimuli, over all chunks."""
        return torch.cat([function(part) for part, _, _ in self.parts()])

    def energy(self) -> Tensor:
        """Total energies `S [n]`, float64."""
        return self.map(lambda y: y.sum(1).double())

    def start(self, num_classes: int, generator: torch.Generator) -> Parameters:
        """A random start, from at most `START_ROWS` of the stimuli that have weight."""
        rows = torch.randperm(len(self.stimuli), generator=generator).to(self.stimuli.device)
        if self.weight is not None:
            rows = rows[self.weight[rows] > 0]
        params = starts.start(self.stimuli[rows[:START_ROWS]], num_classes, generator)
        return params if self.labels is None else starts.place(params, self.stimuli, self.labels)

    @cached_property
    def _by_energy(self) -> list[tuple[Tensor, list[tuple[int, Tensor]]]]:
        """Distinct energies, with the chunks that they are for and the index `[n]` of each into them.

        Counts repeat their energies: all chunks share one list, unless it is longer than a chunk.
        """
        energy, firsts = self.energy(), range(0, len(self.stimuli), CHUNK)
        levels, index = torch.unique(energy, return_inverse=True)
        if len(levels) <= CHUNK:
            return [(levels, list(zip(firsts, torch.split(index, CHUNK), strict=True)))]
        own = (torch.unique(part, return_inverse=True) for part in torch.split(energy, CHUNK))
        return [(levels, [(first, index)]) for first, (levels, index) in zip(firsts, own, strict=True)]

    def e_step(self, params: Parameters, intensity: Intensity) -> em.Sums:
        """One E pass over everything."""
        sums, dtype = list[em.Sums](), computable(self.stimuli[:0]).dtype
        for levels, chunks in self._by_energy:
            step = em.EStep(levels, params, intensity, dtype)
            for first, index in chunks:
                stimuli, labels, weight = self._part(first)
                step.add(stimuli, index, labels, weight)
            sums.append(step.sums())
        return reduce(em.Sums.plus, sums)

    def worst_explained(self, params: Parameters, intensity: Intensity) -> tuple[Tensor, Tensor]:
        """Log-likelihood of the worst-explained stimulus, and that stimulus."""
        found = (starts.worst_explained(y, params, intensity, weight) for y, _, weight in self.parts())
        return min(found, key=lambda pair: float(pair[0]))

    def mean_base(self) -> float:
        """Weighted mean of the class-free constants of the log-likelihood."""
        base = self.map(log_base)
        return float(base.mean() if self.weight is None else (base * self.weight).sum() / self.weight.sum())
