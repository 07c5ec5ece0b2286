"""Masks in Lightning checkpoints: readable without the callback that wrote them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_plasticity.sparsity.masks import unpack_mask


def masks_in_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the masks that sparse training callbacks keep in a checkpoint.

    Args:
        path: A checkpoint of Lightning.

    Returns:
        Parameter name to bool mask, of the parameter's shape or one entry per filter; from all callbacks.

    Raises:
        ValueError: If the checkpoint holds no masks.
    """
    file = Path(path) / "meta.pt" if Path(path).is_dir() else path  # FSDP2 writes folders
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    states = checkpoint.get("callbacks", {}).values()
    masks = {
        name: mask
        for state in states
        if isinstance(state, dict)
        for name, mask in stored_masks(state).items()
    }
    if not masks:
        raise ValueError(f"{path} holds no masks: it was not written with a sparse training callback")
    return masks


def stored_masks(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Unpack the masks in the state of one callback; empty if it is not a sparse training callback's."""
    return {
        name: unpack_mask(packed, engine["shapes"][name])
        for engine in state.get("engines", [])
        for name, packed in engine["masks"].items()
    }
