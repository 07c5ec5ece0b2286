"""The images of a session, in whole batches: from tensors or from any data set of torchvision's kind."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from lightning_plasticity.data.preparation import (
    DRAWS,
    Preparation,
    augmented,
    colours,
    normalise,
    resize_and_crop,
)
from lightning_plasticity.data.splits import generator_for

_AUGMENTATION = 2  # the random stream of an epoch, as of all image data


class Source(Protocol):
    """Labelled images, not prepared yet."""

    labels: Tensor

    def images(self, index: Tensor) -> list[Tensor]:
        """Give the images at these positions, in order, as float batches ``[b, C, H, W]`` in 0..1."""
        ...


class MemoryImages:
    """Images that lie in memory.

    Args:
        pixels: ``[N, C, H, W]`` or ``[N, H, W]``; uint8 in 0..``peak``, or float in 0..1.
        labels: integers ``[N]``.
        peak: full brightness of integer pixels.

    Raises:
        ValueError: for shapes or types that don't fit.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, peak: float = 255.0) -> None:
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels
        if pixels.ndim != 4 or labels.shape != pixels.shape[:1] or pixels.shape[1] not in (1, 3, 4):
            raise ValueError(
                f"images of shape {tuple(pixels.shape)}, labels of shape {tuple(labels.shape)}: they must be "
                f"[N, C, H, W] with 1, 3 or 4 channels, and [N]"
            )
        if pixels.is_floating_point() and not 0 <= float(pixels.min()) <= float(pixels.max()) <= 1:
            raise ValueError("images of a float type must lie in 0..1; the normalisation is done here")
        self.pixels, self.labels = pixels, _whole(labels)
        self.peak = 1.0 if pixels.is_floating_point() else peak

    def images(self, index: Tensor) -> list[Tensor]:
        """Give images, as one batch."""
        return [self.pixels[index].float() / self.peak]


class ItemImages:
    """Images of a data set whose items are ``(image, label)``: PIL images, arrays or tensors of any size.

    Args:
        items: the data set; without transforms, or with those that give a tensor in 0..1.

    Raises:
        ValueError: if its labels aren't integers.
    """

    def __init__(self, items: Any) -> None:
        self.items = items
        found = getattr(items, "targets", None)
        found = getattr(items, "labels", None) if found is None else found
        found = _labels_of_timm(items) if found is None else found
        # a data set without a list of labels must be read once
        labels = found if found is not None else [items[position][1] for position in range(len(items))]
        self.labels = _whole(torch.as_tensor(labels))

    def images(self, index: Tensor) -> list[Tensor]:
        """Give images, each a batch of its own, for their sizes differ."""
        return [_as_tensor(self.items[position][0])[None] for position in index.tolist()]


def _labels_of_timm(items: Any) -> list[int] | None:
    """Labels of timm's data set of files, whose reader knows them without opening one."""
    samples = getattr(getattr(items, "reader", None), "samples", None)
    if samples is None or getattr(items, "target_transform", None) is not None:
        return None
    return [label for _, label in samples]


def _whole(labels: Tensor) -> Tensor:
    if labels.ndim != 1 or labels.is_floating_point() or (len(labels) and int(labels.min()) < 0):
        raise ValueError(
            f"labels must be integers of 0 or more, [N]; they are {labels.dtype} {tuple(labels.shape)}"
        )
    return labels.long()


def _as_tensor(image: Any) -> Tensor:
    """An image as float ``[C, H, W]`` in 0..1."""
    if not isinstance(image, Tensor):
        mode = getattr(image, "mode", None)
        array = np.asarray(image.convert("RGB") if mode not in (None, "L", "RGB") else image)
        image = torch.from_numpy(array.copy())
        image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
    result: Tensor = image if image.is_floating_point() else image.float() / 255
    return result


