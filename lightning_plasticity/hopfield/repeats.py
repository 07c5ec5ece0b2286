"""Examples that a batch holds more than once: seen again, they are no new evidence."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_plasticity.hopfield.operators import tiles

GLANCE = 1024  # columns in which rows of noisy data differ already
TOO_EVEN = -4.0  # standard deviations below what chance would have spread the repeats


def distinct(examples: Tensor, most: int) -> Tensor:
    """The examples without repeats of a row, or of its negative, which is the same evidence.

    Noisy rows do not repeat by chance. Where they do, a DataLoader ran twice over the data, or a client wants
    more say; counted again, they would pass for independent ones, and noise for archetypes. Rows of *clean*
    patterns (quality 1) do repeat, and each is a sighting: rows are taken for clean patterns if there are at
    most `most` kinds of them, repeated as unevenly as chance repeats. So at most `most` noisy examples drawn
    with replacement pass for clean patterns: nothing in the batch tells the two apart.

    Args:
        examples: `X [M, N]` of +-1.
        most: archetypes that a sketch can tell.

    Returns:
        `[D, N]`, first occurrences in their order; all examples if nothing repeats, or all are clean.

    >>> x = torch.tensor([[1.0, 1, -1], [1, -1, 1], [-1, -1, 1]])
    >>> distinct(x, most=0)
    tensor([[ 1.,  1., -1.],
            [ 1., -1.,  1.]])
    """
    glance: Any = _codes(examples[:, :GLANCE])  # torch leaves `unique` untyped
    if len(glance.unique()) == len(examples):
        return examples
    codes: Any = _codes(examples)
    _, kind, counts = codes.unique(return_inverse=True, return_counts=True)
    if len(counts) == len(examples) or (len(counts) <= most and not _too_even(counts)):
        return examples
    rows = torch.arange(len(kind), device=kind.device)
    first = torch.full_like(counts, len(kind)).scatter_reduce_(0, kind, rows, "amin")
    return examples[first.sort().values]


def _codes(examples: Tensor) -> Tensor:
    """`[M]`, equal for rows that are equal up to their sign; for others with a chance of about `N / 2^51`.

    Whole numbers whose sums stay below 2^53 are exact in float64, in whatever order they are added.
    """
    n = examples.shape[1]
    numbers = torch.randint(1, 2**52 // n, (n,), generator=torch.Generator().manual_seed(0)).double()
    numbers = numbers.to(examples.device)
    return torch.cat([tile.double() @ numbers for tile in tiles(examples)]).abs()


def _too_even(counts: Tensor) -> bool:
    """Whether counts are more alike than independent draws make them: chi-squared, Wilson and Hilferty."""
    free = len(counts) - 1
    if not free:
        return False
    mean = counts.double().mean()
    spread = float(((counts - mean) ** 2).sum() / mean) / free
    width = 2 / (9 * free)
    deviation: float = (spread ** (1 / 3) - (1 - width)) / math.sqrt(width)
    return deviation < TOO_EVEN
