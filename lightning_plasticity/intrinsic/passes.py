"""What a LightningModule gathers over one pass through the data, in one process and over all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_plasticity.intrinsic import circuit, em, naming, starts
from lightning_plasticity.intrinsic.distribution import Intensity, Parameters, log_base

Reduce = Callable[[Tensor], Tensor]


def over_processes(totals: Any, reduce: Reduce) -> Any:
    """Sums a named tuple of tensors over processes, in one message.

    Args:
        totals: `em.Sums`, `circuit.Drive` or the like; all of one dtype.
        reduce: sums one tensor over processes.
    """
    flat = reduce(torch.cat([part.reshape(-1) for part in totals]))
    parts = torch.split(flat, [part.numel() for part in totals])
    return type(totals)(*(part.view_as(old) for part, old in zip(parts, totals, strict=True)))


class Tally(NamedTuple):
    """Sums over the stimuli of a pass; float64."""

    labels: Tensor
    """`sum s [l = k] [C, K]`."""
    activity: Tensor
    """`sum s [C]`."""
    log_likelihood: Tensor
    """`sum log p(y)`, all constants included, `[]`."""
    weight: Tensor
    """Number of stimuli `[]`."""


@dataclass
class Pass:
    """One process's share of a pass.

    Attributes:
        tally: of the stimuli so far.
        sums: for the M step, with `rule="em"`.
        worst: log-likelihood and stimulus of the worst-explained one, if it was asked for.
    """

    tally: Tally
    sums: em.Sums | None = None
    worst: tuple[Tensor, Tensor] | None = None

    @classmethod
    def empty(cls, label_counts: Tensor) -> "Pass":
        """Nothing seen yet."""
        zero = label_counts.new_zeros(())
        return cls(
            Tally(torch.zeros_like(label_counts), label_counts.new_zeros(len(label_counts)), zero, zero)
        )

    @property
    def begun(self) -> bool:
        """Whether a stimulus has been counted."""
        return bool(self.tally.weight > 0)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Plain lists of tensors, empty ones for what there is not."""
        return {"tally": list(self.tally), "sums": list(self.sums or ()), "worst": list(self.worst or ())}

    @classmethod
    def of_state(cls, state: Mapping[str, Sequence[Tensor]]) -> "Pass":
        """Inverse of `state_dict`."""
        sums, worst = state["sums"], tuple(state["worst"])
        return cls(
            Tally(*state["tally"]), em.Sums(*sums) if sums else None, (worst[0], worst[1]) if worst else None
        )

    def count(self, part: em.Sums | circuit.Drive, y: Tensor, weight: Tensor) -> None:
        """Adds what a batch did: its activity, log-likelihood and size."""
        activity = part.number if isinstance(part, em.Sums) else part.activity
        log_likelihood = part.log_likelihood + (log_base(y) * weight).sum()
        labels = torch.zeros_like(self.tally.labels)
        self._add(Tally(labels, activity, log_likelihood, part.weight))
        if isinstance(part, em.Sums):
            self.sums = part if self.sums is None else self.sums.plus(part)

    def name(self, posterior: Tensor, labels: Tensor) -> None:
        """Adds who answered for the labels of a batch, -1 for none."""
        counts = naming.label_counts(posterior, labels, self.tally.labels.shape[1])
        self.tally = self.tally._replace(labels=self.tally.labels + counts)

    def watch(self, y: Tensor, params: Parameters, intensity: Intensity, weight: Tensor) -> None:
        """Keeps the worst-explained stimulus."""
        found = starts.worst_explained(y, params, intensity, weight)
        self.worst = found if self.worst is None else min(self.worst, found, key=lambda pair: float(pair[0]))

    def _add(self, other: Tally) -> None:
        self.tally = Tally(*(a + b for a, b in zip(self.tally, other, strict=True)))


def worst_of_all(worst: tuple[Tensor, Tensor], gather: Reduce) -> tuple[Tensor, Tensor]:
    """The worst-explained stimulus of all processes.

    Args:
        worst: of this process.
        gather: stacks one tensor of every process along a new first dimension.
    """
    score, stimulus = worst
    every = gather(torch.cat([score.double().view(1), stimulus.double()]))
    chosen = every[every[:, 0].argmin()]
    return chosen[0], chosen[1:]
