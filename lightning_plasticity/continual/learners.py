"""The two learners of SAFE: one backbone, two adapters, and heads of both kinds for each. No Trainer here."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_plasticity.continual.adapters import AdapterPair
from lightning_plasticity.continual.aggregation import aggregate
from lightning_plasticity.continual.drift import DriftMap, DriftSums, carry, fit_map
from lightning_plasticity.continual.heads import CosineHead, RidgeHead
from lightning_plasticity.continual.losses import alignment_loss, cross_classification_loss, transfer_terms
from lightning_plasticity.continual.processes import Processes, uniforms
from lightning_plasticity.continual.settings import Losses, Prediction
from lightning_plasticity.continual.statistics import full_precision
from lightning_plasticity.continual.surrogates import DRAWS, surrogate_views

Learner = Literal["slow", "fast"]
AnyLearner = Literal["slow", "fast", "pretrained"]
Batches = Callable[[], Iterable[Any]]

_HELD, _VIEWS = 1, 2  # the random streams of positions


class Answers(NamedTuple):
    """Logits `[B, C]` of both learners and of their mixture, and the fast learner's weight `[B]` in it."""

    slow: Tensor
    fast: Tensor
    aggregate: Tensor
    weight: Tensor


class SlowFast(nn.Module):
    """Everything that SAFE learns.

    Args:
        adapters: the backbone with its fast and its slow adapter.
        in_features: `d`.
        num_classes: rows of all heads.
        losses: weights of the loss terms.
        prediction: settings of the ridge heads and their mixture.
        seed: of the random features and the views.

    Attributes:
        fast_head: the trained cosine head `W_F`, `sigma_F`.
        slow_head: its frozen counterpart `W_S`, `sigma_S`.
        fast_ridge: the fast learner's predictor.
        slow_ridge: the slow learner's, with the same random features.
        means: sums of the features of each class under the slow and the fast learner when it was learned,
            `[2, C_all, d]`; their directions are those of the means.
        seen: classes of the sessions so far, the current one included.
        old: `K`, classes of the sessions before the current one.
    """

    means: Tensor

    def __init__(
        self,
        adapters: AdapterPair,
        in_features: int,
        num_classes: int,
        losses: Losses,
        prediction: Prediction,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.adapters, self.losses, self.prediction, self.seed = adapters, losses, prediction, seed
        self.fast_head = CosineHead(in_features, num_classes)
        self.slow_head = CosineHead(in_features, num_classes, trainable=False)
        sizes = (in_features, num_classes, prediction.random_features, seed, prediction.penalties)
        self.slow_ridge, self.fast_ridge = RidgeHead(*sizes), RidgeHead(*sizes)
        self.fast_ridge.projection = self.slow_ridge.projection  # one tensor for both
        self.register_buffer("means", torch.zeros(2, num_classes, in_features))
        self.old = self.seen = 0

    def features(self, images: Tensor, learner: AnyLearner) -> Tensor:
        """Features `[B, d]` as they count: in eval mode, without gradients, float32."""
        training = self.adapters.training
        self.adapters.eval()
        try:
            with torch.no_grad():
                return self.adapters.features(images, learner).float()
        finally:
            self.adapters.train(training)

    # --- prediction ---

    @torch.no_grad()
    def answers(self, images: Tensor, classes: int, both: bool = True) -> Answers:
        """What both learners and their mixture say, over the first so many classes.

        Args:
            images: a batch.
            classes: `C`.
            both: False while there is one learner only, the slow one.
        """
        slow = self._answer(images, "slow", classes)
        if not both:
            return Answers(slow, slow, slow, slow.new_full((len(slow),), 0.5))
        fast = self._answer(images, "fast", classes)
        mixed, weights = aggregate([slow, fast], self.prediction.gamma)
        return Answers(slow, fast, mixed, weights[1])

    def _answer(self, images: Tensor, learner: Learner, classes: int) -> Tensor:
        features = self.features(images, learner)
        slow = learner == "slow"
        scale = (self.slow_head if slow else self.fast_head).scale.detach()
        if self.prediction.head == "means":
            means = F.normalize(self.means[0 if slow else 1, :classes], dim=1)
            with full_precision(features):
                return scale * F.normalize(features, dim=1) @ means.T
        logits: Tensor = (self.slow_ridge if slow else self.fast_ridge)(features, classes)
        return scale * logits

    # --- one step ---

    @property
    def guide(self) -> Literal["pretrained", "slow"] | None:
        """Whose features guide this session; None if all terms that need them have weight 0."""
        weights = self.losses
        if not self.old:
            return "pretrained" if weights.diagonal or weights.redundancy else None
        return "slow" if weights.alignment or weights.slow_to_fast or weights.fast_to_slow else None

    def terms(
        self,
        fast: Tensor,
        guide: Tensor | None,
        labels: Tensor,
        share: float = 1.0,
        everyone: Callable[[Tensor], Tensor] = torch.Tensor.contiguous,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """All terms of the loss, weighted, and the fast head's logits `[B, C]`.

        Args:
            fast: `[B, d]`, features that learn.
            guide: `[B, d]`, features that guide.
            labels: `[B]`.
            share: weight of a pseudo-sample: 1 / processes.
            everyone: gathers the features of all processes, for the transfer loss is of a whole batch.
        """
        logits = self.fast_head(fast, self.seen)
        terms = {"classification": F.cross_entropy(logits, labels)}
        if guide is not None:
            if self.old:
                terms |= self._retention(fast, guide, labels, share)
            else:
                terms |= self._transfer(everyone(fast), everyone(guide))
        return terms, logits

    def _transfer(self, fast: Tensor, pretrained: Tensor) -> dict[str, Tensor]:
        weights = self.losses
        on, off = transfer_terms(fast, pretrained, weights.transfer_reduction, weights.standardize)
        return {"diagonal": weights.diagonal * on, "redundancy": weights.redundancy * off}

    def _retention(self, fast: Tensor, slow: Tensor, labels: Tensor, share: float) -> dict[str, Tensor]:
        weights, terms = self.losses, {}
        if weights.alignment:
            terms["alignment"] = weights.alignment * alignment_loss(fast, slow, weights.alignment_reduction)
        if weights.slow_to_fast or weights.fast_to_slow:
            heads = self.fast_head, self.slow_head
            one, other = cross_classification_loss(fast, slow, labels, *heads, self.old, self.seen, share)
            terms["slow_to_fast"] = weights.slow_to_fast * one
            terms["fast_to_slow"] = weights.fast_to_slow * other
        return terms

    # --- a session begins and ends ---

    def begin(self, batches: Batches, processes: Processes) -> None:
        """Gives the session's new classes their rows in the trained head."""
        self.fast_head.set_rows(self.old, self._new_rows("fast", batches, processes))

    def _new_rows(self, learner: Learner, batches: Batches, processes: Processes) -> Tensor:
        """Mean features of the new classes, of unit length, `[C - K, d]`."""
        if self.prediction.new_rows == "zeros":
            return torch.zeros_like(self.fast_head.weight[self.old : self.seen])
        total = torch.zeros_like(self.fast_head.weight)
        for images, labels, *_ in batches() if self.seen > self.old else ():
            total.index_add_(0, labels, self.features(images, learner))
        return F.normalize(processes.sum(total)[self.old : self.seen], dim=1)

    def hand_over(self) -> None:
        """Makes the slow learner of the fast one, once, at the end of session 1."""
        self.adapters.hand_over()
        with torch.no_grad():
            self.slow_head.weight.copy_(self.fast_head.weight)
            self.slow_head.scale.copy_(self.fast_head.scale)

    def consolidate(self, batches: Batches, processes: Processes, both: bool, session: int) -> None:
        """Takes a session into both predictors, and gives its classes their rows in the slow head.

        Args:
            batches: gives the session's training images in test form, this process's share, each time anew.
            processes: with whom the session is shared.
            both: False while there is one learner only.
            session: 0-based.
        """
        if self.old:
            self.slow_head.set_rows(self.old, self._new_rows("slow", batches, processes))
        self._prepare_fast(batches, processes, both, session)
        self._add(batches, processes, both)
        self.slow_ridge.solve()
        if both and self.prediction.statistics != "pooled":
            self.fast_ridge.solve()
        else:
            self.fast_ridge.take(self.slow_ridge)

    def _prepare_fast(self, batches: Batches, processes: Processes, both: bool, session: int) -> None:
        """Carries the old sums over to where the fast learner has drifted."""
        if both and self.old and self.prediction.statistics == "mapped":
            drift = self._drift(batches, processes, session)
            for own, exact in (
                (self.fast_ridge.fit, self.slow_ridge.fit),
                (self.fast_ridge.held, self.slow_ridge.held),
            ):
                own.zero_()
                own.merge(carry(exact, drift))

    def _drift(self, batches: Batches, processes: Processes, session: int) -> DriftMap:
        sums = DriftSums.zeros(self.slow_ridge.fit.gram)
        for view in range(1 + self.prediction.views):
            for images, _, position in processes.numbered(batches()):
                if view:
                    draws = uniforms(position, DRAWS, _VIEWS, self.seed, session, view)
                    images = surrogate_views(images, draws)
                expand = self.slow_ridge.expand
                sums.add(expand(self.features(images, "slow")), expand(self.features(images, "fast")))
        return fit_map(DriftSums(*(processes.sum(part) for part in sums)), self.prediction.map_penalty)

    def _add(self, batches: Batches, processes: Processes, both: bool) -> None:
        """Adds the session to the sums of both learners; all processes end with the same sums."""
        pooled = self.prediction.statistics == "pooled"
        heads: dict[Learner, RidgeHead] = {"slow": self.slow_ridge}
        if both:
            heads["fast"] = self.slow_ridge if pooled else self.fast_ridge
        means = torch.zeros_like(self.means)
        distinct = list(dict.fromkeys(heads.values()))  # processes must sum in one order
        for head in distinct if processes.rank else ():
            head.forget()  # the first process alone keeps what was there: it is to be counted once
        for images, labels, position in processes.numbered(batches()):
            held = uniforms(position, 1, _HELD, self.seed).squeeze(1) < 0.2
            for row, (learner, head) in enumerate(heads.items()):
                features = self.features(images, learner)
                head.update(features, labels, held)
                means[row].index_add_(0, labels, features)
        for head in distinct:
            head.gather(processes.sum)
        if not both:
            means[1] = means[0]
        self.means += processes.sum(means)
