"""Who takes part in a round, and with what share of the operator."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_plasticity.entropy import binary_entropy
from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.memory import Memory, RoundReport
from lightning_plasticity.hopfield.messages import COLUMNS, column
from lightning_plasticity.hopfield.safety import REASONS, REPEAT, counted_sizes

REMEMBERED_FINGERPRINTS = 1000
CLOSE = 1e-6  # relative distance of two fingerprints that are one


@dataclass(frozen=True)
class Plan:
    """`weights [C]`, shares of the operator after the round; `plasticity [C]`, `w_c` (NaN: not there)."""

    weights: Tensor
    plasticity: Tensor


def participants(table: Tensor, memory: Memory, config: FederationConfig) -> Tensor:
    """The table without clients that are rejected or repeat themselves (or others), sizes capped.

    A batch that counted before is no new evidence, whether replayed in malice or by a client whose data do
    not change. What a client says of its size counts up to `pull_cap` for all that the server makes of it:
    shares, the plasticity of averaging, the edge of noise.

    Args:
        table: `[C, F]` summed over clients.
        memory: with earlier fingerprints.
        config: with the cap.
    """
    table, known = table.clone(), memory.fingerprints
    table[table[:, column("rejected")] != 0, : column("rejected")] = 0
    table[:, column("examples")] = counted_sizes(table[:, column("examples")], config.pull_cap)
    for client in table[:, column("examples")].nonzero().flatten().tolist():
        own = table[client, len(COLUMNS) :]
        if not bool(own.any()):  # with differential privacy nobody sends one
            continue
        if bool(((known - own).norm(dim=1) < CLOSE * own.norm()).any()):
            table[client, : column("rejected")] = 0
            table[client, column("rejected")] = REPEAT
        else:
            known = torch.cat([known, own[None]])
    return table


def remember(memory: Memory, arrived: Tensor) -> Tensor:
    """Fingerprints `[R, 4]` with those of the clients whose share `arrived [C]` counts in the operator."""
    own = memory.table[arrived > 0, len(COLUMNS) :]
    return torch.cat([memory.fingerprints, own[own.any(1)]])[-REMEMBERED_FINGERPRINTS:]


def plan(table: Tensor, memory: Memory, config: FederationConfig) -> Plan:
    """Plasticity and share of every client: `wbar alpha_c = M_c w_c / sum M` over clients with signal.

    Args:
        table: of the participants.
        memory: with the groups of earlier rounds.
        config: of the controller.
    """
    size, drive = table[:, column("examples")], table[:, column("drive")].clamp(0, 1)
    here, gate = size > 0, (table[:, column("gate")] > 0) & (size > 0)
    if not bool(here.any()):
        return Plan(torch.zeros_like(size), torch.full_like(size, torch.nan))
    if not bool(gate.any()):  # nobody sees anything alone: pool all, the edge of the whole decides
        gate = here
    w = _plasticity(drive, float(size.sum()), memory, config)
    w = torch.where(
        memory.plasticity.isnan(), w, config.smoothing * w + (1 - config.smoothing) * memory.plasticity
    )
    pull = size * gate * w
    total = pull.sum() if not len(memory.groups) else (size * gate).sum()
    weights = pull / total if float(total) > 0 else torch.zeros_like(size)
    return Plan(weights, torch.where(here, torch.where(gate, w, 0.0), torch.nan))


def _plasticity(drive: Tensor, examples: float, memory: Memory, config: FederationConfig) -> Tensor:
    """`w_c [C]` before smoothing; `w_0` is what plain averaging over all examples so far would give."""
    if not isinstance(config.controller, str):
        return torch.full_like(drive, float(config.controller))
    if config.controller != "spectral_entropy":
        return drive
    past = effective_examples(memory)
    floor = examples / (examples + min(past, config.horizon * examples))
    return floor + max(config.w_max - floor, 0.0) * drive


def effective_examples(memory: Memory) -> float:
    """`M_eff = (sum omega)^2 / sum(omega^2 / M)` of the operator so far, 0 at the start."""
    if not len(memory.groups):
        return 0.0
    size, weight, _ = memory.groups.T
    return float(weight.sum() ** 2 / (weight**2 / size).sum())


def first_report(table: Tensor, planned: Plan, last: RoundReport) -> RoundReport:
    """What exchange 0 tells of the round; of the operator, the last report is still true."""
    here = table[:, column("examples")] > 0
    novelty = torch.where(here, table[:, column("novelty")], torch.nan)
    codes = table[:, column("rejected")]
    return replace(
        last,
        plastic_share=0.0,
        plasticity=planned.plasticity,
        entropy=binary_entropy(1 - novelty / 2),
        novelty=novelty,
        examples=table[:, column("examples")],
        weights=planned.weights,
        rejected={int(c): REASONS[int(codes[c])] for c in codes.nonzero().flatten()},
    )
