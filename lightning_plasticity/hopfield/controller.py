"""Stability against plasticity: how much of its new data a client puts against the common memory."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_plasticity.entropy import binary_entropy, sign_counts
from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.memory import Memory
from lightning_plasticity.hopfield.operators import LocalSpectrum, energy, residual_eigenvalues

PAIRS = 30_000  # entries of the operators that sign agreement looks at


@dataclass(frozen=True)
class Signal:
    """What a client can tell of its batch against the memory.

    Attributes:
        gate: whether it sees any signal at all.
        novelty: `nu`, share of its signal outside the memory, 0 .. 1.
        drive: what the server makes the plasticity `w` of: the entropy `H` for `"spectral_entropy"`, `w`
            itself for the paper's rules.
    """

    gate: bool
    novelty: float
    drive: float


def read_signal(
    examples: Tensor, spectrum: LocalSpectrum, memory: Memory, config: FederationConfig
) -> Signal:
    """Gate, novelty and plasticity's drive of one client.

    Args:
        examples: `X [M, N]` of +-1.
        spectrum: of the client's own operator.
        memory: as broadcast.
        config: names the controller.
    """
    gate = spectrum.bulk.outliers > 0 or matches(examples, memory.outlier_vectors)
    new = novelty(examples, spectrum, known_directions(memory))
    if config.controller == "spectral_entropy" or not isinstance(config.controller, str):
        return Signal(gate or not config.gate, new, float(binary_entropy(torch.tensor(1 - new / 2).double())))
    return Signal(gate or not config.gate, new, paper_plasticity(examples, memory, config))


def known_directions(memory: Memory) -> Tensor:
    """`B [N, b]`, orthonormal: the archetypes, and what the operator shows though it is no archetype yet."""
    vectors = memory.outlier_vectors
    both = torch.cat([memory.archetypes.T.to(vectors), vectors], 1).double()
    left, singular, _ = torch.linalg.svd(both, full_matrices=False)
    return left[:, singular > 1e-6 * singular.max()] if both.shape[1] else both


def matches(examples: Tensor, vectors: Tensor) -> bool:
    """Matched filter: whether examples point along known directions more than noise does, at three sigma.

    `sum ||V^T eta||^2 / M` is `K` for noise, give or take `sqrt(2 K / M)`.
    """
    m, k = len(examples), vectors.shape[1]
    if not k:
        return False
    excess = energy(examples, vectors) * examples.shape[1] - k
    return excess > 3 * math.sqrt(2 * k / m)


def novelty(examples: Tensor, spectrum: LocalSpectrum, known: Tensor) -> float:
    """`nu = R / (R + S)`: the client's local excess outside `known [N, b]` over all its signal.

    0 where nothing is known yet (all is equally new), or where the client has no outlier.
    """
    outliers = spectrum.bulk.outliers
    if not known.shape[1] or not outliers:
        return 0.0
    outside = residual_eigenvalues(examples, spectrum, known)
    fresh = float((outside - spectrum.bulk.edge).clamp(min=0)[:outliers].sum())
    old = max(energy(examples, known) - known.shape[1] * spectrum.bulk.noise / examples.shape[1], 0.0)
    return fresh / (fresh + old + 1e-12)


def paper_plasticity(examples: Tensor, memory: Memory, config: FederationConfig) -> float:
    """The paper's rules on sign agreement of the client's operator with the memory's; 1 while that is empty.

    Pairs at which the memory's operator is exactly 0 are left out: counted as disagreement, as the paper's
    code does, they make stationary data with an even number of archetypes look new.
    """
    if not len(memory.archetypes):
        return 1.0
    p = pair_agreement(examples, memory.archetypes, config.seed + memory.round)
    return paper_rule(p, config.controller == "agreement", config.quality)


def paper_rule(p: float, agreement: bool, quality: float) -> float:
    """`w` from the agreement `p` of signs. Neither rule tells novelty from noise.

    `"entropy"`: `w = max(0, (h2(p) - H_min) / (1 - H_min))`, `H_min = h2((1 + r^2)/2)`. `"agreement"` (code
    of the attacker figure): `w = clip((p - 1/2) / (r^2 / 2), 0, 1)`.

    Args:
        p: 1/2 for operators that have nothing to do with each other.
        agreement: the second rule.
        quality: `r`.

    >>> [round(paper_rule(p, agreement=False, quality=0.8), 2) for p in (0.5, 0.7, 0.9)]
    [1.0, 0.63, 0.0]
    """
    own = (1 + quality**2) / 2
    if agreement:
        return min(max((p - 0.5) / max(own - 0.5, 1e-9), 0.0), 1.0)
    entropy, least = (float(h) for h in binary_entropy(torch.tensor([p, own], dtype=torch.float64)))
    return max(0.0, (entropy - least) / max(1 - least, 1e-9))


def pair_agreement(examples: Tensor, archetypes: Tensor, seed: int, skip_zeros: bool = True) -> float:
    """Share of sampled pairs `i != j` at which `X^T X` and `Z^T Z` have one sign; 1/2 if none compares.

    Args:
        examples: `X [M, N]`.
        archetypes: `Z [K, N]`.
        seed: of the sample.
        skip_zeros: as `sign_agreement` does; otherwise two zeros agree, and a zero with a sign does not.
    """
    n, generator = examples.shape[1], torch.Generator().manual_seed(seed)
    i = torch.randint(n, (PAIRS,), generator=generator)
    j = (i + torch.randint(1, n, (PAIRS,), generator=generator)) % n
    z, x = archetypes.cpu().int(), examples.cpu().to(torch.int32)
    stored, new = (z[:, i] * z[:, j]).sum(0), (x[:, i] * x[:, j]).sum(0)
    if not skip_zeros:
        return float((stored.sign() == new.sign()).double().mean())
    agreeing, compared = sign_counts(stored, new)
    return int(agreeing) / int(compared) if int(compared) else 0.5
