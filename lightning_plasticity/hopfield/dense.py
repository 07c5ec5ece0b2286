"""The paper's own pipeline with dense N x N operators, small and literal: what ours is compared with.

Alessandrelli et al. (2026); the text, where text and code differ. Taken literally (`literal=True`:
eigenvalues above .5 and scores above .6, both of the unlearned operator) it finds nothing once an archetype
has less than a third of the examples. By default three readings favour it: the threshold on eigenvalues is
the Marchenko-Pastur edge at the true quality `r`, which it is told; scores are those of the projector on the
eigenvectors; and the last update of the dynamics is free of noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_plasticity.hopfield.controller import pair_agreement, paper_rule
from lightning_plasticity.hopfield.disentangle import layered_dynamics, sign
from lightning_plasticity.hopfield.spectrum import marchenko_pastur_edge

UNLEARNING_STEPS, UNLEARNING_RATE = 200, 1e-2
LAYERS, MOST_BLOCKS = 3, 500
DUPLICATE, SCORE = 0.4, 0.6  # the paper's q_thr and rho
EDGE_CUSHION, LITERAL_TAU = 1.05, 0.5


def hebbian(examples: Tensor) -> Tensor:
    """`J = X^T X / (N M)`, `[N, N]`."""
    return examples.T @ examples / examples.numel()


def unlearn(operator: Tensor) -> Tensor:
    """Towards the pseudo-inverse: `J <- J + eps/(1 + eps k) (J - J^2)`, 2 N^3 flops a step.

    Args:
        operator: `J [N, N]`; or its eigenvalues `[N]`, on which the same map acts.
    """
    for step in range(UNLEARNING_STEPS):
        square = operator @ operator if operator.dim() == 2 else operator**2
        operator = operator + UNLEARNING_RATE / (1 + UNLEARNING_RATE * step) * (operator - square)
    return operator


def plasticity(examples: Tensor, archetypes: Tensor, rule: str | float, quality: float, seed: int) -> float:
    """`w` of one client by `"entropy"`, `"agreement"` or a fixed number; 1 while the memory is empty."""
    if not len(archetypes):
        return 1.0
    if not isinstance(rule, str):
        return rule
    p = pair_agreement(examples, archetypes, seed, skip_zeros=False)
    return paper_rule(p, rule == "agreement", quality)


@dataclass
class DenseFederation:
    """The paper's federation, round by round.

    Args:
        rule: plasticity: `"entropy"`, `"agreement"` or a number.
        quality: `r`, which the paper's rules need to know.
        smoothing: `alpha` of `w <- alpha w + (1 - alpha) w_previous`; the paper's default.
        literal: the paper's fixed thresholds.
        explicit: unlearn by N x N products, as the paper does, and not on the eigenvalues (the same to
            rounding, and much faster).
        seed: of the dynamics.

    Attributes:
        archetypes: `Z [K, N]` of +-1; the memory, replaced every round.
        plastic: the clients' last `w`.
    """

    rule: str | float = "entropy"
    quality: float = 0.8
    smoothing: float = 0.3
    literal: bool = False
    explicit: bool = False
    seed: int = 0
    archetypes: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    plastic: dict[int, float] = field(default_factory=dict)
    rounds: int = 0

    def round(self, clients: Sequence[Tensor]) -> None:
        """Clients blend data and memory; the server averages, factorises and replaces the memory."""
        here = {c: x.double() for c, x in enumerate(clients) if len(x) and bool(torch.isfinite(x).all())}
        self.rounds += 1
        if not here:
            return
        neurons = next(iter(here.values())).shape[1]
        if not len(self.archetypes):
            self.archetypes = torch.zeros(0, neurons, dtype=torch.float64)
        stored = self.archetypes.T @ self.archetypes / neurons
        operator = torch.zeros(neurons, neurons, dtype=torch.float64)
        for c, x in here.items():
            w = plasticity(x, self.archetypes, self.rule, self.quality, self.seed + self.rounds)
            w = self.smoothing * w + (1 - self.smoothing) * self.plastic.get(c, w)
            self.plastic[c] = w
            operator += (w * hebbian(x) + (1 - w) * stored) / len(here)
        fresh = sum(self.plastic[c] for c in here) / len(here)
        edge = fresh * marchenko_pastur_edge(neurons, sum(len(x) for x in here.values()), 1 - self.quality**2)
        self.archetypes = self.factorise(operator, EDGE_CUSHION * edge)

    def factorise(self, operator: Tensor, edge: float) -> Tensor:
        """Archetypes of a server operator `J_s [N, N]`, by unlearning, eigenvectors and layered dynamics."""
        n = len(operator)
        values, vectors = torch.linalg.eigh(operator)  # unlearning keeps the eigenvectors
        shrunk = unlearn(values)
        unlearned = unlearn(operator) if self.explicit else (vectors * shrunk) @ vectors.T
        v = vectors[:, shrunk > LITERAL_TAU if self.literal else values > max(edge, 1e-9)]
        k = v.shape[1]
        if not k:
            return torch.zeros(0, n, dtype=operator.dtype)
        blocks = max(10, min(10 * math.floor(k / LAYERS * math.log(k / 0.01)), MOST_BLOCKS))
        generator = torch.Generator().manual_seed(self.seed + self.rounds)
        weights = torch.randn(blocks, k, generator=generator)
        mixture = sign(weights @ v.T.float())[:, None]
        start, kernel = mixture.repeat(1, LAYERS, 1), unlearned.float()
        states = layered_dynamics(start, mixture, lambda s: s @ kernel, generator).flatten(0, 1).double()
        judge = unlearned if self.literal else v @ v.T
        score = ((states @ judge) * states).sum(1) / n
        order = score.argsort(descending=True, stable=True)
        return self.prune(states[order[score[order] > SCORE]])

    @staticmethod
    def prune(states: Tensor) -> Tensor:
        """Drops states that overlap with an earlier one by `DUPLICATE` or more, `-xi` being `xi`."""
        keep = list[int]()
        for i in range(len(states)):
            if not keep or float((states[keep] @ states[i]).abs().max()) / states.shape[1] < DUPLICATE:
                keep.append(i)
        return states[keep]
