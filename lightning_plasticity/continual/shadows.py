"""One training, several ways to predict: what does not reach the adapter needs no run of its own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_plasticity.continual.learners import AnyLearner, SlowFast
from lightning_plasticity.continual.module import SAFE
from lightning_plasticity.continual.report import Record
from lightning_plasticity.continual.settings import Prediction


class _OnFeatures(SlowFast):
    """Learners whose "images" are the features of the slow and the fast learner, `[B, 2, d]`."""

    def features(self, images: Tensor, learner: AnyLearner) -> Tensor:
        """Those of a learner."""
        return images[:, 0 if learner == "slow" else 1]


class ShadowedSAFE(SAFE):
    """SAFE that also keeps heads and statistics for other predictions, all on the same two adapters.

    Args:
        shadows: the other predictions, by name. Their `statistics` are those of `prediction`, or stale or
            pooled ones: a map of their own would need views of their own.
        **settings: as SAFE.

    Attributes:
        records: what `record` is, for each shadow.

    Raises:
        ValueError: for a shadow with a map of its own.
    """

    def __init__(self, shadows: Mapping[str, Prediction], **settings: Any) -> None:
        super().__init__(**settings)
        self._others, self.records = dict(shadows), dict[str, Record]()
        self._shadows: dict[str, SlowFast] = {}
        for name, prediction in self._others.items():
            if prediction.statistics == "mapped" and not self._alike(prediction):
                raise ValueError(f"shadows: {name!r} maps statistics otherwise than the model itself")

    def _alike(self, prediction: Prediction) -> bool:
        """Whether a prediction takes the same sums."""
        free = {"head": prediction.head, "gamma": prediction.gamma}
        return Prediction.of(self.prediction.plain() | free) == prediction

    def _make(self) -> None:
        """Begins the shadows with what is known after session 1, in which there is one learner only."""
        own = self.learners
        for name, prediction in self._others.items():
            sizes = (own.means.shape[2], self.num_classes, own.losses, prediction, self.seed)
            shadow = _OnFeatures(own.adapters, *sizes).to(self.device)
            shadow.fast_head, shadow.slow_head = own.fast_head, own.slow_head
            if self._alike(prediction):
                shadow.slow_ridge, shadow.fast_ridge, shadow.means = own.slow_ridge, own.fast_ridge, own.means
            else:
                shadow.slow_ridge.take(own.slow_ridge)
                shadow.fast_ridge.take(own.fast_ridge)
                shadow.means.copy_(own.means)
            self._shadows[name], self.records[name] = shadow, Record.of(self._record().state())

    def end_session(self, session: int) -> dict[str, float]:
        """Ends a session for all."""
        if session == 1 and not self._shadows:
            self._make()  # a run that goes on from the end of session 1
        numbers = super().end_session(session)
        if not self._shadows:
            self._make()
        with self.precision():
            self._consolidate_shadows(session)
            self._evaluate_shadows(session)
        return numbers

    def _both_features(self, part: int, split: str) -> list[tuple[Tensor, Tensor]]:
        """Features `[B, 2, d]` and labels of a session's images."""
        learners = self.learners
        return [
            (torch.stack([learners.features(images, learner) for learner in ("slow", "fast")], 1), labels)
            for images, labels, *_ in self.images(part, split)
        ]

    def _consolidate_shadows(self, session: int) -> None:
        own = self.learners
        others = [shadow for shadow in self._shadows.values() if shadow.slow_ridge is not own.slow_ridge]
        batches = self._both_features(session, "train") if others and session else []
        for shadow in others if session else ():
            shadow.old, shadow.seen = own.old, own.seen
            shadow.consolidate(lambda: batches, self.processes(), self._both(session), session)

    def _evaluate_shadows(self, session: int) -> None:
        for part in range(session + 1):
            for features, labels in self._both_features(part, self.evaluate):
                for name, shadow in self._shadows.items():
                    answers = shadow.answers(features, self.learned_classes, self._both(session))
                    self.records[name].add(answers, labels, part, session)
        for record in self.records.values():
            record.gather(self.processes().sum, session, self.device)
