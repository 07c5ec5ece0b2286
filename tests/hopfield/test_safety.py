"""Bad data and bad messages: dropped, reported, and without effect on the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_plasticity.hopfield import (
    DifferentialPrivacy,
    FederationConfig,
    Memory,
    client_step,
    combine,
    federate,
    server_step,
)
from lightning_plasticity.hopfield.messages import column, zeros

CONFIG = FederationConfig(sketch_rank=48)


def honest(world, count=3):
    truth = world(3, 200)
    return truth, [truth.examples(60) for _ in range(count)]


def broken(x, kind):
    """A client's batch gone wrong, and what the report says of it."""
    if kind == "nan":
        return torch.where(torch.arange(200) == 5, torch.nan, x), "NaN"
    if kind == "inf":
        return x / torch.where(torch.arange(200) == 5, 0.0, 1.0), "NaN or infinity"
    if kind == "scaled":
        return 3 * x, "not all +1 or -1"
    if kind == "zeros":
        return x * (torch.rand(x.shape, generator=torch.manual_seed(0)) > 0.1), "not all +1 or -1"
    if kind == "narrow":
        return x[:, :150], "N columns"
    if kind == "bool":
        return x > 0, "not all +1 or -1"
    if kind == "complex":
        return x.to(torch.complex64), "not all +1 or -1"
    return x[0], "N columns"


@pytest.mark.parametrize("kind", ["nan", "inf", "scaled", "zeros", "narrow", "vector", "bool", "complex"])
def test_bad_data_change_nothing_but_the_report(world, kind):
    truth, clients = honest(world)
    bad, reason = broken(truth.examples(60), kind)
    memory = federate([*clients, bad], None, CONFIG)
    assert list(memory.report.rejected) == [3]
    assert reason in memory.report.rejected[3]
    without = federate([*clients, torch.zeros(0, 200)], None, CONFIG)
    assert torch.equal(memory.archetypes, without.archetypes)
    assert torch.equal(memory.eigenvalues, without.eigenvalues)


def test_too_few_examples_stay_at_home(world):
    truth, clients = honest(world)
    memory = federate([*clients, truth.examples(5)], None, replace(CONFIG, min_examples=10))
    assert "min_examples" in memory.report.rejected[3]
    sent = client_step(truth.examples(5), Memory.empty(200), replace(CONFIG, min_examples=10), client_id=3)
    assert not sent["sketch"].any()
    assert sent["table"][3, column("examples")] == 0


@pytest.mark.parametrize("who", ["itself", "another"])
def test_a_repeat_is_no_new_evidence(world, who):
    truth, clients = honest(world)
    memory = federate(clients, None, CONFIG)
    copied = clients[2] if who == "itself" else clients[0]
    fresh = [truth.examples(60), truth.examples(60)]
    repeated = federate([*fresh, copied[torch.randperm(60, generator=torch.manual_seed(0))]], memory, CONFIG)
    assert repeated.report.rejected == {2: "a repeat of an earlier contribution"}
    assert float(repeated.report.weights[2]) == 0


def test_two_clients_with_one_batch_count_once(world):
    _, clients = honest(world)
    memory = federate([*clients, clients[0]], None, CONFIG)
    assert list(memory.report.rejected) == [3]


@pytest.mark.parametrize("lost", ["one message", "the round", "gate"])
def test_a_batch_that_did_not_count_may_come_again(world, lost):
    """A client that drops out between the exchanges, or is gated out, returns with the same data."""
    truth, clients = honest(world)
    clients[2] = truth.noise(60) if lost == "gate" else truth.examples(60, [2])
    clients[:2] = [truth.examples(60, [0, 1]) for _ in range(2)]
    memory = Memory.empty(200, CONFIG)
    memory = server_step(combine(messages(clients, memory), memory, CONFIG), memory, CONFIG)
    sent = messages(clients, memory)
    arrived = {"one message": {0: sent[0], 1: sent[1]}, "the round": {}, "gate": sent}[lost]
    memory = server_step(combine(arrived, memory, CONFIG), memory, CONFIG)
    assert float(memory.report.weights[2]) == 0
    back = federate([truth.examples(60, [0, 1]), truth.examples(60, [0, 1]), clients[2]], memory, CONFIG)
    assert back.report.rejected == {}
    if lost != "gate":
        assert truth.overlaps(back.archetypes).min() > 0.99


