"""Stimuli as they come in: conversion, checks and errors."""

from typing import Any

import torch
from torch import Tensor

HUGE = 1e30
"""Largest energy of a stimulus: beyond it, logits leave the range of float32."""


def as_stimuli(stimuli: Any, num_features: int) -> Tensor:
    """`y [n, D]` as a tensor, without a copy where that is possible; raises ValueError on another shape."""
    y = stimuli if isinstance(stimuli, Tensor) else torch.as_tensor(stimuli)
    if y.ndim != 2 or y.shape[1] != num_features or len(y) == 0:
        raise ValueError(
            f"stimuli of shape {tuple(y.shape)} must be [n, {num_features}] with n >= 1: "
            "flatten images, and give one stimulus as stimuli[None]"
        )
    if y.is_complex() or y.is_quantized:
        raise ValueError(f"stimuli of dtype {y.dtype} must be real numbers")
    return y.detach()


def as_labels(labels: Any, size: int, num_classes: int, device: torch.device) -> Tensor | None:
    """`[n]` int64 classes with -1 for unknown; raises ValueError on another length or range."""
    if labels is None:
        return None
    known = torch.as_tensor(labels, device=device)
    if known.shape != (size,) or known.is_floating_point():
        raise ValueError(f"labels of shape {tuple(known.shape)}, {known.dtype} must be {size} integers")
    if bool(((known < -1) | (known >= num_classes)).any()):
        raise ValueError(f"labels must lie in -1 .. {num_classes - 1}, -1 meaning unknown")
    return known.long()


def as_sample_weight(sample_weight: Any, size: int, device: torch.device) -> Tensor | None:
    """`[n]` float64 weights; raises ValueError unless they are finite, non-negative and not all zero."""
    if sample_weight is None:
        return None
    weight = torch.as_tensor(sample_weight, device=device).double()
    if weight.shape != (size,):
        raise ValueError(f"sample_weight of shape {tuple(weight.shape)} must be [{size}]")
    if not bool(weight.isfinite().all()) or bool((weight < 0).any()) or not bool(weight.sum() > 0):
        raise ValueError("sample_weight must be finite and non-negative, with at least one positive weight")
    return weight


def computable(stimuli: Tensor) -> Tensor:
    """Stimuli in the dtype of computation: float64 from float64, int32 and int64, else float32."""
    wide = stimuli.dtype in (torch.float64, torch.int32, torch.int64)
    return stimuli.to(torch.float64 if wide else torch.float32)


def check_stimuli(stimuli: Tensor) -> None:
    """Raises ValueError if an entry is NaN, infinite or negative, or an energy exceeds `HUGE`."""
    low, high = (float(edge) for edge in stimuli.aminmax())
    if not low >= 0:
        raise ValueError(
            f"stimuli hold {low}: they must be non-negative numbers (shift or rectify, and drop NaN)"
        )
    if not high * stimuli.shape[1] <= HUGE:
        raise ValueError(
            f"stimuli as large as {high} overflow: rescale them, energies must stay below {HUGE:g}"
        )
