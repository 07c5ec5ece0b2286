"""Boolean masks: drawing them, applying them in place, storing them at one bit a weight.

The mask is the only truth about which connections exist; nothing in this package reads ``weight != 0``. A
mask has the shape of its parameter, or a shape that broadcasts to it (one entry per filter).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def random_mask(shape: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """Draw a mask with exactly ``count`` active entries, uniformly at random.

    Args:
        shape: Shape of the mask.
        count: Number of active entries, between 0 and the number of entries.
        generator: CPU generator, so that the draw is the same on every device and rank.

    Returns:
        Bool CPU tensor of ``shape``.

    Raises:
        ValueError: If ``count`` does not fit the shape.

    Example:
        >>> int(random_mask((4, 5), 7, torch.Generator().manual_seed(0)).sum())
        7
    """
    numel = math.prod(shape)
    if not 0 <= count <= numel:
        raise ValueError(
            f"count={count} must lie between 0 and {numel}, the number of entries of shape {tuple(shape)}"
        )
    mask = torch.zeros(numel, dtype=torch.bool)
    mask[torch.randperm(numel, generator=generator)[:count]] = True
    return mask.reshape(tuple(shape))


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def apply_masks_(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Zero every entry outside its mask, in place.

    The product is taken on the bits read as integers: a NaN or infinity outside the mask becomes 0 instead of
    the NaN that ``nan * 0`` gives, and it is faster than ``where`` and than a floating product.

    Args:
        tensors: Tensors to change, of a real floating dtype.
        masks: Bool masks of the same or a broadcastable shape, on the same devices.
    """
    if tensors:
        torch._foreach_mul_([tensor.view(_BITS[tensor.element_size()]) for tensor in tensors], list(masks))


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool mask at 8 entries a byte, lowest bit first, row-major, the last byte padded with zeros.

    Example:
        >>> pack_mask(torch.tensor([True, False, True])).tolist()
        [5]
    """
    flat = torch.nn.functional.pad(mask.reshape(-1).to(torch.uint8), (0, -mask.numel() % 8)).reshape(-1, 8)
    packed = torch.zeros(len(flat), dtype=torch.uint8, device=mask.device)
    for bit in range(8):
        packed |= flat[:, bit] << bit
    return packed


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pack_mask`.

    Args:
        packed: uint8 tensor of ``ceil(numel / 8)`` bytes.
        shape: Shape of the mask that was packed.

    Returns:
        Bool tensor of ``shape`` on the device of ``packed``.

    Raises:
        ValueError: If the number of bytes does not fit the shape.

    Example:
        >>> unpack_mask(torch.tensor([5], dtype=torch.uint8), (3,)).tolist()
        [True, False, True]
    """
    numel = math.prod(shape)
    if packed.numel() != -(-numel // 8):
        raise ValueError(f"{packed.numel()} bytes do not hold a mask of shape {tuple(shape)} ({numel} bits)")
    bits = torch.empty(packed.numel(), 8, dtype=torch.bool, device=packed.device)
    for bit in range(8):
        bits[:, bit] = (packed >> bit) & 1
    return bits.reshape(-1)[:numel].reshape(tuple(shape))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: the shard of a DTensor, else the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(full: Tensor, parameter: Tensor) -> Tensor:
    """Cut a tensor that every process holds in full as the parameter is cut, on its device."""
    full = full.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return full
    return distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()


def unshard_like(shard: Tensor, parameter: Tensor) -> Tensor:
    """Undo :func:`shard_like`: every process gets the full tensor."""
    if not isinstance(parameter, DTensor):
        return shard
    shape = torch.Size((parameter.shape[0], *shard.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    whole = DTensor.from_local(shard, parameter.device_mesh, parameter.placements, shape=shape, stride=stride)
    return whole.full_tensor()
