"""Random-matrix theory of Hebbian operators: bulk edge, outliers, what an eigenvector still knows.

For `J = (1/(N M)) sum_a eta_a eta_a^T` of `M` noisy examples, `q = N/M` and noise `sigma^2 = 1 - r^2`, an
archetype of signal-to-noise `kappa = N r^2 pi / sigma^2` shows as an outlier of `N J` at
`sigma^2 (1 + kappa)(1 + q/kappa)` iff `kappa > sqrt q` (Baik, Ben Arous, Peche; Alessandrelli et al. 2026
print `kappa` without its factor N, which their own figures have).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TRACY_WIDOM = 3.3  # quantile of the largest eigenvalue of noise that the cushion covers
SQRT_HALF_PI = math.sqrt(math.pi / 2)


def marchenko_pastur_edge(
    neurons: int,
    examples: float | Sequence[float] | Tensor,
    noise: float | Sequence[float] | Tensor = 1.0,
    weights: Sequence[float] | Tensor | None = None,
) -> float:
    """Largest eigenvalue that pure noise gives to a Hebbian operator of trace 1, many neurons.

    One group: `(sigma^2 / N) (1 + sqrt(N/M))^2`. Several (clients, rounds) of unequal size, weight and noise:
    Silverstein's edge `min_u 1/u + sum_g (M_g/N) t_g / (1 - t_g u)`, `t_g = omega_g sigma_g^2 / M_g`.

    Args:
        neurons: `N`.
        examples: `M`, or `M_g [G]` of each group.
        noise: `sigma^2`, or `sigma_g^2 [G]`; 1 is a batch without any archetype.
        weights: `omega_g [G]`, the groups' shares of the operator; by default in proportion to examples.

    Returns:
        The edge, on the scale of `J` (trace 1), without a cushion for finite size.

    Raises:
        ValueError: for no neurons or no examples.

    >>> round(marchenko_pastur_edge(neurons=400, examples=400), 4)
    0.01
    >>> round(marchenko_pastur_edge(400, [100, 100], weights=[0.5, 0.5]), 4)   # the same as 200 in one group
    0.0146
    """
    size = torch.as_tensor(examples, dtype=torch.float64).flatten()
    share = size / size.sum() if weights is None else torch.as_tensor(weights, dtype=torch.float64)
    t = share.cpu() * torch.as_tensor(noise, dtype=torch.float64).cpu() / size.cpu().clamp(min=1e-300)
    alive = (size.cpu() > 0) & (t > 0)
    if neurons < 1 or not bool((size > 0).any()):
        raise ValueError(f"neurons={neurons}, examples={examples}: an operator needs both")
    if not bool(alive.any()):
        return 0.0
    size, t = size.cpu()[alive] / neurons, t[alive]
    if len(t) == 1:
        return float(t * (1 + size.sqrt()) ** 2)
    top = t.max()
    low, high = 0.0, 1.0
    for _ in range(5):  # the function is convex: zoom into the neighbourhood of the least value on a grid
        x = torch.linspace(low, high, 258, dtype=torch.float64)[1:-1]
        value = top / x + (size * t / (1 - t / top * x[:, None])).sum(1)
        best, step = int(value.argmin()), (high - low) / 257
        low, high = float(x[best]) - step, float(x[best]) + step
    return float(value.min())


def cushion(neurons: int, examples: float) -> float:
    """Relative room above the edge for the largest eigenvalue of noise at finite size (Tracy-Widom)."""
    root_m, root_n = math.sqrt(max(examples, 1.0)), math.sqrt(neurons)
    return TRACY_WIDOM * math.cbrt(1 / root_m + 1 / root_n) / (root_m + root_n)


def signal_strength(eigenvalues: Tensor, noise: float, neurons: int, examples: float) -> Tensor:
    """`kappa` of outliers, the inverse of the outlier formula; `sqrt q` where there is none."""
    q = neurons / examples
    middle = neurons * eigenvalues / max(noise, 1e-12) - 1 - q
    root = (middle**2 - 4 * q).clamp(min=0).sqrt()
    outlier = (middle > 0) & (middle**2 > 4 * q)
    return torch.where(outlier, (middle + root) / 2, math.sqrt(q))


def _strength(eigenvalue: float, noise: float, neurons: int, q: float) -> float:
    """`signal_strength` of one number."""
    middle = neurons * eigenvalue / max(noise, 1e-12) - 1 - q
    square = middle * middle - 4 * q
    return (middle + math.sqrt(square)) / 2 if middle > 0 and square > 0 else math.sqrt(q)


def evidence(eigenvalues: Tensor, noise: float, neurons: int, examples: float) -> Tensor:
    """What an eigenvector knows: `E = gamma/(1 - gamma) = (kappa^2 - q)/(q (1 + kappa))`; 0 below edge."""
    kappa, q = signal_strength(eigenvalues, noise, neurons, examples), neurons / examples
    return ((kappa**2 - q) / (q * (1 + kappa))).clamp(min=0)


def magnetisation(evidence: Tensor) -> Tensor:
    """Expected overlap of an archetype with the sign of its eigenvector, `erf(sqrt(E/2))`."""
    return torch.erf((evidence.clamp(min=0) / 2).sqrt())


def noise_level(outliers: Tensor, trace: float, neurons: int, examples: float) -> float:
    """`sigma^2` from the trace, after taking out the outliers' signal (not their whole eigenvalues).

    Fixed point of `s2 = trace - s2 sum_d kappa_d / N`: the noise inside an outlier's direction stays. Taking
    whole eigenvalues overcounts archetypes wherever examples are few.
    """
    values: list[float] = outliers.tolist()
    q = neurons / examples
    s2 = max(neurons * (trace - sum(values)) / max(neurons - len(values), 1), 1e-9)
    # In plain floats: a tensor of few numbers costs more than its arithmetic.
    for _ in range(30 if values else 0):
        new = max(trace - sum(_strength(value, s2, neurons, q) for value in values) * s2 / neurons, 1e-9)
        if abs(new - s2) < 1e-7:
            break
        s2 = (s2 + new) / 2
    return s2


@dataclass(frozen=True)
class Bulk:
    """Noise of an operator, and how many eigenvalues stand above it."""

    outliers: int
    edge: float
    noise: float


def find_outliers(
    eigenvalues: Tensor,
    neurons: int,
    examples: Tensor,
    noise: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    most: int,
    extra_edge: float = 0.0,
) -> Bulk:
    """Number of archetypes in a spectrum of trace 1, without being told: noise, edge and count agree.

    Args:
        eigenvalues: descending, at least the largest of them.
        neurons: `N`.
        examples: `M_g [G]` of the groups in the operator.
        noise: `sigma_g^2 [G]`, up to a common factor; None means equal.
        weights: `omega_g [G]`; None means in proportion to examples.
        most: most outliers that may be reported.
        extra_edge: added to the edge (noise put on by differential privacy).
    """
    lam, size = eigenvalues.double().cpu(), examples.double().cpu()
    omega = (size if weights is None else weights.double().cpu()) / 1.0
    omega = omega / omega.sum()
    shape = torch.ones_like(omega) if noise is None else noise.double().cpu()
    shape = shape / (omega * shape).sum().clamp(min=1e-9)
    effective = float(1 / (omega**2 / size).sum())
    # The edge is proportional to the noise: one minimisation serves all iterations.
    unit_edge = marchenko_pastur_edge(neurons, size, shape, omega) * (1 + cushion(neurons, effective))
    count, edge, s2 = 0, 0.0, 1.0
    for _ in range(most + 2):
        s2 = noise_level(lam[:count], 1.0, neurons, effective)
        edge = max(s2 * unit_edge, 1e-9) + extra_edge
        found = min(int((lam > edge).sum()), most)
        if found == count:
            break
        count = found
    return Bulk(count, edge, s2)


@dataclass(frozen=True)
class Detectability:
    """What theory predicts for one archetype.

    Attributes:
        kappa: signal-to-noise ratio.
        visible: whether it shows as an outlier.
        eigenvalue: of the outlier, on the scale of an operator of trace 1; the edge if not visible.
        edge: upper edge of the bulk, same scale.
        overlap: squared overlap `gamma` of eigenvector and archetype.
        magnetisation: overlap of the eigenvector's sign with the archetype.
        examples_needed: examples of the federation at which it becomes visible.
    """

    kappa: float
    visible: bool
    eigenvalue: float
    edge: float
    overlap: float
    magnetisation: float
    examples_needed: float


def detectability(quality: float, share: float, examples: float, neurons: int) -> Detectability:
    """Whether an archetype can be found, and how well, before any data is seen.

    Args:
        quality: `r` in (0, 1): an entry of an example is right with probability `(1 + r)/2`.
        share: `pi`, the archetype's share of all examples.
        examples: `M`, of all clients of a round together (or effective, over rounds).
        neurons: `N`.

    Raises:
        ValueError: for a quality or share outside its range.

    >>> found = detectability(quality=0.6, share=0.05, examples=200, neurons=400)
    >>> found.visible, round(found.overlap, 2), round(found.magnetisation, 3)
    (True, 0.84, 0.976)
    """
    if not 0 < quality < 1 or not 0 < share <= 1:
        raise ValueError(f"quality={quality}, share={share} must lie in (0, 1) and (0, 1]")
    if not examples > 0 or neurons < 1:
        raise ValueError(f"examples={examples}, neurons={neurons}: an operator needs both")
    noise, q = 1 - quality**2, neurons / examples
    kappa = neurons * quality**2 * share / noise
    visible = kappa > math.sqrt(q)
    edge = noise * (1 + math.sqrt(q)) ** 2 / neurons
    eigenvalue = noise * (1 + kappa) * (1 + q / kappa) / neurons if visible else edge
    overlap = (1 - q / kappa**2) / (1 + q / kappa) if visible else 0.0
    m = math.erf(math.sqrt(overlap / (2 * (1 - overlap)))) if overlap < 1 else 1.0
    needed = noise**2 / (neurons * quality**4 * share**2)
    return Detectability(kappa, visible, eigenvalue, edge, overlap, m, needed)
