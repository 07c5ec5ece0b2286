"""A client's half of an exchange (the protocol is in `federation`)."""

import torch
from torch import Tensor

from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.controller import read_signal
from lightning_plasticity.hopfield.memory import Memory
from lightning_plasticity.hopfield.messages import (
    COLUMNS,
    FINGERPRINT,
    Contribution,
    column,
    current_basis,
    stamp,
    zeros,
)
from lightning_plasticity.hopfield.operators import LocalSpectrum, hebbian_product, local_spectrum
from lightning_plasticity.hopfield.repeats import distinct
from lightning_plasticity.hopfield.safety import TOO_FEW, inspect_basis, inspect_examples, rejection

SEEN_BY_CLIENT = 0.5  # score of an archetype in a client's own outliers from which the client votes for it


def client_step(
    examples: Tensor, memory: Memory, config: FederationConfig, *, client_id: int
) -> Contribution:
    """What one client sends in the exchange that `memory` stands at. Keeps no state of its own.

    Examples that repeat within the batch count once (`repeats.distinct`).

    Args:
        examples: `X [M, N]` of +-1, the client's batch of this round, the same in both exchanges.
        memory: as broadcast.
        config: shared settings.
        client_id: row of the table, `0 .. max_clients - 1`.

    Returns:
        `"sketch"`, `"table"` and `"votes"` (see the module), on the examples' device.

    Raises:
        ValueError: for a client_id out of range.
    """
    if not 0 <= client_id < config.max_clients:
        raise ValueError(f"client_id={client_id} must be in 0 .. max_clients - 1 = {config.max_clients - 1}")
    basis = current_basis(memory, config, examples.device)
    reason = inspect_examples(examples, memory, config) or inspect_basis(basis, config)
    if not reason and config.dp is None:  # whether one example repeats another must not show in M
        examples = distinct(examples, config.sketch_width(memory.neurons) // 2)
    if not reason and 0 < len(examples) < config.min_examples:
        reason = TOO_FEW
    if reason:
        return rejection(reason, memory, config, client_id, examples.device)
    out = zeros(memory, config, examples.device)
    if len(examples):
        row = out["table"][client_id]
        row[column("stamp")], row[column("examples")] = stamp(memory), len(examples)
        step = _answer if memory.exchange else _survey
        out["sketch"] = step(examples, basis, memory, config, client_id, out)
    return out


def _survey(
    examples: Tensor, basis: Tensor, memory: Memory, config: FederationConfig, client: int, out: Contribution
) -> Tensor:
    """Exchange 0: fills the client's row, and sketches its operator with the shared basis."""
    product, row = hebbian_product(examples, basis), out["table"][client]
    row[column("gate")], row[column("noise")] = 1.0, 1.0
    if config.dp is not None:  # nothing but the number of examples is told without noise
        return _noisy(product, len(examples), memory, config, client) * len(examples)
    known = memory.to(examples.device)
    spectrum = local_spectrum(examples, basis, product)
    signal = read_signal(examples, spectrum, known, config)
    row[column("gate")], row[column("noise")] = float(signal.gate), spectrum.bulk.noise
    row[column("novelty")], row[column("drive")] = signal.novelty, signal.drive
    row[len(COLUMNS) :] = (basis[:, :FINGERPRINT] * product[:, :FINGERPRINT]).sum(0)
    if config.min_support > 1 and len(known.pending):
        out["votes"][client, : len(known.pending)] = _votes(known.pending, spectrum)
    return product * len(examples)


def _answer(
    examples: Tensor, basis: Tensor, memory: Memory, config: FederationConfig, client: int, out: Contribution
) -> Tensor:
    """Exchange 1: the client's share of the operator, times the basis that the server found."""
    weight = float(memory.weights[client])
    out["table"][client, column("weight")] = weight
    if not weight:
        return out["sketch"]
    product = hebbian_product(examples, basis)
    if config.dp is not None:
        product = _noisy(product, len(examples), memory, config, client)
    return product * weight


def _votes(pending: Tensor, spectrum: LocalSpectrum) -> Tensor:
    """Which pending archetypes lie in the client's own outliers, `[P]` of 0 and 1."""
    score = ((pending.to(spectrum.vectors) @ spectrum.vectors) ** 2).sum(1) / pending.shape[1]
    return (score > SEEN_BY_CLIENT).double()


def _noisy(product: Tensor, examples: int, memory: Memory, config: FederationConfig, client: int) -> Tensor:
    """The product with the noise of differential privacy."""
    assert config.dp is not None
    generator = config.dp.generator(product.device, client, memory.round, memory.exchange)
    noise = torch.randn(product.shape, generator=generator, dtype=product.dtype, device=product.device)
    return product + config.dp.noise_std(examples) * noise
