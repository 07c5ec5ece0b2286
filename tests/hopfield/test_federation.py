"""Whole rounds: what is found, linearity, order, resume, streams; ranks and engines are tested elsewhere."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_plasticity.hopfield import (
    FederationConfig,
    Memory,
    client_step,
    combine,
    federate,
    server_step,
)
from lightning_plasticity.hopfield.federation import zeros

CONFIG = FederationConfig(sketch_rank=64)


def play(batches, config=CONFIG, memory=None):
    """Rounds of batches."""
    for batch in batches:
        memory = federate(batch, memory, config)
    return memory


def same(first, second):
    """Whether two values of a state are equal, to the bit; NaN equals NaN."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    first, second = (x if torch.is_tensor(x) else torch.tensor(x) for x in (first, second))
    return torch.equal(torch.nan_to_num(first, 7), torch.nan_to_num(second, 7))


def same_memory(first, second):
    """Whether two memories hold the same numbers, to the bit."""
    first, second = first.state_dict(), second.state_dict()
    assert [name for name in first if not same(first[name], second[name])] == []


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_archetypes_are_found_without_their_number(world, count, dtype):
    truth = world(count, 300, seed=count)
    clients = [truth.examples(m) for m in (60, 90, 150)]
    memory = federate(clients, config=FederationConfig(dtype=dtype))
    assert len(memory.archetypes) == count == memory.outliers
    assert truth.overlaps(memory.archetypes).min() > 0.99


