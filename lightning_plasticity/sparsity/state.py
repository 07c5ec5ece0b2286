"""Masks as they are stored: whole, at one bit a unit, in tensors and plain Python types."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_plasticity.sparsity.masks import pack_mask, shard_like, unpack_mask, unshard_like

History = list[tuple[int, list[int]]]
"""(optimizer step, active units of each layer) after each update."""


def pack_masks(masks: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put masks together from their shards and pack them; the same on every process.

    Args:
        masks: Bool masks in the parameters' order, or none at all.
        parameters: Name to the parameter that a mask is cut like.

    Returns:
        Name to uint8 CPU tensor (:func:`pack_mask`).
    """
    return {
        name: pack_mask(unshard_like(mask, parameter)).cpu()
        for (name, parameter), mask in zip(parameters.items(), masks, strict=False)
    }


def unpack_masks(
    packed: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], parameters: Mapping[str, Tensor]
) -> list[Tensor]:
    """Undo :func:`pack_masks`, for parameters on any device and in any number of shards."""
    return [
        shard_like(unpack_mask(packed[name].cpu(), shapes[name]), parameter)
        for name, parameter in parameters.items()
    ]


def check_same_shapes(here: Mapping[str, Sequence[int]], stored: Mapping[str, Sequence[int]]) -> None:
    """Refuse stored masks of other parameters or another granularity.

    Raises:
        ValueError: Names the masks that differ.
    """
    ours, theirs = ({name: list(shape) for name, shape in shapes.items()} for shapes in (here, stored))
    if ours != theirs:
        different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise ValueError(
            f"the stored masks do not fit the masked parameters; they differ in {different}. "
            "Resume with the model, include, exclude and granularity of the stored run."
        )


def reordered(history: Sequence[Sequence[int]], stored: Sequence[str], names: Sequence[str]) -> History:
    """Read a stored history, whose counts stand in the order of the ``stored`` names, in another order.

    Example:
        >>> reordered([[0, 10, 20], [5, 8, 12]], ["a", "b"], ["b", "a"])
        [(0, [20, 10]), (5, [12, 8])]
    """
    order = [list(stored).index(name) for name in names]
    return [(step, [counts[index] for index in order]) for step, *counts in history]
