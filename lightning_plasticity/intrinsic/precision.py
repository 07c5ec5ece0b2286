"""Keeps matrix products exact whatever precision the surrounding program runs in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Switches autocast, TF32 and bfloat16 products off inside the block, and restores them after it.

    The logits of a Poisson mixture are of size `S |log W|`, 1e3 to 1e5 nats: a relative error of 4e-3
    (bfloat16) or 5e-4 (TF32) makes them wrong by many nats, so that an E step must never inherit a Trainer's
    mixed precision.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
