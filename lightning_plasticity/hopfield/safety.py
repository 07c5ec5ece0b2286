"""What is wrong with a client's data or message. Bad ones are dropped and reported; a round never crashes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.memory import Memory
from lightning_plasticity.hopfield.messages import Contribution, column, stamp, zeros
from lightning_plasticity.hopfield.operators import tiles

REASONS = (  # the code in a table's "rejected" column is the index here
    "",
    "examples are not a matrix of N columns",
    "examples hold NaN or infinity",
    "examples are not all +1 or -1",
    "fewer examples than min_examples",
    "a repeat of an earlier contribution",
    "the budget of differential privacy is spent",
    "message is not of the fixed shapes and dtypes",
    "message holds NaN or infinity",
    "message is of another round or exchange",
    "message writes into another client's row",
    "operator is not symmetric and positive, or exceeds the client's share; or numbers out of range",
    "the server asks for less privacy than the client insists on",
    "basis is not orthonormal: an answer would cost more privacy than was agreed",
)
MALFORMED = REASONS[1:4]  # data that a caller has made wrongly
TOO_FEW, REPEAT, LESS_PRIVATE, STRETCHED = 4, 5, 12, 13


def counted_sizes(claimed: Tensor, pull_cap: float) -> Tensor:
    """Clients' sizes `[C]` as they count: each at most `pull_cap` times that of the median client present.

    Of an even number of clients the smaller of the two in the middle is the median, so that one of two
    cannot lift the bound.

    >>> counted_sizes(torch.tensor([60.0, 0.0, 1e6]), pull_cap=10.0).tolist()
    [60.0, 0.0, 600.0]
    """
    here = claimed[claimed > 0]
    return claimed.clamp(max=pull_cap * float(here.median())) if len(here) else claimed


def rejection(
    reason: int,
    memory: Memory,
    config: FederationConfig,
    client_id: int,
    device: torch.device | str = "cpu",
) -> Contribution:
    """The contribution of a client that sends nothing but why."""
    out = zeros(memory, config, device)
    out["table"][client_id, column("rejected")] = reason
    out["table"][client_id, column("stamp")] = stamp(memory)
    return out


def inspect_basis(basis: Tensor, config: FederationConfig) -> int:
    """Code of what is wrong with a basis that a server asks a client to multiply with; 0 for nothing.

    Sensitivity is that of columns which stretch nothing, `||Q||_2 <= 1`: checked where it bounds privacy.
    """
    if config.dp is None:
        return 0
    gram = basis.double().T @ basis.double()
    finite = bool(torch.isfinite(gram).all())
    return 0 if finite and float(torch.linalg.eigvalsh(gram)[-1]) <= 1 + 1e-4 else STRETCHED


def inspect_examples(examples: Tensor, memory: Memory, config: FederationConfig) -> int:
    """Code of what is wrong with a client's batch; 0 for nothing (an empty one is normal)."""
    if examples.dim() != 2 or examples.shape[1] != memory.neurons:
        return 1
    if examples.is_floating_point() and not all(bool(torch.isfinite(tile).all()) for tile in tiles(examples)):
        return 2
    if examples.dtype == torch.bool or examples.is_complex():
        return 3
    if not all(bool((tile.abs() == 1).all()) for tile in tiles(examples)):
        return 3
    if config.dp is not None and memory.round >= config.dp.rounds:
        return 6
    return 0


def inspect_contribution(
    contribution: Mapping[str, Tensor],
    client_id: int,
    basis: Tensor,
    memory: Memory,
    config: FederationConfig,
) -> int:
    """Code of what is wrong with one client's message, for a server that sees messages one by one.

    A sketch `w J Q` of a Hebbian operator has `Q^T w J Q` symmetric and positive, of trace at most `w`, and
    norm at most `w`: one client cannot pull harder than the share `w` that is its own.

    Args:
        contribution: as `client_step` makes it.
        client_id: who sent it.
        basis: `Q` of this exchange.
        memory: as broadcast.
        config: of the federation.
    """
    if _forms(contribution) != _forms(zeros(memory, config, "meta")):
        return 7
    if not all(bool(torch.isfinite(value).all()) for value in contribution.values()):
        return 8
    row = contribution["table"][client_id]
    others = torch.arange(config.max_clients, device=row.device) != client_id
    if bool(contribution["table"][others].any()) or bool(contribution["votes"][others].any()):
        return 10
    if not bool(contribution["table"].any()):
        return 0 if not bool(contribution["sketch"].any()) else 11
    if float(row[column("stamp")]) != stamp(memory):
        return 9
    if float(row[column("rejected")]):
        return 0 if not bool(contribution["sketch"].any()) else 11
    return 0 if _is_share(contribution["sketch"], row, client_id, basis, memory, config) else 11


def _forms(contribution: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype, torch.layout]]:
    return {name: (value.shape, value.dtype, value.layout) for name, value in contribution.items()}


def _is_share(
    sketch: Tensor, row: Tensor, client_id: int, basis: Tensor, memory: Memory, config: FederationConfig
) -> bool:
    """Whether a sketch can be that of a Hebbian operator times the client's share."""
    examples = float(row[column("examples")])
    shares = [float(row[column(name)]) for name in ("noise", "gate", "novelty", "drive")]
    if memory.exchange == 0 and not (examples >= 1 and examples == int(examples)):
        return False
    if not all(0 <= value <= 1 for value in shares):
        return False
    share = examples
    if memory.exchange:  # what counts is what the server knows, not what a client claims a second time
        examples, share = float(memory.table[client_id, column("examples")]), float(memory.weights[client_id])
    noise = 0.0
    if config.dp is not None:  # noise is no operator: leave it room, six deviations of its largest value
        std = config.dp.noise_std(max(int(examples), 1))
        noise = 6 * std * (memory.neurons**0.5 + sketch.shape[1] ** 0.5)
    core = (basis.T.to(sketch) @ sketch).double() / max(share, 1e-300)
    slack = noise + (1e-8 if sketch.dtype == torch.float64 else 1e-4)
    values = torch.linalg.eigvalsh((core + core.T) / 2)
    return (
        float((core - core.T).abs().max()) <= slack
        and float(values[0]) >= -slack
        and float(core.trace()) <= 1 + slack * sketch.shape[1]
        and float(sketch.norm()) <= share * (1 + slack * sketch.shape[1] ** 0.5)
    )
