"""Hebbian operators that never exist as N x N: their products with a few columns, and their spectra.

Halko, Martinsson and Tropp (2011) for sketches, Tropp et al. (2017) for the stable Nystroem form.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lightning_plasticity.hopfield.spectrum import Bulk, find_outliers

TILE = 1 << 24  # entries of a tile that are held in the dtype of computation at once
GRAM_LIMIT = 512  # up to this many examples (or neurons) a client's spectrum is exact


def hebbian_product(examples: Tensor, columns: Tensor) -> Tensor:
    """`J Q = X^T (X Q) / (N M)`, tile by tile of rows: 4 M N s flops, one read of the examples.

    Args:
        examples: `X [M, N]` of +-1, any dtype.
        columns: `Q [N, s]`; the result has its dtype.

    Returns:
        `[N, s]`.

    >>> x = torch.tensor([[1, -1, 1, 1]], dtype=torch.int8)
    >>> hebbian_product(x, torch.eye(4))[0]
    tensor([ 0.2500, -0.2500,  0.2500,  0.2500])
    """
    out = torch.zeros_like(columns)
    for tile in tiles(examples):
        rows = tile.to(columns.dtype)
        out.addmm_(rows.T, rows @ columns)
    return out / max(examples.numel(), 1)


def tiles(examples: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of the examples, small enough to be converted one at a time."""
    across = max(1, examples.numel() // max(examples.shape[dim], 1))
    parts: tuple[Tensor, ...] = torch.split(examples, max(1, TILE // across), dim=dim)
    return parts


def energy(examples: Tensor, columns: Tensor) -> float:
    """`||X B||^2 / (N M)`: share of the operator's trace inside orthonormal columns `B [N, b]`."""
    parts = [((tile.to(columns.dtype) @ columns) ** 2).sum() for tile in tiles(examples)]
    return float(torch.stack(parts).sum()) / examples.numel()


@lru_cache(maxsize=2)
def _basis(neurons: int, width: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(neurons, width, generator=generator, dtype=dtype)
    basis: Tensor = torch.linalg.qr(normal)[0]
    return basis


def shared_basis(neurons: int, width: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`Omega [N, s]`, random orthonormal columns that all make for themselves from the shared seed."""
    return _basis(neurons, width, seed, dtype).to(device)


def nystrom(product: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues of a positive operator `D` from `Y = D Q`.

    One pass from a random basis is biased low where noise is flat; a second one, from the vectors found,
    is exact to a few per cent.

    Args:
        product: `Y [N, s]`.
        basis: `Q [N, s]`, orthonormal.

    Returns:
        `U [N, k]` orthonormal, `lambda [k]` descending, k <= s; in float64, or float32 for a float32 product
        (the s x s core is always float64).
    """
    eps = torch.finfo(product.dtype).eps
    shift = math.sqrt(product.shape[0]) * eps * float(product.norm()) + torch.finfo(product.dtype).tiny
    shifted = product + shift * basis
    core = (basis.T @ shifted).double()
    values, rotation = torch.linalg.eigh((core + core.T) / 2)
    keep = values > values[-1] * 100 * eps
    half = rotation[:, keep] / values[keep].clamp(min=1e-300).sqrt()
    # SVD of Y C^-1/2 through its small Gram matrix would square the condition number; QR first does not.
    q, r = torch.linalg.qr(shifted @ half.to(product.dtype))
    left, singular, _ = torch.linalg.svd(r.double())
    return q @ left.to(product.dtype), (singular**2 - shift).clamp(min=0)


def countable(values: Tensor, width: int) -> int:
    """Most outliers that a sketch can tell: two columns watch the noise, unless it holds the operator."""
    return len(values) if len(values) < width else max(1, width - 2)


@dataclass(frozen=True)
class LocalSpectrum:
    """What a client sees by itself: outliers of its own operator above its own noise.

    Attributes:
        eigenvalues: `[k]` descending, all that were computed.
        vectors: `[N, K]` eigenvectors of the outliers.
        bulk: number of outliers `K`, edge and noise.
        factor: `[N, k]` with `J = F F^T` to the rank computed, or None where the Gram matrix is at hand.
        gram: `X X^T / (N M)` or `X^T X / (N M)`, the smaller one, or None where both are large.
    """

    eigenvalues: Tensor
    vectors: Tensor
    bulk: Bulk
    factor: Tensor | None = None
    gram: Tensor | None = None


def local_spectrum(examples: Tensor, basis: Tensor, product: Tensor | None = None) -> LocalSpectrum:
    """Spectrum of one client's operator: exact from the smaller Gram matrix, or two passes of a sketch.

    Args:
        examples: `X [M, N]` of +-1.
        basis: `Omega [N, s]`, where both sides of `X` exceed `GRAM_LIMIT`.
        product: `J Omega`, if it is known already.
    """
    m, n = examples.shape
    size = torch.tensor([float(m)])
    most = max(1, min(m, n) // 2)
    if min(m, n) > GRAM_LIMIT:
        vectors, _ = nystrom(hebbian_product(examples, basis) if product is None else product, basis)
        vectors, values = nystrom(hebbian_product(examples, vectors), vectors)
        bulk = find_outliers(values, n, size, most=min(most, countable(values, basis.shape[1])))
        return LocalSpectrum(values, vectors[:, : bulk.outliers], bulk, vectors * values.sqrt().to(vectors))
    small = gram(examples)
    values, rotation = torch.linalg.eigh(small)
    values, rotation = values.flip(0).clamp(min=0), rotation.flip(1)
    bulk = find_outliers(values, n, size, most=most)
    top = rotation[:, : bulk.outliers]
    if m <= n:
        top = torch.cat([tile.T.double() @ top for tile in tiles(examples, dim=1)])
        top = top / (values[: bulk.outliers] * n * m).clamp(min=1e-300).sqrt()
    return LocalSpectrum(values, top.to(basis.dtype), bulk, gram=small)


def gram(examples: Tensor) -> Tensor:
    """`X X^T / (N M)` or `X^T X / (N M)`, whichever is smaller: same eigenvalues, float64."""
    m, n = examples.shape
    x = examples if m <= n else examples.T
    out = torch.zeros(x.shape[0], x.shape[0], dtype=torch.float64, device=examples.device)
    for tile in tiles(x, dim=1):
        wide = tile.double()
        out.addmm_(wide, wide.T)
    return out / max(examples.numel(), 1)


def residual_eigenvalues(examples: Tensor, spectrum: LocalSpectrum, known: Tensor) -> Tensor:
    """Eigenvalues, descending, of a client's operator outside the orthonormal columns of `known [N, b]`."""
    if spectrum.factor is not None:
        b = known.to(spectrum.factor)
        outside = spectrum.factor - b @ (b.T @ spectrum.factor)
        return _descending((outside.T @ outside).double())
    assert spectrum.gram is not None
    (m, n), b = examples.shape, known.double()
    if m <= n:
        inside = torch.cat([tile.double() @ b for tile in tiles(examples)])
        outside = spectrum.gram - inside @ inside.T / (n * m)
    else:
        half = spectrum.gram - b @ (b.T @ spectrum.gram)
        outside = half - (half @ b) @ b.T
    return _descending(outside)


def _descending(symmetric: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(symmetric)
    return values.flip(0)
