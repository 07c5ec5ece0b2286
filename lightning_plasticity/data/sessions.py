"""ClassIncrementalData: a data set whose classes, or domains, come one session after another."""

import functools
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_plasticity.data.loading import EpochSampler
from lightning_plasticity.data.preparation import Preparation
from lightning_plasticity.data.resumable import ResumableLoader
from lightning_plasticity.data.session_images import Selection, SessionImages, ShardSampler
from lightning_plasticity.data.session_plan import (
    ClassOrder,
    SessionPlan,
    Sessions,
    plan_epochs,
    plan_sessions,
)
from lightning_plasticity.data.session_sources import Domain, Split, open_domains, select_images
from lightning_plasticity.data.sources import IMAGE_SETS, open_torchvision

Loader = DataLoader[tuple[Tensor, ...]]


class ClassIncrementalData(LightningDataModule):
    """Batches of one session after another: float32 ``[B, 3, image_size, image_size]`` and int64 ``[B]``.

    All sessions are ranges of epochs of one ``trainer.fit``, with ``reload_dataloaders_every_n_epochs=1``:
    ``train_dataloader`` gives the data of the session that owns the current epoch. Labels are numbered in
    order of appearance, so that the classes seen so far are always ``0..C-1``; ``class_order[label]`` is
    the data set's own.

    Validation images are split off the training images, class by class; the test images never select
    anything. There is no ``val_dataloader``: a session is evaluated when it is over, by ``session_loader``
    or ``seen_loader``. These deal out *unpadded* shares to processes, so that no image is counted twice;
    training batches are padded to equal numbers, as DDP needs them. Order and augmentation of an epoch
    follow from ``seed`` and the epoch alone: a run resumed at an epoch's end or inside it equals one that was
    never interrupted.

    Args:
        dataset: ``"mnist5k"``, ``"digits"``, ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"``,
            ``"cifar100"`` (see ``ImageData``); ``"folder"``: ``train/`` and ``test/`` (or ``val/``) of
            ``data_dir`` with a folder per class; ``"domains"``: a folder per domain, each as ``"folder"``.
            In code also a tuple ``(train, test)``, each ``(images, labels)`` tensors or a data set of
            torchvision's kind; or a list of such tuples, one per domain.
        sessions: number of sessions, or how many classes each has, or the data set's labels of each. With
            domains, each is a session, and holds all classes: leave this at None. None otherwise: 5.
        epochs_per_session: of all sessions, or of each.
        batch_size: images per batch and process.
        image_size: side in pixels of the images handed out.
        seed: of the class order, the validation split, the order and the augmentation.
        class_order: ``"shuffled"``, ``"sorted"``, or the data set's labels in order of appearance.
        preparation: normalisation (the backbone's), resizing and augmentation.
        validation: share of the training images held out for validation, in [0, 1).
        data_dir: where torchvision's sets or the folders are.
        download: let torchvision fetch missing files.
        num_workers: processes that load.
        with_index: every batch also holds each image's number, int64 ``[B]``, the same whatever the order:
            features can be kept by it.

    Raises:
        MisconfigurationException: for arguments out of range, sessions that don't fit the classes, a session
            without images, or missing files.
        ModuleNotFoundError: if the package that holds the images is missing.

    Example:
        >>> data = ClassIncrementalData("digits", sessions=[4, 3, 3], image_size=16, batch_size=32)
        >>> data.setup()
        >>> images, labels = next(iter(data.session_loader(1, "test")))
        >>> images.shape, sorted(labels.unique().tolist()), data.session_classes[1]
        (torch.Size([32, 3, 16, 16]), [4, 5, 6], [4, 5, 6])
    """

    def __init__(
        self,
        dataset: str | tuple[Any, Any] | list[tuple[Any, Any]] = "mnist5k",
        sessions: Sessions | None = None,
        epochs_per_session: int | list[int] = 1,
        batch_size: int = 48,
        image_size: int = 32,
        seed: int = 0,
        class_order: ClassOrder = "shuffled",
        preparation: Preparation = Preparation(),  # noqa: B008 - frozen
        validation: float = 0.1,
        data_dir: str | Path = "data",
        download: bool = False,
        num_workers: int = 0,
        with_index: bool = False,
    ) -> None:
        super().__init__()
        self.dataset, self.sessions, self._epochs = dataset, sessions, epochs_per_session
        self.batch_size, self.image_size, self.seed = batch_size, image_size, seed
        self._order, self.preparation, self.validation = class_order, preparation, validation
        self.data_dir, self.download = Path(data_dir), download
        self.num_workers, self.with_index = num_workers, with_index
        self._check()
        self._selections: dict[str, list[Selection]] = {}
        if dataset not in ("folder", "domains"):
            _ = self.plan  # errors now; folders may come with prepare_data

    def _check(self) -> None:
        """Refuse arguments out of range."""
        names = (*IMAGE_SETS, "folder", "domains")
        if isinstance(self.dataset, str) and self.dataset not in names:
            raise MisconfigurationException(
                f"dataset={self.dataset!r} must be one of {', '.join(names)}, or images."
            )
        if self.download and not (isinstance(self.dataset, str) and self.dataset in IMAGE_SETS):
            raise MisconfigurationException(f"download=True: dataset={self.dataset!r} can't be fetched.")
        if self.by_domain and self.sessions is not None:
            raise MisconfigurationException(
                f"sessions={self.sessions!r}: with domains each is a session; leave it."
            )
        if not 0.0 <= self.validation < 1.0:
            raise MisconfigurationException(f"validation={self.validation!r} must be 0 or more and below 1.")
        for name, low in {"batch_size": 1, "image_size": 1, "num_workers": 0, "seed": 0}.items():
            if getattr(self, name) < low:
                raise MisconfigurationException(f"{name}={getattr(self, name)!r} must be {low} or more.")

    @property
    def by_domain(self) -> bool:
        """Whether the sessions are domains, with the same classes each."""
        return isinstance(self.dataset, list) or self.dataset == "domains"

    @functools.cached_property
    def _sources(self) -> list[Domain]:
        """Training and test images of each domain; of one, unless the sessions are domains."""
        try:
            return open_domains(self.dataset, self.data_dir)
        except ValueError as error:
            what = repr(self.dataset) if isinstance(self.dataset, str) else "images"
            raise MisconfigurationException(
                f"dataset={what}, data_dir={str(self.data_dir)!r}: {error}."
            ) from error

    @functools.cached_property
    def plan(self) -> SessionPlan:
        """Classes and epochs of all sessions."""
        if isinstance(self.dataset, str) and self.dataset in IMAGE_SETS:
            count = IMAGE_SETS[self.dataset].num_classes
        else:
            count = 1 + max(int(domain["train"].labels.max()) for domain in self._sources)
        try:
            if not self.by_domain:
                sessions = 5 if self.sessions is None else self.sessions
                return plan_sessions(count, sessions, self._epochs, self._order, self.seed)
            order = plan_sessions(count, 1, 1, self._order, self.seed).class_order
            everything, number = list(range(count)), len(self._sources)
            return SessionPlan(order, [everything] * number, plan_epochs(self._epochs, number))
        except ValueError as error:
            raise MisconfigurationException(f"{error}.") from error

    @property
    def class_order(self) -> list[int]:
        """The data set's label of each class, in order of appearance."""
        return self.plan.class_order

    @property
    def session_classes(self) -> list[list[int]]:
        """Classes of each session, numbered in order of appearance."""
        return self.plan.session_classes

    @property
    def epochs_per_session(self) -> list[int]:
        """Epochs of each session; ``max_epochs`` is their sum."""
        return self.plan.epochs_per_session

    @property
    def num_sessions(self) -> int:
        """Number of sessions."""
        return len(self.session_classes)

    @property
    def num_classes(self) -> int:
        """Number of classes of all sessions together."""
        return len(self.class_order)

    def session_of_epoch(self, epoch: int) -> int:
        """The session that owns an epoch.

        Raises:
            ValueError: before the first epoch, or past the last session's.
        """
        return self.plan.session_of_epoch(epoch)

    def classes_seen(self, session: int) -> int:
        """Number of classes ``C`` of the sessions up to this one."""
        return 1 + max(max(classes) for classes in self.session_classes[: session + 1])

    def prepare_data(self) -> None:
        """Fetch a torchvision set if asked to (Lightning calls this in one process only)."""
        if self.download and isinstance(self.dataset, str):
            for train in (True, False):
                open_torchvision(self.dataset, self.data_dir, train=train, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Load, split and number the images, once.

        Raises:
            MisconfigurationException: if a session has no training or test images, or if the Trainer wouldn't
                come to the later sessions.
        """
        if stage == "fit":  # a train_dataloader that raises would leave Lightning's changes in DataLoader
            self._check_trainer()
        if self._selections:
            return
        splits: tuple[Split, ...] = ("train", "val", "test")
        number = torch.full((max(self.class_order) + 1,), -1)  # of each label of the data set
        number[torch.tensor(self.class_order)] = torch.arange(self.num_classes)
        selections: dict[str, list[Selection]] = {split: [] for split in splits}
        for session, classes in enumerate(self.session_classes):
            for split in splits:
                domain = session if self.by_domain else 0
                held_out = self.validation, self.seed
                selection = select_images(self._sources, domain, classes, split, number, *held_out)
                if not len(selection.labels) and split != "val":
                    own = [self.class_order[label] for label in classes]
                    raise MisconfigurationException(
                        f"session {session} has no {split} images: there are none of the classes {own}."
                    )
                selections[split].append(selection)
        self._selections = selections

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: which classes came when."""
        return {"class_order": self.class_order, "session_classes": self.session_classes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a run goes on with the sessions that it began with.

        Raises:
            MisconfigurationException: for another order or other sessions.
        """
        for name, own in self.state_dict().items():
            if state_dict[name] != own:
                raise MisconfigurationException(
                    f"{name}={own}: the checkpoint's run had {state_dict[name]}; give the same seed, "
                    "class_order and sessions"
                )

    def _check_trainer(self) -> None:
        trainer: Any = self.trainer
        total = sum(self.epochs_per_session)
        if trainer is None or trainer.fast_dev_run:
            return
        if self.num_sessions > 1 and trainer.reload_dataloaders_every_n_epochs != 1:
            raise MisconfigurationException(
                "sessions are ranges of epochs: give the Trainer reload_dataloaders_every_n_epochs=1."
            )
        if trainer.max_epochs is None or not 0 <= trainer.max_epochs <= total:
            raise MisconfigurationException(
                f"max_epochs={trainer.max_epochs}: the sessions take {self.epochs_per_session} epochs; "
                f"give the Trainer max_epochs={total}."
            )

    def train_dataloader(self) -> Loader:
        """Give shuffled batches of the current session, this process's share of them."""
        epoch = self._epoch()
        images = self._images([self.session_of_epoch(epoch)], "train", augment=True)
        sampler = EpochSampler(images, self.seed, *self._processes())
        # A resumed run starts its workers before Lightning tells the sampler the epoch
        sampler.set_epoch(epoch)
        return self._loader(images, sampler)

    def test_dataloader(self) -> list[Loader]:
        """Give the test batches of each session."""
        return [self.session_loader(session, "test") for session in range(self.num_sessions)]

    def session_loader(self, session: int, split: Split, train_transforms: bool = False) -> Loader:
        """Give a session's images in order, this process's unpadded share of them.

        Args:
            session: 0-based.
            split: ``"train"``, ``"val"`` or ``"test"``.
            train_transforms: augment them, as in the current epoch.
        """
        return self._in_order([session], split, train_transforms)

    def seen_loader(self, session: int, split: Split) -> Loader:
        """Give the images of all sessions up to this one in order, this process's unpadded share of them."""
        return self._in_order(list(range(session + 1)), split, False)

    def _in_order(self, sessions: list[int], split: Split, augment: bool) -> Loader:
        images = self._images(sessions, split, augment)
        images.epoch = self._epoch()
        return self._loader(images, ShardSampler(images, *self._processes()))

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer is not None else 0

    def _processes(self) -> tuple[int, int]:
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _images(self, sessions: list[int], split: Split, augment: bool) -> SessionImages:
        if not self._selections:
            raise MisconfigurationException("The images aren't loaded yet: call prepare_data() and setup().")
        if split not in self._selections:
            raise ValueError(f"split={split!r} must be 'train', 'val' or 'test'")
        if not all(0 <= session < self.num_sessions for session in sessions):
            raise ValueError(f"session={sessions[-1]!r} must be 0..{self.num_sessions - 1}")
        return SessionImages(
            [self._selections[split][session] for session in sessions],
            self.image_size,
            self.preparation,
            augment=augment and self.preparation.augment != "none",
            seed=self.seed,
            with_index=self.with_index,
        )

    def _loader(self, images: SessionImages, sampler: EpochSampler | ShardSampler) -> Loader:
        if self.num_workers == 0:
            # a batch of images in memory is one index: more processes would only copy it about
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "sampler": sampler,
            "collate_fn": _as_it_is,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
        }
        if not isinstance(sampler, EpochSampler):
            return DataLoader(images, **options)
        return ResumableLoader(images, trainer=self.trainer, **options)


def _as_it_is(batch: Any) -> Any:
    return batch
