"""How well labels are told at other contrasts than those of learning, against a mixture that normalises."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_plasticity.intrinsic import circuit, starts
from lightning_plasticity.intrinsic.mixture import PoissonGammaMixture
from lightning_plasticity.intrinsic.naming import label_counts

if TYPE_CHECKING:
    from lightning_plasticity.intrinsic.module import IntrinsicPlasticityMixture

CONTRASTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Factors of every test intensity."""


def normalised(stimuli: Tensor, energy: float) -> Tensor:
    """Stimuli scaled to one energy, which throws intensity away; an empty stimulus becomes uniform."""
    total = stimuli.sum(1, keepdim=True)
    uniform = torch.full_like(stimuli, 1 / stimuli.shape[1])
    return energy * torch.where(total > 0, stimuli / total.clamp_min(1e-30), uniform)


def normalising_mixture(
    stimuli: Tensor, like: "IntrinsicPlasticityMixture", passes: int, batch_size: int, seed: int = 0
) -> PoissonGammaMixture:
    """A normalised Poisson mixture (Keck, Savin and Luecke 2012), learned by the same online rules.

    Args:
        stimuli: `y [n, D]`, normalised already.
        like: the model whose size, rate and warm-up it shares.
        passes: over the stimuli.
        batch_size: stimuli per mini-batch.
        seed: of the start and the order.
    """
    generator = torch.Generator().manual_seed(seed)
    num_classes, num_features = like.weights.shape
    state = circuit.Circuit.of(starts.start(stimuli[:batch_size], num_classes, generator))
    seen = 0
    for number in range(passes):
        warm = number >= like.warmup_epochs
        for rows in torch.split(torch.randperm(len(stimuli), generator=generator), batch_size):
            rate = circuit.learning_rate(seen, like.lr, like.decay)
            drive = circuit.drive(stimuli[rows], state, rate, "none")
            state = circuit.apply_drive(state, drive, rate, learn_prior=warm and like.learning.learn_prior)
            seen += len(rows)
    mixture = PoissonGammaMixture(num_classes, num_features, seed, intensity="none")
    mixture.parameters = state.parameters()
    return mixture


def naming_by(mixture: PoissonGammaMixture, stimuli: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    """`[C, K]`, who answers for the labels of a few stimuli; -1 for none."""
    few = labels >= 0
    return label_counts(mixture.predict_proba(stimuli[few]), labels[few], num_labels)


def accuracy_over_contrast(
    methods: Mapping[str, Callable[[Tensor], Tensor]],
    draw: Callable[[float], tuple[Tensor, Tensor]],
    contrasts: Sequence[float] = CONTRASTS,
) -> dict[str, list[float]]:
    """Accuracy of each method at each contrast, in 0..1.

    Args:
        methods: name -> function from stimuli `[n, D]` to the probabilities of their labels, `[n, K]`.
        draw: gives the test stimuli and labels at a contrast.
        contrasts: factors of every test intensity.
    """
    accuracy: dict[str, list[float]] = {name: [] for name in methods}
    for contrast in contrasts:
        stimuli, labels = draw(contrast)
        for name, method in methods.items():
            accuracy[name].append(float((method(stimuli).argmax(1) == labels).double().mean()))
    return accuracy
