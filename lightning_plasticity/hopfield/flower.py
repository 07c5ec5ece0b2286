"""The federation over a network, with Flower's message API (`pip install 'lightning-plasticity[federated]'`).

Two thin adapters over `client_step` and `server_step`: `client_app` makes what a SuperNode runs, and
`federation_strategy` what a ServerApp starts; `recipes/flower_hopfield` is an app made of both. Each message
down carries the memory as clients need it and the settings, each message up a contribution. The server
inspects every contribution before it counts (`combine`), so that a client can send what it likes.

A round takes what arrives: a client that is late, gone, broken or lying is left out, and reported. Two
exchanges make a round; a client that drops out between them does no harm.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lightning_plasticity.hopfield.client import client_step
from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.federation import combine
from lightning_plasticity.hopfield.flower_records import (
    flower,
    pack_broadcast,
    pack_contribution,
    pack_tensors,
    unpack_broadcast,
    unpack_contribution,
)
from lightning_plasticity.hopfield.memory import Memory
from lightning_plasticity.hopfield.messages import Contribution
from lightning_plasticity.hopfield.privacy import DifferentialPrivacy
from lightning_plasticity.hopfield.safety import LESS_PRIVATE, rejection
from lightning_plasticity.hopfield.server import server_step

log = logging.getLogger("flwr")

Examples = Callable[[int, int, Any], Tensor]


def client_app(examples: Examples, dp: DifferentialPrivacy | None = None, min_examples: int = 1) -> Any:
    """Makes the ClientApp of a federation.

    Settings come with every message, from a server that may be wrong or worse. `dp` and `min_examples` are
    what this client insists on. They hold for each run that the server starts, as a client has no memory of
    earlier ones, and a server that lies about the number of the round gets more answers than were agreed.

    Args:
        examples: `(client, round, context) -> X [M, N]` of +-1, `M = 0` for nothing; `client` is the
            SuperNode's `partition-id`, `context` Flower's. It is called in both exchanges of a round, in
            processes of their own, and must give the same both times.
        dp: the least privacy that this client accepts. A message whose settings spend more (or fix the seed
            of the noise, where this one does not) is refused, which the server reports.
        min_examples: fewer stay at home, whatever the server's own minimum.

    Returns:
        A `flwr.clientapp.ClientApp`.

    Raises:
        ModuleNotFoundError: if Flower is missing.
    """
    flwr, app = flower("app"), flower("clientapp").ClientApp()

    @app.train()  # type: ignore[untyped-decorator, unused-ignore]
    def train(message: Any, context: Any) -> Any:
        config, memory = unpack_broadcast(message.content)
        if "partition-id" not in context.node_config:
            raise ValueError("start each SuperNode with --node-config 'partition-id=<its number>'")
        client = int(context.node_config["partition-id"])
        contribution: Contribution
        if dp is not None and not dp.is_kept_by(config.dp):
            contribution = rejection(LESS_PRIVATE, memory, config, client)
        else:
            own = examples(client, memory.round, context)
            config = replace(config, min_examples=max(min_examples, config.min_examples))
            contribution = client_step(own, memory, config, client_id=client)
        return flwr.Message(pack_contribution(contribution, client), reply_to=message)

    return app


def federation_strategy(
    neurons: int,
    config: FederationConfig | None = None,
    *,
    memory: Memory | None = None,
    min_clients: int = 2,
    patience: float = 4.0,
    round_interval: float = 0.0,
    on_round: Callable[[Memory], None] | None = None,
) -> Any:
    """Makes the strategy that a ServerApp starts: `strategy.start(grid, num_rounds=24)`.

    Args:
        neurons: `N`.
        config: of the federation; clients get it with every message.
        memory: of an earlier run, to go on from; None starts afresh.
        min_clients: SuperNodes to wait for before the first round.
        patience: an exchange ends when all have answered, or after so many times the time in which half of
            them have: who is later is left out of the round.
        round_interval: seconds at least from the start of a round to the start of the next.
        on_round: called with the memory after each round, to save or print it.

    Returns:
        A `flwr.serverapp.strategy.Strategy`; its `memory` is what the federation knows.

    Raises:
        ValueError: if a setting is out of range.
        ModuleNotFoundError: if Flower is missing.
    """
    base = flower("serverapp.strategy").Strategy
    kind = type("FederatedHopfieldStrategy", (_Rounds, base), {"__doc__": _Rounds.__doc__})
    return kind(
        neurons, config or FederationConfig(), memory, min_clients, patience, round_interval, on_round
    )


class _Rounds:
    """Flower's strategy for a federated Hopfield memory: two exchanges a round, each a sum of contributions.

    Attributes:
        memory: what the federation knows.
        participants: clients whose contributions arrived, for each exchange.
    """

    poll = 0.1  # seconds between two looks for replies; Flower's own loop waits three

    def __init__(
        self,
        neurons: int,
        config: FederationConfig,
        memory: Memory | None,
        min_clients: int,
        patience: float,
        round_interval: float,
        on_round: Callable[[Memory], None] | None,
    ) -> None:
        if min_clients < 1:
            raise ValueError(f"min_clients={min_clients} must be at least 1")
        if patience < 1:
            raise ValueError(f"patience={patience} must be at least 1")
        if round_interval < 0:
            raise ValueError(f"round_interval={round_interval} must not be negative")
        if memory is not None and memory.neurons != neurons:
            raise ValueError(f"neurons={neurons}: the memory given has {memory.neurons}")
        self.config, self.memory = config, memory or Memory.empty(neurons, config)
        self.min_clients, self.patience = min_clients, patience
        self.round_interval, self.on_round = round_interval, on_round
        self.participants: list[list[int]] = []
        self._holders: dict[int, int] = {}  # client -> the node that speaks for it
        self._asked: list[int] = []  # nodes of exchange 1: those that answered in exchange 0

    def summary(self) -> None:
        """Logs the settings."""
        log.info("\t└── %s, N=%d", self.config, self.memory.neurons)

    def start(self, grid: Any, num_rounds: int = 3, timeout: float = 600.0) -> Any:
        """Runs rounds.

        Args:
            grid: Flower's.
            num_rounds: how many.
            timeout: most seconds that an exchange takes, and that `min_clients` may take to connect.

        Returns:
            Flower's `Result`, with the archetypes and every round's metrics.

        Raises:
            TimeoutError: if too few SuperNodes connect before the first round.
        """
        result = flower("serverapp.strategy").Result()
        self.summary()
        self._wait_for_clients(grid, timeout)
        for number in range(1, num_rounds + 1):
            began = time.monotonic()
            log.info("[ROUND %d/%d]", number, num_rounds)
            for _ in range(2):
                messages = self.configure_train(number, None, None, grid)
                result.arrays, metrics = self.aggregate_train(number, self._exchange(grid, messages, timeout))
            result.train_metrics_clientapp[number] = metrics
            log.info("\t└── %s", dict(metrics))
            if self.on_round is not None:
                self.on_round(self.memory)
            if number < num_rounds:
                time.sleep(max(0.0, self.round_interval - (time.monotonic() - began)))
        return result

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> list[Any]:
        """The next exchange's messages: the memory and the settings, the same for all."""
        flwr = flower("app")
        if self.memory.exchange == 0:
            self._asked = sorted(grid.get_node_ids())
        content = pack_broadcast(self.memory, self.config)
        return [
            flwr.Message(content, dst_node_id=node, message_type="train", group_id=str(server_round))
            for node in self._asked
        ]

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """Ends an exchange with the contributions that arrived."""
        sent = self._contributions(replies)
        self.participants.append(sorted(sent))
        self.memory = server_step(combine(sent, self.memory, self.config), self.memory, self.config)
        for client, reason in self.memory.report.rejected.items():
            log.warning("client %d is left out: %s", client, reason)
        known = {"archetypes": self.memory.archetypes, "evidence": self.memory.evidence}
        return pack_tensors(known), flower("app").MetricRecord(self._metrics())

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> list[Any]:
        """Nothing: the truth is not known, so there is nothing to evaluate."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Any]) -> None:
        """Nothing, likewise."""

    def _metrics(self) -> dict[str, float]:
        report, here = self.memory.report, ~self.memory.report.plasticity.isnan()
        return {
            "archetypes": len(self.memory.archetypes),
            "outliers": report.outliers,
            "clients": int(here.sum()),
            "rejected": len(report.rejected),
            "entropy": float(report.entropy[here].nanmean().nan_to_num()),
            "plasticity": float(report.plasticity.nanmean().nan_to_num()),
        }

    def _wait_for_clients(self, grid: Any, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while (there := len(list(grid.get_node_ids()))) < self.min_clients:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"min_clients={self.min_clients}: only {there} SuperNodes after {timeout} s"
                )
            time.sleep(self.poll)

    def _exchange(self, grid: Any, messages: list[Any], timeout: float) -> list[tuple[int, Any]]:
        """Sends, and collects replies by node until all have come, or those still missing are too late."""
        waiting = dict(zip(grid.push_messages(messages), self._asked, strict=True)) if messages else {}
        waiting.pop(None, None)  # messages that the SuperLink did not take
        replies, half = list[tuple[int, Any]](), -(-len(waiting) // 2)
        began, ends = time.monotonic(), timeout
        while waiting and (elapsed := time.monotonic() - began) < ends:
            for reply in grid.pull_messages(list(waiting)):
                replies.append((waiting.pop(reply.metadata.reply_to_message_id), reply))
                if len(replies) == half:
                    ends = min(timeout, self.patience * max(elapsed, 1.0))
            time.sleep(self.poll if waiting else 0.0)
        if waiting:
            log.warning("%d of %d clients did not answer in %.0f s", len(waiting), len(messages), ends)
        self._asked = [node for node, _ in replies]
        return replies

    def _contributions(self, replies: Iterable[tuple[int, Any]]) -> dict[int, Mapping[str, Tensor]]:
        """Contributions by client, from at most one node for each."""
        sent = dict[int, Mapping[str, Tensor]]()
        nodes = dict[int, int]()
        for node, reply in sorted(replies, key=lambda pair: pair[0]):
            if reply.has_error():
                log.warning("node %d failed: %s", node, reply.error.reason)
                continue
            client, contribution = unpack_contribution(reply.content)
            if not 0 <= client < self.config.max_clients:
                log.warning("node %d is left out: it calls itself client %d", node, client)
            elif client in sent and self._holders.get(client) != node:
                log.warning("node %d is left out: client %d is node %d", node, client, nodes[client])
            else:
                sent[client], nodes[client] = contribution, node
        self._holders |= nodes
        return sent
