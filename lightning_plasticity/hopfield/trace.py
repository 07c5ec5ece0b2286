"""What a federation went through, round by round: for figures and for a run's last words."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from lightning_plasticity.hopfield.memory import Memory


@dataclass
class Trace:
    """Numbers of every round so far.

    Attributes:
        found: archetypes in memory after each round.
        plasticity: `w_c [C]` of each round, NaN for a client that took no part, 0 for one without signal.
        entropy: `H_c [C]`, bits, likewise.
        rejected: client and reason of every contribution that was dropped, by round.
        overlap_rounds: rounds after which the truth was compared with.
        overlaps: `[K]` of each such round: overlap of every true archetype with its match, NaN before it is
            seen.
        retrieval: share of corrupted cues that were retrieved, in each such round.
    """

    found: list[int] = field(default_factory=list)
    plasticity: list[Tensor] = field(default_factory=list)
    entropy: list[Tensor] = field(default_factory=list)
    rejected: dict[int, dict[int, str]] = field(default_factory=dict)
    overlap_rounds: list[int] = field(default_factory=list)
    overlaps: list[Tensor] = field(default_factory=list)
    retrieval: list[float] = field(default_factory=list)

    def record_round(self, memory: Memory) -> None:
        """Adds the round that the memory has just finished."""
        report = memory.report
        self.found.append(len(memory.archetypes))
        self.plasticity.append(report.plasticity.clone())
        self.entropy.append(torch.where(report.plasticity.isnan(), torch.nan, report.entropy))
        if report.rejected:
            self.rejected[memory.round - 1] = dict(report.rejected)

    def record_overlaps(self, round: int, overlaps: Tensor, retrieval: float) -> None:
        """Adds a comparison with the truth."""
        self.overlap_rounds.append(round)
        self.overlaps.append(overlaps)
        self.retrieval.append(retrieval)

    def clients(self) -> list[int]:
        """Clients that ever took part."""
        if not self.plasticity:
            return []
        return (~torch.stack(self.plasticity).isnan()).any(0).nonzero().flatten().tolist()

    def overlap_table(self) -> Tensor:
        """`[T, K]` overlaps, NaN before an archetype is seen; `[0, 0]` without any."""
        known = max((len(row) for row in self.overlaps), default=0)
        table = torch.full((len(self.overlaps), known), torch.nan, dtype=torch.float64)
        for row, overlaps in zip(table, self.overlaps, strict=True):
            row[: len(overlaps)] = overlaps
        return table

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