def messages(clients, memory, config=CONFIG):
    return {c: client_step(x, memory, config, client_id=c) for c, x in enumerate(clients)}


DTYPES = {
    "integer table": ("table", torch.int64),
    "complex sketch": ("sketch", torch.complex128),
    "bool votes": ("votes", torch.bool),
    "half sketch": ("sketch", torch.float16),
}


def shift(message, kind):
    """What a careless or malicious client might send instead."""
    message = {name: value.clone() for name, value in message.items()}
    if kind == "nan":
        message["sketch"][0, 0] = torch.nan
    elif kind == "narrow":
        message["sketch"] = message["sketch"][:, :-1]
    elif kind == "missing":
        del message["table"]
    elif kind == "surplus":
        message["more"] = torch.zeros(1)
    elif kind == "sparse":
        message["table"] = message["table"].to_sparse()
    elif kind in DTYPES:
        message[DTYPES[kind][0]] = message[DTYPES[kind][0]].to(DTYPES[kind][1])
    elif kind == "huge":
        message["sketch"] *= 100
    elif kind == "negative":
        message["sketch"] *= -1
    elif kind == "random":
        message["sketch"] = torch.randn(message["sketch"].shape, generator=torch.manual_seed(0)).double()
    elif kind == "other row":
        message["table"][0, column("drive")] = 0.5
    elif kind == "loud":
        message["table"][2, column("noise")] = 1e6
    elif kind == "stale":
        message["table"][2, column("stamp")] += 2
    return message


@pytest.mark.parametrize("exchange", [0, 1])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan", "NaN"),
        ("narrow", "fixed shapes"),
        ("missing", "fixed shapes"),
        ("surplus", "fixed shapes"),
        ("sparse", "fixed shapes"),
        *((kind, "and dtypes") for kind in DTYPES),
        ("huge", "symmetric and positive"),
        ("negative", "symmetric and positive"),
        ("random", "symmetric and positive"),
        ("loud", "symmetric and positive"),
        ("other row", "another client's row"),
        ("stale", "another round"),
    ],
)
def test_bad_messages_are_dropped_and_reported(world, kind, reason, exchange):
    truth, clients = honest(world)
    memory = Memory.empty(200, CONFIG)
    for now in range(2):
        sent = messages(clients, memory)
        if now == exchange:
            sent[2] = shift(sent[2], kind)
        memory = server_step(combine(sent, memory, CONFIG), memory, CONFIG)
    assert list(memory.report.rejected) == [2]
    assert reason in memory.report.rejected[2]
    assert float(memory.report.weights[2]) == 0
    assert truth.overlaps(memory.archetypes).min() > 0.99


@pytest.mark.parametrize("claim", [0.5, -3.0, 1e300])
def test_a_size_claimed_in_exchange_1_is_not_used(world, claim):
    """Neither for the room that noise of differential privacy needs, nor to end the round with an error."""
    _, clients = honest(world)
    config = replace(CONFIG, dp=DifferentialPrivacy(1e4, rounds=1, seed=0))
    memory = Memory.empty(200, config)
    for now in range(2):
        sent = {c: client_step(x, memory, config, client_id=c) for c, x in enumerate(clients)}
        if now:
            sent[2]["table"][2, column("examples")] = claim
            sent[1]["table"][1, column("examples")] = claim
            sent[1]["sketch"] *= 100
        memory = server_step(combine(sent, memory, config), memory, config)
    assert list(memory.report.rejected) == [1]


