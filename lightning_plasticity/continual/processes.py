"""What one process of several must know to give what one process alone gives."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Sum = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Processes:
    """The processes that share a session's images.

    Attributes:
        count: how many.
        rank: this one.
        sum: sums a tensor over all of them.
    """

    count: int = 1
    rank: int = 0
    sum: Sum = torch.clone

    def numbered(self, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, labels, and the position `[B]` that each image has among those of all processes.

        Args:
            batches: this process's share in order, every `count`-th image from number `rank` on; of longer
                batches the first two entries are taken.
        """
        start = 0
        for images, labels, *_ in batches:
            place = start + torch.arange(len(labels), device=labels.device)
            start += len(labels)
            yield images, labels, place * self.count + self.rank


def uniforms(position: Tensor, columns: int, *salt: int) -> Tensor:
    """Uniform numbers in [0, 1) that follow from an image's position alone, `[B, columns]`, float64.

    A generator would tie them to the batch and the process that an image falls into. Mixed by multiplication
    and shifts, twice, in 32 bits.

    >>> uniforms(torch.tensor([5, 6]), 1, 3).shape, bool((uniforms(torch.tensor([6]), 2)[0, 0] < 1).all())
    (torch.Size([2, 1]), True)
    """
    word = 0xFFFFFFFF
    mixed = (
        position.long().unsqueeze(1) * 0x9E3779B1 + torch.arange(columns, device=position.device) * 0x85EBCA77
    )
    for number in (0, *salt):
        mixed = (mixed + number * 0xC2B2AE3D + 1) & word
        for factor in (0x45D9F3B, 0x45D9F3B):
            mixed = ((mixed ^ (mixed >> 16)) * factor) & word
        mixed = mixed ^ (mixed >> 16)
    return mixed.double() / (word + 1)
