"""Batches of images from memory or from folders, shuffled and augmented by seed and epoch alone.

Whatever is random in an epoch follows from (seed, epoch, image), not from a global generator, the batch
order, the worker or the process. So a run that is resumed sees what it would have seen.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from lightning_plasticity.data.sources import Images, ImageSet, optional_module
from lightning_plasticity.data.splits import generator_for

_ORDER, _AUGMENTATION = 1, 2  # the random streams of an epoch


class _HasEpoch(Protocol):
    epoch: int

    def __len__(self) -> int: ...


class EpochSampler(DistributedSampler[int]):
    """Shuffles by (seed, epoch), deals out to processes, and tells the data set which epoch it is.

    Lightning calls ``set_epoch`` before each epoch, and leaves samplers of this kind as they are when it
    distributes the others.

    Args:
        dataset: has a length and an attribute ``epoch``.
        seed: of the order.
        world_size: number of processes.
        rank: this process.
    """

    def __init__(self, dataset: _HasEpoch, seed: int = 0, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank)  # type: ignore[arg-type]
        self.images, self.order_seed = dataset, seed

    def __iter__(self) -> Iterator[int]:
        """Give this process's share; where they don't divide evenly a few positions come twice."""
        generator = generator_for(self.order_seed, self.epoch, _ORDER)
        order = torch.randperm(len(self.images), generator=generator)
        padded = order.repeat(-(-self.total_size // max(len(order), 1)))[: self.total_size]
        return iter(padded[self.rank :: self.num_replicas].tolist())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, for the order and for the data set's augmentation."""
        super().set_epoch(epoch)
        self.images.epoch = epoch


def crop_and_flip(pixels: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Cut each image out of its zero-padded self, then mirror some.

    Args:
        pixels: [B, C, H, W], any type.
        offsets: int64 [B, 2], top and left edge of the cut in 0..2 ``padding``; ``padding`` cuts nothing off.
        flips: bool [B], which images to mirror left to right after the cut.
        padding: pixels added on each side.

    Returns:
        [B, C, H, W].
    """
    height, width = pixels.shape[-2:]
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [B, C, 2p + 1, 2p + 1, H, W]
    cut = windows[torch.arange(len(pixels)), :, offsets[:, 0], offsets[:, 1]]
    return torch.where(flips[:, None, None, None], cut.flip(3), cut)


class ImageTensors(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory, handed out in whole batches: one index, one cut, one normalisation per batch.

    Args:
        images: pixels and labels.
        about: gives the normalisation and the standard augmentation.
        augment: whether to cut and mirror at random.
        image_size: side in pixels to which images are resized at last, or None.
        seed: of the augmentation.
    """

    def __init__(
        self,
        images: Images,
        about: ImageSet,
        *,
        augment: bool = False,
        image_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.about, self.augment, self.seed = images, about, augment, seed
        self.size = None if image_size in (None, *about.shape[1:]) else image_size
        self.mean = torch.tensor(about.mean).view(-1, 1, 1) * about.peak
        self.std = torch.tensor(about.std).view(-1, 1, 1) * about.peak
        self.epoch = 0
        self._drawn: tuple[int, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        """Give the number of images."""
        return len(self.images.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Give one image [C, H, W] and its label."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Give a batch: float32 images [B, C, H, W], normalised, and int64 labels [B]."""
        index = torch.as_tensor(indices)
        pixels, labels = self.images.take(index)
        if self.augment:
            offsets, flips = self._draws()
            pixels = crop_and_flip(pixels, offsets[index], flips[index], self.about.padding)
        images = pixels.float().sub_(self.mean).div_(self.std)
        if self.size is not None:
            images = torch.nn.functional.interpolate(
                images, size=(self.size, self.size), mode="bilinear", antialias=True
            )
        return images, labels

    def _draws(self) -> tuple[Tensor, Tensor]:
        """Draw the epoch's cuts and flips for all images at once, whatever the order they are asked for."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator = generator_for(self.seed, self.epoch, _AUGMENTATION)
            offsets = torch.randint(2 * self.about.padding + 1, (len(self), 2), generator=generator)
            flips = torch.rand(len(self), generator=generator) < (0.5 if self.about.flip else 0.0)
            self._drawn = (self.epoch, offsets, flips)
        return self._drawn[1:]


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Images in class folders, read when asked for: ImageNet's usual crops, made repeatable.

    Training images are cut at random and mirrored (``augment``); others have their shorter side resized to
    256 / 224 of ``image_size`` and the centre cut out. Normalised with ImageNet's statistics.

    Args:
        folder: holds one folder of images per class.
        augment: whether to cut and mirror at random.
        image_size: side of the images handed out, in pixels.
        seed: of the augmentation.

    Raises:
        FileNotFoundError: if there is no class folder with images, as torchvision says it.
    """

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, folder: Path, *, augment: bool = False, image_size: int = 224, seed: int = 0) -> None:
        files = optional_module("torchvision.datasets", "dataset='folder'").ImageFolder(str(folder))
        self.classes: list[str] = files.classes
        self.labels = torch.tensor(files.targets, dtype=torch.int64)
        self.seed, self.epoch, self.augment = seed, 0, augment
        self._files, self._index = files, torch.arange(len(files))
        self._transform = self._build_transform(image_size)

    def _build_transform(self, size: int) -> Any:
        v2 = optional_module("torchvision.transforms.v2", "dataset='folder'")
        if self.augment:
            cut = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        else:
            cut = [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)]
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.MEAN, self.STD)]
        return v2.Compose([*cut, *to_tensor])

    def keep(self, index: Tensor) -> "ImageFiles":
        """Keep only the images at these positions."""
        self._index, self.labels = self._index[index], self.labels[index]
        return self

    def __len__(self) -> int:
        """Give the number of images."""
        return len(self._index)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Give one image, float32 [3, size, size], and its label."""
        image, label = self._files[int(self._index[index])]
        if not self.augment:
            return self._transform(image), torch.tensor(label)
        # torchvision draws from the global generator: give it a state of this image's own, and put it back
        draw = int(torch.randint(2**62, (), generator=generator_for(self.seed, self.epoch, _AUGMENTATION)))
        with torch.random.fork_rng(devices=()):
            torch.manual_seed((draw + index) % 2**63)
            return self._transform(image), torch.tensor(label)
