"""Splits and random streams that depend on their arguments alone, never on a global generator."""

import torch
from torch import Tensor


def generator_for(seed: int, epoch: int = 0, stream: int = 0) -> torch.Generator:
    """Make the random generator of one purpose (``stream``) in one epoch of one seed.

    Example:
        >>> first, again = (torch.rand(1, generator=generator_for(3, epoch=2)) for _ in range(2))
        >>> bool(first == again)
        True
    """
    return torch.Generator().manual_seed(((seed * 16 + stream) * 1_000_003 + epoch) % 2**63)


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split positions in two, class by class.

    Args:
        labels: int64 [N].
        fraction: share of every class that goes to the second part, in [0, 1), rounded; while it is above 0,
            every class with at least two images has at least one in either part.
        seed: which images go.

    Returns:
        Positions of the first and of the second part, each ascending, int64.

    Raises:
        ValueError: if ``fraction`` is out of range.

    Example:
        >>> rest, held_out = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), fraction=0.25, seed=0)
        >>> len(rest), len(held_out)
        (6, 2)
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction={fraction!r} must be 0 or more and below 1.")
    generator = generator_for(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())) if fraction else ():
        members = (labels == label).nonzero().flatten()
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        order = torch.randperm(len(members), generator=generator)
        held_out[members[order[:count]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
