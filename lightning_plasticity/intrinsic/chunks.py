"""A data set cut into chunks, so that no pass over it needs a temporary larger than one of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
        for first in range(0, len(self.stimuli), CHUNK):
            cut = slice(first, first + CHUNK)
            labels = None if self.labels is None else self.labels[cut]
            yield computable(self.stimuli[cut]), labels, None if self.weight is None else self.weight[cut]

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

    def e_step(self, params: Parameters, intensity: Intensity) -> em.Sums:
        """One E pass over everything."""
        sums = (em.e_step(y, params, intensity, labels, weight) for y, labels, weight in self.parts())
        total = next(sums)
        for part in sums:
            total = total.plus(part)
        return total

    def worst_explained(self, params: Parameters, intensity: Intensity) -> tuple[Tensor, Tensor]:
        """Log-likelihood of the worst-explained stimulus, and that stimulus."""
        found = (starts.worst_explained(y, params, intensity, weight) for y, _, weight in self.parts())
        return min(found, key=lambda pair: float(pair[0]))

    def mean_base(self) -> float:
        """Weighted mean of the class-free constants of the log-likelihood."""
        base = self.map(log_base)
        return float(base.mean() if self.weight is None else (base * self.weight).sum() / self.weight.sum())
