"""One round of a federation: two exchanges, each a sum over clients of tensors of fixed shapes.

The whole protocol::

    for _ in range(2):                                  # memory.exchange is 0, then 1
        sent = {c: client_step(examples[c], memory, config, client_id=c) for c in clients}
        total = combine(sent, memory, config)           # or a plain sum, or all_reduce(SUM) of each tensor
        memory = server_step(total, memory, config)     # the same memory on whoever runs it

`memory` goes to the clients (`memory.for_clients()` holds all that they need), contributions come back. A
contribution is a dict of three tensors, of the same shapes in both exchanges and for every client:

- `"sketch" [N, s]`, `config.dtype`. Exchange 0: `M_c J_c Omega`, with the basis `Omega` that all make from
  the shared seed. Exchange 1: `weight_c J_c Q`, with `Q = memory.basis` and the share `weight_c` that the
  server gave the client (`memory.weights`).
- `"table" [max_clients, F]`, float64, zero but for row `client_id`: columns `messages.COLUMNS` and a
  fingerprint.
- `"votes" [max_clients, max_archetypes]` (`[max_clients, 0]` for `min_support=1`), float64, zero but for row
  `client_id`: which pending archetypes the client sees in its own data.

So sums of contributions are contributions of groups of clients, in any order: ranks may host several clients
and all-reduce their sums. A client that has no data contributes zeros; one whose data is not usable (NaN, not
+-1, too few) contributes zeros but for the reason in its row. A client that drops out between the exchanges
does no harm: the server counts the shares that arrived. Plain sums are all that secure aggregation needs too;
only a server that sees messages one by one can check them (`combine`).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_plasticity.hopfield.client import client_step
from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.memory import Memory
from lightning_plasticity.hopfield.messages import Contribution, column, current_basis, stamp, zeros
from lightning_plasticity.hopfield.safety import MALFORMED, counted_sizes, inspect_contribution
from lightning_plasticity.hopfield.server import server_step

__all__ = ["Contribution", "client_step", "combine", "current_basis", "federate", "server_step", "zeros"]


def federate(
    clients: Sequence[Tensor], memory: Memory | None = None, config: FederationConfig | None = None
) -> Memory:
    """One whole round in this process.

    Args:
        clients: `X_c [M_c, N]` of +-1, one tensor a client; `[0, N]` for a client without data.
        memory: from earlier rounds; None starts afresh.
        config: the same in every round.

    Returns:
        The memory after the round; `report` says what happened to each client.

    Raises:
        ValueError: for no clients, more than `config.max_clients`, or if the examples of none can be used.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> archetypes = torch.randn(3, 200, generator=generator).sign()
    >>> def examples(which):            # 80 noisy copies, 15 % of the entries flipped
    ...     flips = torch.rand(80, 200, generator=generator) < 0.15
    ...     return archetypes[which].repeat(80 // len(which), 1) * (1 - 2 * flips.float())
    >>> memory = federate([examples([0, 1]), examples([2])])
    >>> (memory.archetypes.float() @ archetypes.T / 200).abs().amax(0)        # K = 3 was not told
    tensor([1., 1., 1.])
    """
    config = config or FederationConfig()
    if not 1 <= len(clients) <= config.max_clients:
        raise ValueError(f"{len(clients)} clients: give between 1 and max_clients={config.max_clients}")
    memory = memory or Memory.empty(_neurons(clients), config)
    for _ in range(2):
        sent = [client_step(examples, memory, config, client_id=c) for c, examples in enumerate(clients)]
        memory = server_step(combine(sent, memory, config), memory, config)
    _require_any(memory, len(clients))
    return memory


def _require_any(memory: Memory, clients: int) -> None:
    """In one process data of which none can be used are a mistake, not an attack."""
    rejected = memory.report.rejected
    if len(rejected) == clients and set(rejected.values()) <= set(MALFORMED):
        reasons = "; ".join(f"{client}: {reason}" for client, reason in rejected.items())
        raise ValueError(f"clients: no examples can be used, of client {reasons}")


def _neurons(clients: Sequence[Tensor]) -> int:
    widths = [x.shape[1] for x in clients if x.dim() == 2]
    if not widths:
        raise ValueError("no client has examples of shape [M, N]")
    return max(set(widths), key=widths.count)  # a mis-shaped client must not decide


def combine(
    contributions: Sequence[Mapping[str, Tensor]] | Mapping[int, Mapping[str, Tensor]],
    memory: Memory,
    config: FederationConfig,
) -> Contribution:
    """Sums the messages of single clients, dropping and reporting those that cannot be what they claim.

    Args:
        contributions: of clients 0, 1, ... in order, or by client.
        memory: as broadcast.
        config: shared settings.
    """
    items = contributions.items() if isinstance(contributions, Mapping) else enumerate(contributions)
    sent = dict(sorted(items))
    total = zeros(memory, config, next((c["sketch"].device for c in sent.values() if "sketch" in c), "cpu"))
    basis = current_basis(memory, config, total["sketch"].device)
    good = dict[int, Mapping[str, Tensor]]()
    for client, contribution in sent.items():
        reason = inspect_contribution(contribution, client, basis, memory, config)
        if reason:
            total["table"][client, column("rejected")] = reason
            total["table"][client, column("stamp")] = stamp(memory)
        else:
            good[client] = contribution
    for message in good.values():
        total["table"] += message["table"]
        total["votes"] += message["votes"]
    share = torch.ones(config.max_clients, dtype=torch.float64)
    if not memory.exchange:  # a sketch is as large as the size that its client claims
        sizes = total["table"][:, column("examples")]
        counted = counted_sizes(sizes, config.pull_cap)
        share = torch.where(sizes > 0, counted / sizes, 1.0)
        sizes.copy_(counted)
    for client, message in good.items():
        total["sketch"] += float(share[client]) * message["sketch"]
    return total