def test_a_sum_that_is_not_finite_counts_as_no_round(world):
    _, clients = honest(world)
    memory = federate(clients, None, CONFIG)
    total = combine(messages(clients, memory), memory, CONFIG)
    total["sketch"][3, 3] = torch.inf
    after = server_step(total, memory, CONFIG)
    after = server_step(combine({}, after, CONFIG), after, CONFIG)
    assert after.round == 2
    assert torch.equal(after.archetypes, memory.archetypes)


def test_one_client_s_pull_is_bounded(world):
    """A client with 100 times the examples counts as ten."""
    truth = world(3, 200)
    clients = [truth.examples(20, [0]) for _ in range(4)] + [truth.examples(2000, [1])]
    weights = federate(clients, None, CONFIG).report.weights
    assert float(weights[4]) == pytest.approx(10 / 14)


def lie(message, client, claim, real=60):
    """A message that claims another size, consistent in itself."""
    message["sketch"] *= claim / real
    message["table"][client, column("examples")] = claim


@pytest.mark.parametrize("others", [1, 4])
def test_a_liar_about_its_size_gains_no_more(world, others):
    """A message that claims 10^6 examples is consistent in itself, and still counts as ten medians."""
    _, clients = honest(world, others + 1)
    memory = Memory.empty(200, CONFIG)
    sent = messages(clients, memory)
    plain = sum(float(sent[c]["sketch"].norm()) for c in range(others))
    lie(sent[others], others, 1e6)
    total = combine(sent, memory, CONFIG)
    assert float(total["sketch"].norm()) < plain * (1 + 11 / others)
    memory = server_step(total, memory, CONFIG)
    assert float(memory.weights[others]) == pytest.approx(10 / (10 + others))
    assert float(memory.report.examples[others]) == 600


def after_a_lie(truth, memory, claim, through, config=CONFIG):
    """A round of five clients, the last of which claims a size; checked one by one or summed unseen."""
    batch = [truth.examples(60) for _ in range(5)]
    for _ in range(2):
        sent = messages(batch, memory, config)
        if not memory.exchange:
            lie(sent[4], 4, claim)
        total = zeros(memory, config)
        for message in sent.values():
            for name, value in message.items():
                total[name] += value
        total = combine(sent, memory, config) if through == "combine" else total
        memory = server_step(total, memory, config)
    return memory


@pytest.mark.parametrize("through", ["combine", "a plain sum"])
def test_a_lie_beyond_the_cap_is_worth_no_more_than_the_cap(world, through):
    """The others' plasticity, shares, edge and outliers are those of a claim at the cap."""
    truth = world(3, 200)
    memory = None
    for _ in range(5):
        memory = federate([truth.examples(60) for _ in range(4)], memory, CONFIG)
    state = truth.rng.bit_generator.state
    after = dict[float, Memory]()
    for claim in (60.0, 600.0, 1e6):
        truth.rng.bit_generator.state = state
        after[claim] = after_a_lie(truth, memory, claim, through)
    cap, beyond = after[600.0], after[1e6]
    w0 = 840 / (840 + min(float(memory.report.effective_examples), 8400))  # sizes are 4 times 60, and 600
    assert beyond.report.plasticity[:4].tolist() == pytest.approx([w0] * 4, rel=0.1)
    for name in ("plasticity", "weights", "examples"):
        assert torch.equal(getattr(cap.report, name).nan_to_num(), getattr(beyond.report, name).nan_to_num())
    assert beyond.report.effective_examples == pytest.approx(cap.report.effective_examples)
    assert after[60.0].outliers == 3
    for later in after.values():  # what was known stays
        assert truth.overlaps(later.archetypes).min() > 0.99
    if through == "combine":  # an unseen sum has the first sketches as they are, and with them its next basis
        assert beyond.report.edge == pytest.approx(cap.report.edge)
        assert beyond.outliers == cap.outliers
        assert [len(later.archetypes) for later in after.values()] == [3, 3, 3]


