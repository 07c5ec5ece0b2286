"""Scoring: what each unit of each layer is worth at an update, from weights, gradients or chance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.masks import local, shard_like, unshard_like
from lightning_plasticity.sparsity.scores import Score, magnitude, random
from lightning_plasticity.sparsity.selection import LazyScores


@dataclass
class Captured:
    """What an update needs from the dense gradients, taken before they are masked.

    Attributes:
        finite: Whether all gradients are finite, a 0-d bool.
        has_gradient: Which layers had a gradient.
        scores: The scores that gradients go into, by score and layer.
    """

    finite: Tensor
    has_gradient: list[bool]
    scores: dict[Score, list[Tensor]]


class Scorer:
    """Scores the units of all layers of one model, in the layers' order.

    Args:
        config: Settings of the method.
        parameters: Layer name to parameter.
        coupled: Groups of layers whose filters go and come together: each filter has the sum of its scores.
        generator: CPU generator of everything drawn.
    """

    def __init__(
        self,
        config: SparsityConfig,
        parameters: Mapping[str, Tensor],
        coupled: Sequence[Sequence[str]],
        generator: torch.Generator,
    ) -> None:
        self.config, self.pattern, self.generator = config, config.pattern, generator
        self.parameters = list(parameters.values())
        index = {name: position for position, name in enumerate(parameters)}
        self.coupled = [[index[name] for name in group] for group in coupled]

    def capture(self, regrows: bool) -> Captured:
        """Take what an update will need from the gradients as they are now, dense and not yet clipped."""
        zeros = torch.zeros_like
        gradients = [local(p.grad) if p.grad is not None else zeros(local(p)) for p in self.parameters]
        wanted = {self.config.drop_score} | ({self.config.grow_score} if regrows else set())
        return Captured(
            finite=_all_finite(gradients),
            has_gradient=self._have_gradients(),
            scores={
                score: [
                    self.pattern.reduce(score(local(p).detach(), gradient, self.generator))
                    for p, gradient in zip(self.parameters, gradients, strict=True)
                ]
                for score in wanted - {magnitude, random}
            },
        )

    def _have_gradients(self) -> list[bool]:
        have = [p.grad is not None for p in self.parameters]
        for group in self.coupled:
            together = all(have[index] for index in group)
            for index in group:
                have[index] = together
        return have

    def drop_scores(self, captured: Captured) -> list[LazyScores]:
        """Scores of what goes, the lowest first."""
        return self._scores(self.config.drop_score, captured)

    def grow_scores(self, captured: Captured, masks: Sequence[Tensor]) -> list[LazyScores]:
        """Scores of what comes, the highest first; comparable between units that were active and others."""
        scores = self._scores(self.config.grow_score, captured)
        if self.pattern.has_unit_weights:
            return scores
        compared = []
        for score, mask, p in zip(scores, masks, self.parameters, strict=True):
            whole = unshard_like(score.function(*score.tensors), p)  # a number per filter: small
            compared.append(
                shard_like(self.pattern.grow_scores(whole, unshard_like(mask, p), self.generator), p)
            )
        self._share(compared)
        return [known(score) for score in compared]

    def weights(self) -> list[LazyScores]:
        """Magnitudes of the present weights."""
        weights = [local(p).detach() for p in self.parameters]
        if self.pattern.has_unit_weights:
            return [LazyScores(torch.abs, (weight,)) for weight in weights]
        return self._coupled_sums([self.pattern.reduce(weight.abs()) for weight in weights])

    def _scores(self, score: Score, captured: Captured) -> list[LazyScores]:
        """Scores of all layers: of the present weights, drawn now, or captured with the gradients."""
        if score is magnitude:
            return self.weights()
        drawn_or_captured = (
            [self._draw(p) for p in self.parameters] if score is random else captured.scores[score]
        )
        return self._coupled_sums(drawn_or_captured)

    def _draw(self, parameter: Tensor) -> Tensor:
        """Random scores, drawn whole on the CPU, so that every device and rank sees the same."""
        shape = self.pattern.mask_shape(tuple(parameter.shape))
        return shard_like(torch.rand(shape, generator=self.generator), parameter)

    def _coupled_sums(self, scores: list[Tensor]) -> list[LazyScores]:
        summed = list(scores)
        for group in self.coupled:
            total = torch.stack([scores[index].flatten() for index in group]).sum(0)
            for index in group:
                summed[index] = total.reshape(scores[index].shape)
        return [known(score) for score in summed]

    def _share(self, scores: list[Tensor]) -> None:
        """Give all layers of a group the scores of its first: chance has a part in them."""
        for first, *others in self.coupled:
            for index in others:
                scores[index] = scores[first].reshape(scores[index].shape)


def known(scores: Tensor) -> LazyScores:
    """Scores that exist already."""
    return LazyScores(_identity, (scores,))


def _identity(scores: Tensor) -> Tensor:
    return scores


def _all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all entries are finite, a 0-d bool; an empty shard, which has no largest entry, is."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return torch.ones((), dtype=torch.bool, device=tensors[0].device)
    return torch.stack(torch._foreach_norm(filled, math.inf)).isfinite().all()
