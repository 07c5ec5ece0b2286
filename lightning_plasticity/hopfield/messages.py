"""The fixed shapes of what clients send, and the basis that an exchange multiplies operators with."""

import torch
from torch import Tensor

from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.memory import Memory
from lightning_plasticity.hopfield.operators import shared_basis

COLUMNS = ("examples", "noise", "gate", "novelty", "drive", "weight", "rejected", "stamp")  # of the table
FINGERPRINT = 4  # further columns: numbers by which a repeated batch is known
WIDTH = len(COLUMNS) + FINGERPRINT

Contribution = dict[str, Tensor]


def column(name: str) -> int:
    """Index of a column of the table of clients."""
    return COLUMNS.index(name)


def stamp(memory: Memory) -> float:
    """A number that tells rounds and exchanges apart, and is never 0."""
    return float(2 * memory.round + memory.exchange + 1)


def zeros(memory: Memory, config: FederationConfig, device: torch.device | str = "cpu") -> Contribution:
    """The contribution of nobody: what sums start from, and their shapes."""
    votes = config.max_archetypes if config.min_support > 1 else 0
    width = config.sketch_width(memory.neurons)
    return {
        "sketch": torch.zeros(memory.neurons, width, dtype=config.torch_dtype, device=device),
        "table": torch.zeros(config.max_clients, WIDTH, dtype=torch.float64, device=device),
        "votes": torch.zeros(config.max_clients, votes, dtype=torch.float64, device=device),
    }


def current_basis(memory: Memory, config: FederationConfig, device: torch.device | str = "cpu") -> Tensor:
    """`Q [N, s]` of the exchange that comes next: the shared random basis, then the vectors found with it."""
    if memory.exchange:
        return memory.basis.to(device)
    width = config.sketch_width(memory.neurons)
    return shared_basis(memory.neurons, width, config.seed, config.torch_dtype, torch.device(device))