@pytest.mark.parametrize("count", [2, 3, 10])
def test_clean_patterns_are_all_found(world, count):
    """Quality 1: the operator has as many eigenvalues as there are archetypes, and none is noise."""
    truth = world(count, 300, seed=count)
    half = [list(range(count // 2 + 1)), list(range(count // 2, count))]
    memory = play([[truth.examples(50, support, quality=1.0) for support in half] for _ in range(2)])
    assert len(memory.eigenvalues) == len(memory.archetypes) == count
    assert truth.overlaps(memory.archetypes).min() == 1


def test_the_operator_is_that_of_all_data(world):
    """After two rounds: eigenvalues of the dense blend, with the weights that the report gives."""
    truth = world(3, 120)
    dense = None
    memory = None
    for _ in range(2):
        clients = [truth.examples(m) for m in (40, 60)]
        memory = federate(clients, memory, FederationConfig(sketch_rank=120))
        weights = memory.report.weights[:2].numpy()
        new = sum(w * (x.T @ x).numpy() / x.numel() for w, x in zip(weights, clients, strict=True))
        dense = new if dense is None else new + (1 - weights.sum()) * dense
    values = np.linalg.eigvalsh(dense)[::-1]
    assert np.trace(dense) == pytest.approx(1)
    assert memory.eigenvalues[:50].numpy() == pytest.approx(values[:50], abs=1e-9)


def test_clients_of_disjoint_supports_and_unequal_sizes(world):
    truth = world(6, 400)
    batches = [
        [truth.examples(m, support) for m, support in ((30, [0, 1]), (60, [2, 3]), (120, [4, 5]))]
        for _ in range(3)
    ]
    memory = play(batches)
    assert len(memory.archetypes) == 6
    assert truth.overlaps(memory.archetypes).min() > 0.99


def test_many_archetypes_at_a_high_load(world):
    """K/N = .1: the first starts end in mixtures alone, which must not pass for archetypes."""
    truth = world(40, 400)
    memory = federate([truth.examples(600, range(c, c + 10), quality=0.6) for c in range(0, 40, 10)])
    assert len(memory.archetypes) == memory.outliers == 40
    assert truth.overlaps(memory.archetypes).min() > 0.99


def test_pure_noise_gives_nothing(world):
    truth = world(1, 400)
    memory = play([[truth.noise(60) for _ in range(3)] for _ in range(8)])
    assert len(memory.archetypes) == memory.outliers == 0


def test_an_archetype_comes_later_and_old_ones_stay(world):
    truth = world(3, 300)
    first = [[truth.examples(60, [0, 1]) for _ in range(3)] for _ in range(3)]
    later = [[truth.examples(60, [0, 2]) for _ in range(3)] for _ in range(30)]
    memory = play(first)
    assert truth.overlaps(memory.archetypes)[2] < 0.3
    memory = play(later, memory=memory)
    assert len(memory.archetypes) == 3  # 1 has not been seen for 30 rounds
    assert truth.overlaps(memory.archetypes).min() > 0.99


def test_the_negative_of_an_archetype_is_the_archetype(world):
    truth = world(2, 300)
    memory = play([[truth.examples(80) * sign for _ in range(3)] for sign in (1, -1, 1, -1)])
    assert len(memory.archetypes) == 2


def test_sums_in_any_order_and_grouping_are_one_round(world):
    truth = world(4, 200)
    clients = {c: truth.examples(40 + 10 * c) for c in range(4)}
    memory, config = Memory.empty(200, CONFIG), CONFIG
    for _ in range(2):
        sent = {c: client_step(x, memory, config, client_id=c) for c, x in clients.items()}
        whole = combine(sent, memory, config)
        halves = [zeros(memory, config), zeros(memory, config)]
        for c in (3, 1, 0, 2):
            for name, value in sent[c].items():
                halves[c % 2][name] += value
        total = {name: halves[1][name] + halves[0][name] for name in whole}
        for name, value in whole.items():
            torch.testing.assert_close(total[name], value, rtol=1e-12, atol=1e-12)
        memory = server_step(total, memory, config)
    again = federate(list(clients.values()), None, config)
    assert torch.equal(memory.archetypes, again.archetypes)
    torch.testing.assert_close(memory.eigenvalues, again.eigenvalues, rtol=1e-9, atol=1e-12)


def test_one_pooled_client_sees_what_many_see(world):
    truth = world(3, 200)
    clients = [truth.examples(50) for _ in range(4)]
    many = federate(clients, None, CONFIG)
    one = federate([torch.cat(clients)], None, CONFIG)
    torch.testing.assert_close(many.eigenvalues[:20], one.eigenvalues[:20], rtol=1e-6, atol=1e-9)
    assert truth.overlaps(many.archetypes) == pytest.approx(truth.overlaps(one.archetypes))


def test_clients_need_only_what_is_broadcast(world):
    truth = world(3, 150)
    memory = play([[truth.examples(50) for _ in range(3)]])
    examples = truth.examples(50)
    for _ in range(2):
        whole = client_step(examples, memory, CONFIG, client_id=1)
        part = client_step(examples, memory.for_clients(), CONFIG, client_id=1)
        assert all(torch.equal(whole[name], part[name]) for name in whole)
        memory = server_step(whole, memory, CONFIG)


@pytest.mark.parametrize("between", ["rounds", "exchanges"])
def test_resumed_is_uninterrupted(world, between):
    truth = world(3, 150)
    batches = [[truth.examples(40) for _ in range(2)] for _ in range(4)]
    memory = play(batches[:2])
    if between == "exchanges":
        sent = [client_step(x, memory, CONFIG, client_id=c) for c, x in enumerate(batches[2])]
        memory = server_step(combine(sent, memory, CONFIG), memory, CONFIG)
    file = io.BytesIO()
    torch.save({"memory": memory.state_dict(), "config": CONFIG.to_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed, config = Memory.from_state_dict(state["memory"]), FederationConfig.from_dict(state["config"])
    assert config == CONFIG
    if between == "exchanges":
        sent = [client_step(x, resumed, config, client_id=c) for c, x in enumerate(batches[2])]
        resumed = server_step(combine(sent, resumed, config), resumed, config)
        resumed = play(batches[3:], config, resumed)
    else:
        resumed = play(batches[2:], config, resumed)
    same_memory(play(batches), resumed)


def test_a_round_without_clients_changes_nothing_but_its_number(world):
    truth = world(2, 100)
    memory = play([[truth.examples(50)]])
    after = federate([torch.zeros(0, 100), torch.zeros(0, 100)], memory, CONFIG)
    assert after.round == memory.round + 1
    assert (after.report.outliers, after.report.edge) == (memory.report.outliers, memory.report.edge)
    same_memory(replace(memory, round=after.round, report=after.report), after)


def test_a_client_that_leaves_between_the_exchanges_does_no_harm(world):
    truth = world(3, 200)
    clients = [truth.examples(60) for _ in range(3)]
    memory = Memory.empty(200, CONFIG)
    for active in (3, 2):
        sent = {c: client_step(clients[c], memory, CONFIG, client_id=c) for c in range(active)}
        memory = server_step(combine(sent, memory, CONFIG), memory, CONFIG)
    assert float(memory.report.weights.sum()) == pytest.approx(2 / 3)
    assert truth.overlaps(memory.archetypes).min() > 0.99
    assert float(memory.groups[:, 1].sum()) == pytest.approx(1)


def test_support_by_two_clients(world):
    truth = world(3, 300)
    config = replace(CONFIG, min_support=2)
    batches = [
        [truth.examples(80, [0, 1]), truth.examples(80, [0, 1]), truth.examples(80, [2])] for _ in range(6)
    ]
    memory = play(batches, config)
    assert truth.overlaps(memory.archetypes) == pytest.approx([1, 1, 0], abs=0.3)
    assert len(memory.pending) == 1
    batches = [
        [truth.examples(80, [0, 1]), truth.examples(80, [2]), truth.examples(80, [2])] for _ in range(2)
    ]
    memory = play(batches, config, memory)
    assert truth.overlaps(memory.archetypes).min() > 0.99


def test_the_memory_is_capped_by_evidence(world):
    truth = world(5, 300)
    shares = [0.3, 0.3, 0.3, 0.05, 0.05]
    memory = play([[truth.examples(200, shares=shares)]], replace(CONFIG, max_archetypes=3))
    assert truth.overlaps(memory.archetypes)[:3].min() > 0.99
    assert len(memory.archetypes) == 3


def test_outliers_that_fill_the_sketch_teach_nothing(world):
    truth = world(30, 400)
    memory = play([[truth.examples(600)]], replace(CONFIG, sketch_rank=40))
    assert memory.report.saturated
    assert len(memory.archetypes) == 0
    assert not play([[truth.examples(600)]], replace(CONFIG, sketch_rank=100)).report.saturated


def test_no_tensor_is_n_by_n(world, monkeypatch):
    """N = 20,000: an N x N tensor would take 3.2 GB."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t))
            return out

    truth = world(3, 20_000)
    clients = [truth.examples(50) for _ in range(2)]
    with Watch():
        memory = federate(clients, None, FederationConfig(sketch_rank=32))
    assert truth.overlaps(memory.archetypes).min() > 0.999
    assert max(sizes) <= 20_000 * 200


def test_wrong_arguments_are_named(world):
    x = world(2, 50).examples(10)
    with pytest.raises(ValueError, match="client_id=64"):
        client_step(x, Memory.empty(50), FederationConfig(), client_id=64)
    with pytest.raises(ValueError, match="0 clients"):
        federate([])
    with pytest.raises(ValueError, match="neurons=1"):
        Memory.empty(1)
    total = client_step(x, Memory.empty(50), FederationConfig(sketch_rank=8), client_id=0)
    with pytest.raises(ValueError, match="total has shapes"):
        server_step(total, Memory.empty(50), FederationConfig(sketch_rank=16))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sketch_rank", 3),
        ("max_archetypes", 0),
        ("max_clients", 0),
        ("min_support", 0),
        ("min_support", 65),
        ("controller", "sometimes"),
        ("controller", 1.5),
        ("disentangler", "l2"),
        ("dtype", "bfloat16"),
        ("quality", 0.0),
        ("w_max", 1.5),
        ("smoothing", 0.0),
        ("horizon", 0.5),
        ("pull_cap", float("inf")),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        FederationConfig(**{name: value})
