"""The federation through Flower: its messages, its strategy on a grid of this process, and a real network."""

import dataclasses
import subprocess
import sys
import warnings

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_plasticity.data import ArchetypeStream
from lightning_plasticity.data.federation import Clients, Federation
from lightning_plasticity.data.patterns import load_archetypes
from lightning_plasticity.hopfield import (
    DifferentialPrivacy,
    FederatedHopfield,
    FederationConfig,
    Memory,
    client_step,
    combine,
    federate,
    server_step,
)
from lightning_plasticity.hopfield.flower import client_app, federation_strategy
from lightning_plasticity.hopfield.flower_records import (
    pack_broadcast,
    pack_contribution,
    unpack_broadcast,
    unpack_contribution,
)
from tests.hopfield.network import network

with warnings.catch_warnings():  # of the libraries that Flower's command line imports
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.clientapp  # noqa: F401  (which `client_app` imports later)
    from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
    from flwr.serverapp.strategy import Strategy
    from flwr.supercore.task_identity import TaskIdentity

CONFIG = FederationConfig(sketch_rank=24, max_clients=8, max_archetypes=16, min_support=2)
ARCHETYPES = load_archetypes("synthetic", 4, 120)
DATA = Federation(ARCHETYPES, Clients(3, [40, 50, 60], supports=[[0, 1], [1, 2, 3], [0, 2, 3]]))