def open_source(part: Any) -> Source:
    """Make a source of ``(images, labels)`` tensors or of a data set of torchvision's kind.

    Raises:
        ValueError: if it is neither.
    """
    part = getattr(part, "tensors", part)  # of a TensorDataset
    if isinstance(part, tuple | list) and len(part) == 2 and all(isinstance(half, Tensor) for half in part):
        return MemoryImages(*part)
    if hasattr(part, "__len__") and hasattr(part, "__getitem__") and not isinstance(part, tuple | list | str):
        return ItemImages(part)
    raise ValueError(
        f"images can't be had of a {type(part).__name__}: give (images, labels) tensors or a data set"
    )


class Selection(NamedTuple):
    """Some images of a source.

    Attributes:
        source: where they are.
        positions: in the source, int64 [n].
        labels: as the learner sees them, int64 [n].
        first: number of the source's first image among all sources' images.
    """

    source: Source
    positions: Tensor
    labels: Tensor
    first: int = 0


class SessionImages(Dataset[tuple[Tensor, ...]]):
    """Prepared images of one or more selections, handed out in whole batches.

    Args:
        selections: the images.
        size: side in pixels.
        preparation: how they are prepared.
        augment: whether to augment them.
        seed: of the augmentation.
        with_index: hand out each image's number too.
    """

    def __init__(
        self,
        selections: Sequence[Selection],
        size: int,
        preparation: Preparation,
        *,
        augment: bool = False,
        seed: int = 0,
        with_index: bool = False,
    ) -> None:
        self.selections, self.size, self.preparation = list(selections), size, preparation
        self.augment, self.seed, self.with_index, self.epoch = augment, seed, with_index, 0
        self.labels = torch.cat([selection.labels for selection in self.selections])
        self._positions = torch.cat([selection.positions for selection in self.selections])
        self.index = torch.cat([selection.positions + selection.first for selection in self.selections])
        lengths = [len(selection.labels) for selection in self.selections]
        self._origin = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self._drawn: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Give the number of images."""
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        """Give one image ``[3, size, size]``, its label, and with ``with_index`` its number."""
        return tuple(value[0] for value in self.__getitems__([row]))

    def __getitems__(self, rows: Sequence[int]) -> tuple[Tensor, ...]:
        """Give a batch: float32 ``[B, 3, size, size]``, labels ``[B]``, maybe numbers ``[B]``."""
        at = torch.as_tensor(rows)
        images = torch.empty(len(at), 3, self.size, self.size)
        for number, selection in enumerate(self.selections):
            mine = (self._origin[at] == number).nonzero().flatten()
            if len(mine):
                images[mine] = self._prepare(selection.source, at[mine])
        batch = (normalise(images, self.preparation), self.labels[at])
        return (*batch, self.index[at]) if self.with_index else batch

    def _prepare(self, source: Source, rows: Tensor) -> Tensor:
        """Read, colour, cut and resize."""
        done, first = [], 0
        for part in source.images(self._positions[rows]):
            part, these = colours(part), rows[first : first + len(part)]
            first += len(part)
            if self.augment:
                done.append(augmented(part, self._draws()[these], self.size, self.preparation))
            else:
                done.append(resize_and_crop(part, self.size, self.preparation))
        return torch.cat(done)

    def _draws(self) -> Tensor:
        """The epoch's random numbers for all images at once, whatever order they are asked for in."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator = generator_for(self.seed, self.epoch, _AUGMENTATION)
            self._drawn = (self.epoch, torch.rand(len(self), DRAWS, generator=generator))
        return self._drawn[1]


class ShardSampler(DistributedSampler[int]):
    """This process's share, in order and **without** padding: no image is counted twice.

    The shares differ by one image at most; where there are fewer images than processes some are empty.
    Lightning leaves samplers of this kind as they are.

    Args:
        dataset: has a length.
        world_size: number of processes.
        rank: this process.

    Example:
        >>> [list(ShardSampler(torch.arange(5), 2, rank)) for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
    """

    def __init__(self, dataset: Any, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)
        self._share = range(rank, len(dataset), world_size)

    def __iter__(self) -> Iterator[int]:
        """Give the positions."""
        return iter(self._share)

    def __len__(self) -> int:
        """Give their number."""
        return len(self._share)
