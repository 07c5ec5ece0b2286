"""How many corrupted cues a memory completes, and which archetypes stand behind them."""

import torch
from torch import Tensor

from lightning_plasticity.metrics.archetype_overlap import match_archetypes

RETRIEVED = 0.95  # overlap of a state with the cue's original from which on the cue counts as retrieved
KNOWN = 0.9  # overlap from which on an archetype counts as found


class Retrieval:
    """Counts retrieved cues, and collects the archetypes behind them."""

    def __init__(self) -> None:
        self.right, self.count = 0, 0
        self.patterns: dict[int, Tensor] = {}

    def add(self, states: Tensor, originals: Tensor, labels: Tensor) -> None:
        """Adds a batch: states `[B, N]` from cues, what the cues were made of `[B, N]`, and labels `[B]`."""
        overlap = (states.double() * originals.double()).mean(1)
        self.right += int((overlap >= RETRIEVED).sum())
        self.count += len(states)
        for label, original in zip(labels.tolist(), originals, strict=True):
            self.patterns.setdefault(label, original.cpu())

    @property
    def accuracy(self) -> float:
        """Share of cues retrieved, NaN without any."""
        return self.right / self.count if self.count else float("nan")

    def scores(self, found: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Compares archetypes found, `[K', N]`, with those behind the cues.

        Returns:
            Overlap of each true archetype with its match, `[K]` by label, NaN for one without cues; and
            `"overlap"` (mean), `"overlap_min"`, `"found"`, `"spurious"` (those found that match nothing) and
            `"retrieval"`.
        """
        labels = sorted(self.patterns)
        patterns = [self.patterns[label] for label in labels]
        truth = torch.stack(patterns) if patterns else torch.zeros(0, found.shape[1])
        matched, partners = match_archetypes(found, truth)
        overlaps = torch.full((labels[-1] + 1 if labels else 0,), torch.nan, dtype=torch.float64)
        overlaps[labels] = matched
        true = int((matched[partners >= 0] >= KNOWN).sum())
        return overlaps, {
            "overlap": float(matched.mean()) if len(matched) else torch.nan,
            "overlap_min": float(matched.min()) if len(matched) else torch.nan,
            "found": true,
            "spurious": len(found) - true,
            "retrieval": self.accuracy,
        }