@pytest.fixture(autouse=True)
def _identity(monkeypatch):
    """Messages carry who made them, which Flower's own processes know."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def assert_equal_memories(one, two):
    for f in dataclasses.fields(Memory):
        a, b = getattr(one, f.name), getattr(two, f.name)
        if torch.is_tensor(a):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=f.name)
        elif f.name != "report":
            assert a == b, f.name


def by_hand(rounds, present=(0, 1, 2), config=CONFIG):
    """The same federation without Flower; `present` may change from exchange to exchange."""
    memory = Memory.empty(120, config)
    each = present if isinstance(present[0], list) else [list(present)] * (2 * rounds)
    for clients in each:
        t = memory.round
        sent = {c: client_step(DATA.examples(t, c), memory, config, client_id=c) for c in clients}
        memory = server_step(combine(sent, memory, config), memory, config)
    return memory


class Grid:
    """Flower's grid without a network: replies come from ClientApps of this process.

    Args:
        nodes: node -> its `partition-id`.
        change: turns `(node, exchange, reply)` into another reply, or None for one that never comes.
    """

    def __init__(self, nodes, change=lambda node, exchange, reply: reply, **insists):
        self.nodes, self.change, self.exchange = nodes, change, 0
        self.app = client_app(lambda client, round, context: DATA.examples(round, client), **insists)
        self.replies = {}

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        names = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"{node}/{self.exchange}"
            names.append(message.metadata.message_id)
            context = Context(1, node, {"partition-id": self.nodes[node]}, RecordDict(), {})
            reply = self.change(node, self.exchange, self.app(message, context))
            if reply is not None:
                self.replies[names[-1]] = reply
        self.exchange += 1
        return names

    def pull_messages(self, names):
        return [self.replies.pop(name) for name in names if name in self.replies]


def start(grid, rounds=3, config=CONFIG, timeout=2.0, **settings):
    strategy = federation_strategy(120, config, **settings)
    return strategy, strategy.start(grid, num_rounds=rounds, timeout=timeout)


def test_a_broadcast_arrives_as_it_was_sent():
    memory = by_hand(2)
    sent = [DATA.examples(2, 0), memory, CONFIG]
    for exchange in range(2):
        config, received = unpack_broadcast(pack_broadcast(memory, CONFIG))
        assert config == CONFIG
        assert_equal_memories(received, memory.for_clients())
        own = client_step(sent[0], memory, CONFIG, client_id=0)
        theirs = client_step(sent[0], received, config, client_id=0)
        assert all(torch.equal(own[name], theirs[name]) for name in own)
        client, unpacked = unpack_contribution(pack_contribution(own, 0))
        assert client == 0
        assert all(torch.equal(own[name], unpacked[name]) for name in own)
        assert all(own[name].dtype == unpacked[name].dtype for name in own)
        if exchange == 0:
            memory = server_step(combine([own], memory, CONFIG), memory, CONFIG)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (None, False),
        (DifferentialPrivacy(8.0, rounds=3), True),
        (DifferentialPrivacy(4.0, rounds=30), True),
        (DifferentialPrivacy(8.1, rounds=3), False),
        (DifferentialPrivacy(8.0, delta=1e-9, rounds=3), True),  # spends less
        (DifferentialPrivacy(4.0, rounds=3, seed=1), False),  # noise that the server knows
    ],
)
def test_a_client_insists_on_its_privacy(asked, answered):
    config = dataclasses.replace(CONFIG, min_support=1, dp=asked)
    grid = Grid({1: 0, 2: 1}, dp=DifferentialPrivacy(8.0, rounds=3))
    memory = start(grid, rounds=1, config=config)[0].memory
    refused = {client: "less privacy" in reason for client, reason in memory.report.rejected.items()}
    assert refused == ({} if answered else {0: True, 1: True})
    assert (float(memory.report.examples.sum()) > 0) == answered


def test_a_client_keeps_what_is_fewer_than_its_own_minimum():
    memory = start(Grid({1: 0, 2: 1}, min_examples=45), rounds=1)[0].memory
    assert memory.report.rejected == {0: "fewer examples than min_examples"}
    assert float(memory.report.examples[1]) == 50


def test_rounds_through_flower_are_the_federations():
    seen = []
    strategy, result = start(Grid({11: 2, 5: 0, 7: 1}), on_round=lambda memory: seen.append(memory.round))
    assert isinstance(strategy, Strategy)
    memory = Memory.empty(120, CONFIG)
    for t in range(3):
        memory = federate([DATA.examples(t, c) for c in range(3)], memory, CONFIG)
    assert_equal_memories(strategy.memory, memory)
    assert len(memory.archetypes) == 4
    assert seen == [1, 2, 3]
    assert strategy.participants == [[0, 1, 2]] * 6
    assert torch.equal(
        torch.from_numpy(result.arrays["archetypes"].numpy().copy()), strategy.memory.archetypes
    )
    assert result.train_metrics_clientapp[3]["archetypes"] == 4
    assert result.train_metrics_clientapp[3]["clients"] == 3


def test_a_run_goes_on_from_the_memory_of_another():
    first, _ = start(Grid({5: 0, 7: 1, 11: 2}), rounds=1)
    second, _ = start(Grid({6: 0, 8: 1, 12: 2}), rounds=2, memory=first.memory)
    assert_equal_memories(second.memory, by_hand(3))


def test_who_is_late_or_gone_is_left_out():
    """Node 11 never answers after the second round; node 7 misses the second exchange of the first."""

    def change(node, exchange, reply):
        return None if (node == 11 and exchange >= 4) or (node == 7 and exchange == 1) else reply

    strategy, _ = start(Grid({5: 0, 7: 1, 11: 2}, change), patience=1.0)
    present = [[0, 1, 2], [0, 2], [0, 1, 2], [0, 1, 2], [0, 1], [0, 1]]
    assert strategy.participants == present
    assert_equal_memories(strategy.memory, by_hand(3, present))


def other(reply, content):
    return Message(content, reply_to=reply_source(reply))


def reply_source(reply):
    """A message that a new reply can answer in the same place."""
    message = Message(RecordDict(), dst_node_id=reply.metadata.src_node_id, message_type="train")
    message.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    return message


BAD = {
    "nothing": lambda reply: other(reply, RecordDict()),
    "no tensors": lambda reply: other(reply, RecordDict({"who": ConfigRecord({"client": 1})})),
    "name": lambda reply: other(reply, RecordDict({"who": ConfigRecord({"client": "one"})})),
    "number": lambda reply: other(reply, RecordDict({"who": ConfigRecord({"client": 99})})),
    "empty": lambda reply: other(
        reply, RecordDict({"who": ConfigRecord({"client": 1}), "contribution": ArrayRecord()})
    ),
    "error": lambda reply: Message(Error(code=0, reason="broken"), reply_to=reply_source(reply)),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_contribution_is_left_out(kind):
    strategy, _ = start(
        Grid({5: 0, 7: 1, 11: 2}, lambda node, _, reply: BAD[kind](reply) if node == 7 else reply)
    )
    expected = by_hand(3, (0, 2))
    assert torch.equal(strategy.memory.archetypes, expected.archetypes)
    assert torch.equal(strategy.memory.vectors, expected.vectors)


def test_a_client_that_sends_garbage_is_reported():
    def change(node, _, reply):
        if node == 7:
            client, sent = unpack_contribution(reply.content)
            sent["sketch"] = sent["sketch"] * 1000 + 1
            return other(reply, pack_contribution(sent, client))
        return reply

    strategy, result = start(Grid({5: 0, 7: 1, 11: 2}, change))
    assert list(strategy.memory.report.rejected) == [1]
    assert result.train_metrics_clientapp[1]["rejected"] == 1
    assert torch.equal(strategy.memory.archetypes, by_hand(3, (0, 2)).archetypes)


def test_nobody_speaks_for_another_client():
    """Node 3 calls itself client 0 from the second round on, which node 5 has been before."""

    def change(node, exchange, reply):
        if node == 3:
            return None if exchange < 2 else reply
        return reply

    strategy, _ = start(Grid({3: 0, 5: 0, 7: 1, 11: 2}, change), patience=1.0)
    assert_equal_memories(strategy.memory, by_hand(3))


def test_a_node_without_a_number_fails_with_the_way_out():
    message = Message(pack_broadcast(Memory.empty(120, CONFIG), CONFIG), dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = "m"
    app = client_app(lambda client, round, context: DATA.examples(round, client))
    with pytest.raises(ValueError, match="partition-id"):
        app(message, Context(1, 1, {}, RecordDict(), {}))


def test_wrong_settings_are_refused():
    for settings in ({"min_clients": 0}, {"patience": 0.5}, {"round_interval": -1.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            federation_strategy(120, **settings)
    with pytest.raises(ValueError, match="neurons=9"):
        federation_strategy(9, memory=Memory.empty(8))
    with pytest.raises(TimeoutError, match="min_clients=4"):
        start(Grid({5: 0, 7: 1, 11: 2}), min_clients=4, timeout=0.3)


def test_clients_need_no_lightning():
    """A client's process, of which Flower starts one for each message, is up soon."""
    code = (
        "import sys, flwr.clientapp, lightning_plasticity.hopfield.flower, "
        "lightning_plasticity.data.federation; print('lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_network_equals_one_process_and_the_trainer(tmp_path, repository):
    """`flwr run` on a SuperLink and three SuperNodes; one is killed after two rounds of three."""
    output = tmp_path / "memory.pt"

    def finished():
        return torch.load(output, weights_only=True) if output.exists() else {"memory": {"round": 0}}

    with network(tmp_path, 3) as net:
        net.run(
            repository / "recipes" / "flower_hopfield", num_rounds=3, output=str(output), num_archetypes=5
        )
        net.wait(lambda: finished()["memory"]["round"] == 1, "the first round")
        net.wait(lambda: finished()["memory"]["round"] == 2, "the second round")
        net.kill("node2")
        net.wait(lambda: finished()["memory"]["round"] == 3, "the third round")
    state = finished()
    assert state["participants"] == [[0, 1, 2]] * 4 + [[0, 1]] * 2
    config = FederationConfig(sketch_rank=64)
    supports = [[k for k in range(5) if k % 3 != c] for c in range(3)]
    clients = Clients(3, 60, 0.8, supports, leaving={2: 2})
    learned = FederatedHopfield(400, config)
    data = ArchetypeStream("synthetic", 5, 400, rounds=3, clients=clients)
    memory = Memory.empty(400, config)
    for t in range(3):
        memory = federate([data.federation.examples(t, c) for c in range(3)], memory, config)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(learned, data)
    through_flower = Memory.from_state_dict(state["memory"])
    assert len(memory.archetypes) == 5
    assert_equal_memories(memory, learned.memory)
    for name in ("archetypes", "groups"):
        assert torch.equal(getattr(through_flower, name), getattr(memory, name)), name
    torch.testing.assert_close(through_flower.eigenvalues, memory.eigenvalues, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(through_flower.evidence, memory.evidence, rtol=1e-9, atol=0)
