"""The server's half of an exchange (the protocol is in `federation`)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.consolidation import consolidate, count_votes, find_archetypes
from lightning_plasticity.hopfield.memory import Memory, RoundReport
from lightning_plasticity.hopfield.messages import column, current_basis, zeros
from lightning_plasticity.hopfield.operators import countable, nystrom
from lightning_plasticity.hopfield.privacy import clean_eigenvalue
from lightning_plasticity.hopfield.rounds import first_report, participants, plan, remember
from lightning_plasticity.hopfield.safety import REASONS
from lightning_plasticity.hopfield.spectrum import find_outliers

FORGOTTEN = 1e-4  # weight below which an old round no longer counts as a group of the operator


def server_step(total: Mapping[str, Tensor], memory: Memory, config: FederationConfig) -> Memory:
    """The server's half of an exchange, from the sum of all contributions alone; the same on every rank.

    After exchange 0 it decides on each client's share and sends the basis for exchange 1; after exchange 1 it
    updates operator and archetypes, and the round is over. A sum that is not finite (only possible where
    messages are not checked one by one) counts as a round without clients.

    Args:
        total: sum of the contributions to the exchange that `memory` stands at.
        memory: as broadcast for it.
        config: shared settings.

    Returns:
        The memory to broadcast next.

    Raises:
        ValueError: for a total whose shapes are not those of the federation.
    """
    expected = {name: tuple(value.shape) for name, value in zeros(memory, config).items()}
    shapes = {name: tuple(total[name].shape) for name in expected if name in total}
    if shapes != expected:
        raise ValueError(f"total has shapes {shapes}, but this memory and config need {expected}")
    if not all(bool(torch.isfinite(value).all()) for value in total.values()):
        total = zeros(memory, config, total["sketch"].device)
    memory = memory.to(total["sketch"].device)
    return _finish(total, memory, config) if memory.exchange else _prepare(total, memory, config)


def _prepare(total: Mapping[str, Tensor], memory: Memory, config: FederationConfig) -> Memory:
    """After exchange 0: who takes part with which weight, and a basis of what they show."""
    table = total["table"].cpu()
    memory = count_votes(memory, total["votes"].cpu(), config)
    table = participants(table, memory, config)
    planned = plan(table, memory, config)
    basis = current_basis(memory, config, total["sketch"].device)
    examples = float(table[:, column("examples")].sum())
    share = float(planned.weights.sum())
    product = share / max(examples, 1.0) * total["sketch"] + (1 - share) * _remembered(memory, basis)
    found = nystrom(product, basis)[0] if bool(product.any()) else basis[:, :0]
    padded = torch.nn.functional.pad(found, (0, basis.shape[1] - found.shape[1]))
    return replace(
        memory,
        exchange=1,
        basis=padded,
        weights=planned.weights,
        table=table,
        plasticity=torch.where(planned.plasticity.isnan(), memory.plasticity, planned.plasticity),
        report=first_report(table, planned, memory.report),
    )


def _remembered(memory: Memory, columns: Tensor) -> Tensor:
    """`D Q` of the operator so far."""
    scaled = memory.eigenvalues.to(memory.vectors)[:, None] * (memory.vectors.T @ columns)
    return memory.vectors @ scaled


def _finish(total: Mapping[str, Tensor], memory: Memory, config: FederationConfig) -> Memory:
    """After exchange 1: the new operator, its outliers, and what they teach the memory."""
    table, first = total["table"].cpu(), not len(memory.groups)
    arrived = _arrived(memory, table)
    share = float(arrived.sum())
    ended = replace(
        memory,
        exchange=0,
        round=memory.round + 1,
        basis=memory.basis[:, :0],
        weights=torch.zeros_like(memory.weights),
        table=memory.table[:, :0],
        report=_late_report(memory, table),
    )
    if share <= 0:
        return ended
    scale, share = (1 / share, 1.0) if first else (1.0, min(share, 1.0))
    product = scale * total["sketch"] + (1 - share) * _remembered(memory, memory.basis)
    examples, noise = memory.table[:, column("examples")], memory.table[:, column("noise")]
    fresh = torch.stack([examples, scale * arrived, noise], 1)[arrived > 0]
    old = memory.groups * torch.tensor([1.0, 1 - share, 1.0], dtype=torch.float64)
    groups = torch.cat([old[old[:, 1] > FORGOTTEN], fresh])
    variance = _noise_variance(memory, fresh, 1 - share, config)
    fingerprints = remember(memory, arrived)
    ended = replace(ended, groups=groups, noise_variance=variance, fingerprints=fingerprints)
    return _learn(ended, product, memory.basis, share, config)


def _noise_variance(memory: Memory, fresh: Tensor, kept: float, config: FederationConfig) -> float:
    """Variance of the privacy noise on each entry of the operator's product."""
    if config.dp is None:
        return 0.0
    new = sum(float(w) ** 2 * config.dp.noise_std(int(m)) ** 2 for m, w, _ in fresh)
    return kept**2 * memory.noise_variance + new


def _learn(memory: Memory, product: Tensor, basis: Tensor, fresh: float, config: FederationConfig) -> Memory:
    """Spectrum of the new operator, then its archetypes."""
    n, width, std = memory.neurons, config.sketch_width(memory.neurons), memory.noise_variance**0.5
    if std:  # a noisy core is not positive, and the Nystroem form would divide by it
        vectors, singular, _ = torch.linalg.svd(product, full_matrices=False)
        values = clean_eigenvalue(singular.double(), std, n, width)
        values, order = values.sort(descending=True, stable=True)
        vectors = vectors[:, order]
    else:
        vectors, values = nystrom(product, basis)
    size, weights, noise = memory.groups.T
    most, extra = countable(values, width), std * _reach(n, width)
    bulk = find_outliers(values.cpu(), n, size, noise, weights, most=most, extra_edge=extra)
    effective = float(weights.sum() ** 2 / (weights**2 / size).sum())
    memory = replace(memory, vectors=vectors, eigenvalues=values.cpu(), outliers=bulk.outliers)
    saturated = bulk.outliers > width // 2
    if not saturated:
        found = find_archetypes(memory, bulk, effective, config)
        memory = consolidate(memory, found, fresh, config)
    report = replace(
        memory.report,
        outliers=bulk.outliers,
        edge=bulk.edge,
        noise=bulk.noise,
        effective_examples=effective,
        plastic_share=fresh,
        saturated=saturated,
    )
    return replace(memory, report=report)


def _reach(neurons: int, width: int) -> float:
    """Largest singular value of unit noise of that shape."""
    return float(neurons**0.5 + width**0.5)


def _late_report(memory: Memory, table: Tensor) -> RoundReport:
    """The report of exchange 0, with the shares that really arrived and the rejections of exchange 1."""
    codes = table[:, column("rejected")]
    late = {int(c): REASONS[int(codes[c])] for c in codes.nonzero().flatten()}
    rejected = {**late, **memory.report.rejected}
    return replace(memory.report, weights=_arrived(memory, table), rejected=dict(sorted(rejected.items())))


def _arrived(memory: Memory, table: Tensor) -> Tensor:
    """Shares `[C]` of the clients that answered, as the server gave them, not as they claim."""
    there = (table[:, column("weight")] > 0) & (table[:, column("rejected")] == 0)
    return torch.where(there, memory.weights, 0.0)
