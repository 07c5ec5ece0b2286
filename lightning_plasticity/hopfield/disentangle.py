"""From eigenvectors, which mix archetypes by arbitrary rotations, to the +-1 patterns in their span."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SAME = 0.9  # absolute overlap from which two candidates are one
RESIDUAL = 0.1  # least share of a state's energy outside the span of those chosen before
STEPS, WAVES, FRUITLESS = 40, 16, 3  # at most so many waves of starts, and so many in a row that find nothing
LAM_STEPS, LAM_LAYERS, LAM_BETA, LAM_REPULSION, LAM_FIELD = 50, 3, 2.5, 0.2, 0.1  # the paper's defaults
BLOCK = 1 << 23  # entries of states held in floating point at once


def sign(x: Tensor) -> Tensor:
    """+-1 of the same dtype; zero counts as +1, so that a state is always a state."""
    return (x >= 0).to(x.dtype).mul_(2).sub_(1)  # four times as fast as torch.where with two numbers


def disentangle(
    eigenvectors: Tensor, seed: int = 0, *, method: str = "l1", gamma: float | None = None
) -> Tensor:
    """The archetypes whose span the eigenvectors are.

    `"l1"` climbs `||V w||_1` from random directions `w`, by `sigma = sign(V w)`, `w <- V^T sigma / |.|`: the
    zero-temperature dynamics of the projector `P = V V^T`, which never falls, and whose global maxima are the
    +-1 vectors in the span (Cauchy-Schwarz). `"lam"` is the paper's layered associative memory on `P`.

    Args:
        eigenvectors: `V [N, K]`, orthonormal columns.
        seed: of the starts.
        method: `"l1"` or `"lam"`.
        gamma: squared overlap of the span with an archetype, which the threshold against mixtures needs; by
            default that of the best candidate.

    Returns:
        `[K_found, N]` of +-1, `K_found <= K`, the purest first; a pattern and its negative are one.

    Raises:
        ValueError: if the eigenvectors are not a matrix of at most N columns, or not finite.

    >>> archetypes = sign(torch.randn(3, 500, generator=torch.manual_seed(0)))
    >>> rotated = torch.linalg.svd(archetypes.T, full_matrices=False)[0]
    >>> found = disentangle(rotated)
    >>> (found @ archetypes.T / 500).abs().amax(0)
    tensor([1., 1., 1.])
    """
    if eigenvectors.dim() != 2 or eigenvectors.shape[1] > eigenvectors.shape[0]:
        raise ValueError(f"eigenvectors of shape {tuple(eigenvectors.shape)}: give [N, K] with K <= N")
    if not bool(torch.isfinite(eigenvectors).all()):
        raise ValueError("eigenvectors hold NaN or infinity: give orthonormal columns")
    states, scores = candidates(eigenvectors, seed, method)
    if not len(states):
        return states.to(eigenvectors.dtype)
    span = _gamma_of(scores[0]) if gamma is None else torch.tensor(gamma, dtype=torch.float64)
    states = states[scores > purity_threshold(span)]
    return states[independent(states, eigenvectors.shape[1])].to(eigenvectors.dtype)


def candidates(
    eigenvectors: Tensor, seed: int, method: str = "l1", least: float = 0.0
) -> tuple[Tensor, Tensor]:
    """All distinct states that the dynamics end in, archetypes and spurious ones.

    Args:
        eigenvectors: `V [N, K]`.
        seed: of the starts.
        method: `"l1"` or `"lam"`.
        least: `gamma` that the span holds of any archetype, as far as that is known: at a high load the best
            of the first states may be a mixture, which must not set the standard.

    Returns:
        States `[n, N]` int8, +1 at the first neuron, and their scores `||V^T z||^2 / N` `[n]`, best first,
        none below 1/2.
    """
    n, k = eigenvectors.shape
    generator = torch.Generator().manual_seed(seed)
    run = _climb if method == "l1" else _layered
    states = torch.zeros(0, n, dtype=torch.int8, device=eigenvectors.device)
    features = torch.zeros(0, k, dtype=torch.float64, device=eigenvectors.device)
    missing = torch.eye(k, dtype=torch.float64, device=eigenvectors.device)
    fruitless = 0
    for _ in range(WAVES):
        if not missing.shape[1] or fruitless == FRUITLESS:
            break
        w = _starts(missing, generator).to(eigenvectors)
        new = torch.cat([run(block, eigenvectors, generator) for block in torch.split(w, max(1, BLOCK // n))])
        new = new * new[:, :1]  # a state or its negative: round-off must not choose
        states, features = torch.cat([states, new]), torch.cat([features, _features(new, eigenvectors)])
        keep = _best(states, features, eigenvectors.dtype, 6 * k + 10)
        states, features = states[keep], features[keep]
        before, missing = missing.shape[1], _missing(features, least)
        fruitless = 0 if missing.shape[1] < before else fruitless + 1
    return states, (features**2).sum(1)


def _starts(directions: Tensor, generator: torch.Generator) -> Tensor:
    """Random `w [m, K]` in the span of orthonormal columns `[K, d]`, enough to collect `d` archetypes."""
    k, d = directions.shape
    number = max(64, math.ceil(4 * d * math.log(100 * d)))
    normal = torch.randn(number, k, generator=generator, dtype=torch.float64).to(directions)
    return normal @ directions @ directions.T


def _features(states: Tensor, v: Tensor) -> Tensor:
    """`z^T V / sqrt(N)`, `[n, K]`; its squared norm is a state's score."""
    blocks = torch.split(states, max(1, BLOCK // v.shape[0]))
    return torch.cat([block.to(v) @ v for block in blocks]).double() / math.sqrt(v.shape[0])


def _best(states: Tensor, features: Tensor, dtype: torch.dtype, most: int) -> Tensor:
    """Indices of distinct states, best first, without those of a score below 1/2."""
    scores = (features**2).sum(1)
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= 0.5]
    # Starts that fell into one basin are told by their K features; only what is left is compared in full.
    order = order[_distinct(features[order] / scores[order, None].sqrt(), 0.98, most)]
    wide = states[order].to(dtype) / math.sqrt(states.shape[1])
    return order[_distinct(wide, SAME, len(order))]


def _missing(features: Tensor, least: float) -> Tensor:
    """Orthonormal columns `[K, d]` of the span without a pure state yet: where the next wave starts."""
    scores = (features**2).sum(1)
    if not len(scores):
        return torch.zeros(features.shape[1], 0, dtype=features.dtype, device=features.device)
    pure = features[scores > purity_threshold(_gamma_of(scores[0]).clamp(min=least))]
    _, singular, right = torch.linalg.svd(pure, full_matrices=True)
    rest: Tensor = right[int((singular > 0.3).sum()) :].T
    return rest


def _distinct(rows: Tensor, limit: float, most: int) -> list[int]:
    """Greedy choice, in order, of rows whose product with every earlier choice is below the limit."""
    near = (rows @ rows.T).abs() >= limit
    table, keep = near.cpu().numpy(), list[int]()
    for i in range(len(rows)):
        if not table[i, keep].any():
            keep.append(i)
        if len(keep) == most:
            break
    return keep


def _climb(w: Tensor, v: Tensor, _: torch.Generator) -> Tensor:
    """`l1` ascent of every start `w [m, K]` at once."""
    for _step in range(STEPS):
        new = torch.nn.functional.normalize(sign(w @ v.T) @ v, dim=1)
        if float((new - w).abs().max()) < 1e-9:
            break
        w = new
    return sign(w @ v.T).to(torch.int8)


def _layered(w: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
    """The paper's dynamics on the projector, `LAM_LAYERS` layers from each start."""
    field = sign(w @ v.T)[:, None]
    state = field.repeat(1, LAM_LAYERS, 1)
    return layered_dynamics(state, field, lambda s: (s @ v) @ v.T, generator).flatten(0, 1).to(torch.int8)


def layered_dynamics(
    state: Tensor, field: Tensor, kernel: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Tensor:
    """LAM (TAM for three layers), the paper's dynamics: layers of a block repel each other, and are noisy.

    `h^a = J s^a - (lambda/N) sum_{b != a} (J s^b)(s^b . J s^a) + H x`, `s^a <- sign(tanh(beta h^a) + u)`, `u`
    uniform on [-1, 1]. The field stays clamped to the mixture `x`, as the paper's text has it (its code feeds
    the state back), and the last update is without noise and field.

    Args:
        state: `s [B, P, N]`, `P` layers of `B` blocks.
        field: `x [B, 1, N]`.
        kernel: the product of states `[..., N]` with `J` or the projector.
        generator: of the noise.
    """
    n, layers = state.shape[-1], state.shape[-2]
    others = (1 - torch.eye(layers, dtype=state.dtype, device=state.device)) * LAM_REPULSION / n
    for _ in range(LAM_STEPS):
        driven = kernel(state)
        repulsion = ((driven @ state.mT) * others) @ driven
        noise = torch.rand(state.shape, generator=generator, dtype=state.dtype).to(state.device) * 2 - 1
        state = sign(torch.tanh(LAM_BETA * (driven - repulsion + LAM_FIELD * field)) + noise)
    return sign(kernel(state))


def _projection_mean(gamma: Tensor, signal: float) -> Tensor:
    """`E |sqrt(gamma) signal + sqrt(1 - gamma) n|`, n standard normal."""
    a, b = gamma.sqrt() * signal, (1 - gamma).clamp(min=1e-12).sqrt()
    return a * torch.erf(a / b / math.sqrt(2)) + b * math.sqrt(2 / math.pi) * torch.exp(-(a**2) / b**2 / 2)


def pure_score(gamma: Tensor) -> Tensor:
    """Score `||V^T z||^2 / N` of an archetype of which the span holds `gamma`."""
    return _projection_mean(gamma, 1.0) ** 2


def purity_threshold(gamma: Tensor) -> Tensor:
    """Half way between the scores of an archetype and of a mixture of three, where the span holds `gamma`."""
    root = math.sqrt(3)
    mixture = 0.25 * _projection_mean(gamma, root) + 0.75 * _projection_mean(gamma, 1 / root)
    return (pure_score(gamma) + mixture**2) / 2


def _gamma_of(score: Tensor) -> Tensor:
    """The `gamma` at which an archetype has that score."""
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64, device=score.device)
    return grid[(pure_score(grid) - score).abs().argmin()]


def independent(
    states: Tensor, most: int, duplicate: Callable[[int, list[int]], bool] = lambda i, chosen: False
) -> list[int]:
    """Greedy choice, in order, of states with energy outside the span of those chosen before.

    Args:
        states: `[n, N]` of +-1.
        most: most that are chosen.
        duplicate: whether state `i` is one of those chosen, by another measure.
    """
    n, keep = states.shape[1], list[int]()
    basis = torch.zeros(n, 0, dtype=torch.float64, device=states.device)
    for i, state in enumerate(states):
        if len(keep) == most:
            break
        if keep and duplicate(i, keep):
            continue
        row = state.double()
        rest = row - basis @ (basis.T @ row)
        if float(rest @ rest) / n < RESIDUAL:
            continue
        rest = rest - basis @ (basis.T @ rest)
        basis = torch.cat([basis, (rest / rest.norm())[:, None]], 1)
        keep.append(i)
    return keep
