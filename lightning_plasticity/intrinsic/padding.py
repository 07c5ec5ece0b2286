"""Stimuli that a distributed sampler repeats to give every process as many: they must not count twice."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler


def padding_weight(loader: Any, batch_size: int, batch_idx: int, device: torch.device) -> Tensor:
    """Weights `[B]` of a batch: 1, and 0 for a repeated stimulus at the end of a process's share.

    `DistributedSampler` fills up the last round over processes from the beginning, so that the last stimulus
    of the last few processes is a repetition.

    Args:
        loader: the DataLoader that the batch comes from.
        batch_size: stimuli in the batch.
        batch_idx: number of the batch in the epoch.
        device: of the result.
    """
    weight = torch.ones(batch_size, dtype=torch.float64, device=device)
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler) and not sampler.drop_last and batch_idx + 1 == len(loader):
        repeated = sampler.total_size - len(sampler.dataset)  # type: ignore[arg-type]
        if sampler.rank >= sampler.num_replicas - repeated:
            weight[-1] = 0
    return weight
