"""Sums behind the numbers of a validation or a test."""

from collections.abc import Callable

import torch
from torch import Tensor


class Scores:
    """Log-likelihood and accuracy of many batches, and the energies that were seen.

    Attributes:
        totals: summed log-likelihood, stimuli, correctly named stimuli, labelled stimuli; `[4]` float64.
    """

    def __init__(self) -> None:
        self.totals = torch.zeros(4, dtype=torch.float64)
        self._energies: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(
        self, log_likelihood: Tensor, named: Tensor | None, labels: Tensor, energy: Tensor, weight: Tensor
    ) -> None:
        """Adds a batch.

        Args:
            log_likelihood: `log p(y) [B]`.
            named: `p(label | y) [B, K]`, None while classes have no names.
            labels: `[B]`, -1 for unknown.
            energy: `S [B]`.
            weight: `[B]`, 0 for padding.
        """
        known = weight * (labels >= 0) if named is not None else torch.zeros_like(weight)
        correct = known * (named.argmax(1) == labels) if named is not None else known
        batch = [(log_likelihood * weight).sum(), weight.sum(), correct.sum(), known.sum()]
        self.totals = self.totals.to(weight.device) + torch.stack(batch)
        self._energies.append(energy[weight > 0].cpu())
        self._labels.append(labels[weight > 0].cpu())

    def compute(self, reduce: Callable[[Tensor], Tensor] = lambda totals: totals) -> dict[str, Tensor]:
        """Mean `log_likelihood` of a stimulus, and `accuracy` if there were names and labels.

        Args:
            reduce: sums a tensor over processes.
        """
        log_likelihood, weight, correct, known = reduce(self.totals)
        numbers = {"log_likelihood": log_likelihood / weight} if weight > 0 else {}
        return numbers | ({"accuracy": correct / known} if known > 0 else {})

    def energies(self) -> tuple[Tensor, Tensor]:
        """Energies `[n]` and labels `[n]` that this process has seen."""
        if not self._energies:
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
        return torch.cat(self._energies), torch.cat(self._labels)