@pytest.mark.parametrize("claim", [120.0, 1e6])
def test_a_low_cap_makes_lies_about_sizes_harmless(world, claim):
    """At twice the median no claim hides an archetype, or makes one."""
    truth, memory, config = world(3, 200), Memory.empty(200, CONFIG), replace(CONFIG, pull_cap=2.0)
    for _ in range(3):
        memory = after_a_lie(truth, memory, claim, "combine", config)
    assert len(memory.archetypes) == memory.outliers == 3
    assert truth.overlaps(memory.archetypes).min() > 0.99


@pytest.mark.parametrize("times", [2, 5, 10])
def test_a_batch_that_repeats_itself_counts_once(world, times):
    truth, clients = honest(world, 2)
    again = [
        x.repeat(times, 1) * (1 - 2 * (torch.arange(60 * times) % 3 == 0).double())[:, None] for x in clients
    ]
    memory = federate(again, None, CONFIG)
    assert memory.report.examples[:2].tolist() == [60, 60]
    assert len(memory.archetypes) == memory.outliers == 3
    assert truth.overlaps(memory.archetypes).min() > 0.99


def test_a_claimed_share_does_not_count(world):
    """A client that claims all of the operator in exchange 1 does not wipe out what was there."""
    truth, clients = honest(world)
    memory = federate(clients, None, CONFIG)
    memory = federate([truth.examples(60) for _ in range(3)], memory, CONFIG)
    batch = [truth.examples(60) for _ in range(3)]
    results = []
    for claim in (None, 50.0):
        state = server_step(combine(messages(batch, memory), memory, CONFIG), memory, CONFIG)
        sent = messages(batch, state)
        if claim:
            sent[1]["table"][1, column("weight")] = claim
        results.append(server_step(combine(sent, state, CONFIG), state, CONFIG))
    assert torch.equal(results[0].eigenvalues, results[1].eigenvalues)
    assert torch.equal(results[0].report.weights, results[1].report.weights)


def test_a_noise_client_has_no_say(world):
    truth = world(3, 400)
    memory = None
    for _ in range(4):
        memory = federate([truth.examples(80) for _ in range(4)] + [truth.noise(80)], memory, CONFIG)
    assert float(memory.report.plasticity[4]) == 0
    assert float(memory.report.weights[4]) == 0
    assert len(memory.archetypes) == 3


def test_three_of_five_clients_are_noise(world):
    truth = world(3, 400)
    memory = None
    for _ in range(6):
        batch = [truth.examples(80, quality=0.5) for _ in range(2)] + [truth.noise(80) for _ in range(3)]
        memory = federate(batch, memory, CONFIG)
    assert len(memory.archetypes) == 3
    assert truth.overlaps(memory.archetypes).min() > 0.97


def test_when_nobody_sees_a_signal_alone_all_are_pooled(world):
    """Quality .2, 33 examples each: no client has an outlier, six rounds of three together do."""
    truth = world(3, 400, seed=3)
    memory = None
    for _ in range(24):
        memory = federate([truth.examples(33, quality=0.2) for _ in range(3)], memory, CONFIG)
    assert len(memory.archetypes) == 3
    assert np.min(truth.overlaps(memory.archetypes)) > 0.95


@pytest.mark.parametrize(
    ("clients", "reason"),
    [
        ([torch.zeros(5, 30)], "of client 0: examples are not all [+]1 or -1"),
        ([torch.full((5, 30), torch.nan)] * 2, "0: examples hold NaN or infinity; 1: examples hold NaN"),
    ],
)
def test_data_of_which_none_can_be_used_are_a_mistake(clients, reason):
    with pytest.raises(ValueError, match=reason):
        federate(clients)
    good = torch.ones(5, 30)
    assert len(federate([*clients, good]).report.rejected) == len(clients), "one that can be used goes on"
    with pytest.raises(ValueError, match="examples are not a matrix of N columns"):
        federate([torch.ones(5, 40)], federate([good]))
