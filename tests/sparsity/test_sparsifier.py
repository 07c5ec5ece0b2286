"""Sparsifier: the engine in plain torch loops, without Lightning."""

import copy
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.optimizer_state import shaped_state
from lightning_plasticity.sparsity.schedules import Cosine, Cubic
from lightning_plasticity.sparsity.sparsifier import Sparsifier, Update
from tests.sparsity.reference import Family, cosine, cubic

STEPS = 60
GRANET = SparsityConfig(Cubic(0.1, 0.8, 4, 29), Cosine(0.5, 0.005), 5)
sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
adamw = partial(torch.optim.AdamW, lr=0.01)


def make_net():
    """A small net of two layers, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))


def weights_of(net):
    """Name to weight, also where the granularity would not choose linear layers by itself."""
    return {"0.weight": net[0].weight, "2.weight": net[2].weight}


def batch(step):
    """The batch of a step, always the same."""
    draws = torch.Generator().manual_seed(step)
    return torch.randn(8, 12, generator=draws), torch.randint(0, 5, (8,), generator=draws)


def backward(net, optimizer, step):
    """Gradients of one step."""
    optimizer.zero_grad()
    images, labels = batch(step)
    F.cross_entropy(net(images), labels).backward()


def train(net, optimizer, steps, each=lambda: None):
    """A plain loop over some steps."""
    for step in steps:
        backward(net, optimizer, step)
        optimizer.step()
        each()


@pytest.mark.parametrize("make", [sgd, adamw])
def test_driven_by_hand_equals_the_restatement(make):
    net = make_net()
    optimizer = make(net.parameters())
    engine = Sparsifier(net, GRANET, STEPS)
    reference = Family(
        [mask.clone().numpy() for mask in engine.masks.values()],
        lambda t: cubic(t, 0.1, 0.8, 4, 29),
        29,
        lambda t: cosine(t, STEPS, 0.5, 0.005),
        5,
    )
    updates = []
    for t in range(1, STEPS + 1):
        backward(net, optimizer, t)
        weights = [net[0].weight, net[2].weight]
        gradients = [w.grad.clone().numpy() for w in weights]
        engine.before_step()
        for weight, mask in zip(weights, engine.masks.values(), strict=True):
            assert not weight.grad[~mask].any()
        optimizer.step()
        before = [[w.detach().clone(), *(s.clone() for s in shaped_state(optimizer, w))] for w in weights]
        old = [mask.copy() for mask in reference.masks]
        update = engine.after_step(optimizer)
        keep = reference.step(t, [tensors[0].numpy() for tensors in before], gradients)
        assert (update is None) == (keep is None)
        if update is None:
            continue
        updates.append(update)
        for index, (weight, mask) in enumerate(zip(weights, engine.masks.values(), strict=True)):
            assert np.array_equal(mask.numpy(), reference.masks[index])
            after = [weight.detach(), *shaped_state(optimizer, weight)]
            assert len(after) == (2 if make is sgd else 3)
            for a, b in zip(before[index], after, strict=True):
                assert np.array_equal(b.numpy(), np.where(keep[index], a.numpy(), np.float32(0)))
        grown = sum(int((new & ~k).sum()) for new, k in zip(reference.masks, keep, strict=True))
        active = [sum(int(m.sum()) for m in masks) for masks in (old, reference.masks)]
        assert update == Update(t, pruned=active[0] - active[1], dropped=grown, grown=grown)
    assert engine.history[1:] == reference.history
    assert engine.updates == len(updates) == 13
    assert engine.grown == sum(update.grown for update in updates) > 100
    assert engine.pruned == sum(update.pruned for update in updates)


def test_attach_and_detach():
    net = make_net()
    optimizer = sgd(net.parameters())
    engine = Sparsifier(net, GRANET, STEPS)
    handles = engine.attach(optimizer)
    train(net, optimizer, range(1, 11))
    assert engine.step == 10
    for handle in handles:
        handle.remove()
    masks = copy.deepcopy(engine.masks)
    train(net, optimizer, range(11, 14))
    assert engine.step == 10
    assert all(torch.equal(mask, masks[name]) for name, mask in engine.masks.items())


def test_a_step_that_ends_in_an_update_without_gradients_read_is_an_error():
    net = make_net()
    optimizer = sgd(net.parameters())
    engine = Sparsifier(net, GRANET, STEPS)
    for _ in range(4):
        engine.before_step()
        engine.after_step(optimizer)
    with pytest.raises(RuntimeError, match=r"step 5 ends in an update, but before_step\(\) was not called"):
        engine.after_step(optimizer)


def test_an_optimizer_that_lacks_parameters_is_refused():
    net = make_net()
    engine = Sparsifier(net, GRANET, STEPS)
    with pytest.raises(ValueError, match=r"never received these masked parameters: \['2.weight'\].*exclude"):
        engine.attach(sgd(net[0].parameters()))


def test_a_layer_without_gradient_sits_out_the_exchange():
    net = make_net()
    optimizer = sgd(net.parameters())
    engine = Sparsifier(net, SparsityConfig(0.5, 0.5, 1), STEPS)
    masks = copy.deepcopy(engine.masks)
    backward(net, optimizer, 1)
    net[0].weight.grad = None
    engine.before_step()
    optimizer.step()
    engine.after_step(optimizer)
    assert torch.equal(engine.masks["0.weight"], masks["0.weight"])
    assert not torch.equal(engine.masks["2.weight"], masks["2.weight"])


def resumed(make, config, split):
    """Train to the end at once, and in two halves over a saved state; give back both."""
    runs = []
    for stop in (STEPS, split):
        net = make_net()
        optimizer = make(net.parameters())
        engine = Sparsifier(weights_of(net), config, STEPS)
        engine.attach(optimizer)
        train(net, optimizer, range(1, stop + 1))
        runs.append((net, optimizer, engine))
    net, optimizer, engine = runs.pop()
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), engine.state_dict()))
    net = make_net()
    optimizer = make(net.parameters())
    net.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    engine = Sparsifier(weights_of(net), config, STEPS, state=saved[2])
    engine.attach(optimizer)
    train(net, optimizer, range(split + 1, STEPS + 1))
    return runs[0], (net, optimizer, engine)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize(
    "config",
    [
        GRANET,
        SparsityConfig(0.7, 0.3, 4, grow="random", track_exploration=True),
        SparsityConfig(0.5, 0.3, 4, granularity="filter"),
        SparsityConfig(0.5, 0.3, 4, granularity="2:4", drop="sensitivity"),
    ],
    ids=["GraNet", "SET", "filters", "2:4"],
)
@pytest.mark.parametrize("split", [5, 17])
def test_resumed_equals_uninterrupted(make, config, split):
    (net, optimizer, engine), (net2, optimizer2, engine2) = resumed(make, config, split)
    assert engine.step == engine2.step == STEPS
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), net2.parameters(), strict=True))
    for a, b in zip(optimizer.state.values(), optimizer2.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a if torch.is_tensor(a[k]))
    ours, theirs = engine.state_dict(), engine2.state_dict()
    assert ours.keys() == theirs.keys()
    assert {k: ours[k] for k in ("step", "totals", "history", "shapes")} == {
        k: theirs[k] for k in ("step", "totals", "history", "shapes")
    }
    for key in ("masks", "ever_active"):
        assert ours[key].keys() == theirs[key].keys()
        assert all(torch.equal(ours[key][n], theirs[key][n]) for n in ours[key])
    assert torch.equal(ours["generator"], theirs["generator"])
    assert engine.counts == engine2.counts
    assert engine.exploration == engine2.exploration


def test_stored_masks_take_a_bit_a_weight():
    net = nn.Linear(100, 81, bias=False)
    state = Sparsifier(net, SparsityConfig(0.5), 10).state_dict()
    assert state["masks"]["weight"].dtype == torch.uint8
    assert state["masks"]["weight"].numel() == -(-8100 // 8)
    filters = Sparsifier({"weight": net.weight}, SparsityConfig(0.5, granularity="filter"), 10)
    assert filters.state_dict()["masks"]["weight"].numel() == -(-81 // 8)


def test_a_state_of_other_layers_or_granularity_is_refused():
    state = Sparsifier(make_net(), GRANET, STEPS).state_dict()
    other = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 6))
    with pytest.raises(
        ValueError, match=r"they differ in \['2.weight'\]. Resume with the model, include, exclude"
    ):
        Sparsifier(other, GRANET, STEPS).load_state_dict(state)
    with pytest.raises(ValueError, match=r"differ in \['0.weight', '2.weight'\]"):
        Sparsifier(weights_of(make_net()), SparsityConfig(0.5, granularity="filter"), STEPS, state=state)


def test_a_changed_setting_goes_on_from_the_same_masks():
    net = make_net()
    optimizer = sgd(net.parameters())
    first = Sparsifier(net, GRANET, STEPS)
    first.attach(optimizer)
    train(net, optimizer, range(1, 36))
    state = copy.deepcopy(first.state_dict())
    engine = Sparsifier(net, SparsityConfig(Cubic(0.1, 0.9, 4, 50), 0.2, 5), STEPS)
    engine.load_state_dict(state)
    assert all(torch.equal(mask, first.masks[name]) for name, mask in engine.masks.items())
    other = sgd(net.parameters())
    engine.attach(other)
    train(net, other, range(36, STEPS + 1))
    assert sum(engine.counts) == round(272 * 0.1)


def test_exploration_is_the_share_of_positions_ever_active():
    net = make_net()
    optimizer = sgd(net.parameters())
    engine = Sparsifier(net, SparsityConfig(0.8, 0.3, 3, grow="random", track_exploration=True), STEPS)
    engine.attach(optimizer)
    ever = {name: mask.clone() for name, mask in engine.masks.items()}
    shares = [engine.exploration]

    def note():
        for name, mask in engine.masks.items():
            ever[name] |= mask
        shares.append(engine.exploration)

    train(net, optimizer, range(1, 31), note)
    assert shares[0] == engine.density == 54 / 272
    assert shares[-1] == sum(int(mask.sum()) for mask in ever.values()) / 272 > 0.6
    assert all(a <= b for a, b in pairwise(shares))
    assert Sparsifier(net, GRANET, STEPS).exploration is None


def test_initial_masks_by_magnitude_are_the_largest():
    net = make_net()
    weights = [net[0].weight.detach().abs().clone(), net[2].weight.detach().abs().clone()]
    engine = Sparsifier(net, SparsityConfig(0.75, initial="magnitude"), STEPS)
    cut = torch.cat([w.flatten() for w in weights]).sort(descending=True).values[67]
    for weight, mask in zip(weights, engine.masks.values(), strict=True):
        assert torch.equal(mask, weight >= cut)
    engine = Sparsifier(make_net(), SparsityConfig(0.75, initial="magnitude", scope="layer"), STEPS)
    for weight, (name, mask) in zip(weights, engine.masks.items(), strict=True):
        count = int(mask.sum())
        assert count == dict(zip(engine.masks, engine.counts, strict=True))[name]
        assert torch.equal(mask, weight >= weight.flatten().sort(descending=True).values[count - 1])


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("regrow", [False, True])
def test_a_cut_removes_its_share_and_regrowth_repays_each_layer(scope, regrow):
    net = make_net()
    optimizer = sgd(net.parameters())
    engine = Sparsifier(net, SparsityConfig(0.3, scope=scope, update_every=1000), STEPS)
    engine.attach(optimizer)
    train(net, optimizer, range(1, 4))
    backward(net, optimizer, 4)
    weights = [net[0].weight, net[2].weight]
    before = [mask.clone() for mask in engine.masks.values()]
    values = [w.detach().abs() for w in weights]
    gradients = [w.grad.abs().clone() for w in weights]
    counts = [int(mask.sum()) for mask in before]
    engine.cut(optimizer, 0.4, regrow)
    if scope == "global":
        cut = torch.cat([v[m] for v, m in zip(values, before, strict=True)]).sort(descending=True)
        threshold = cut.values[sum(counts) - round(0.4 * sum(counts)) - 1]
        survivors = [m & (v >= threshold) for v, m in zip(values, before, strict=True)]
    else:
        survivors = []
        for v, m, n in zip(values, before, counts, strict=True):
            survivors.append(m & (v >= v[m].sort(descending=True).values[n - round(0.4 * n) - 1]))
    for name, weight, kept, g, n in zip(engine.masks, weights, survivors, gradients, counts, strict=True):
        mask, wanted = engine.masks[name], kept
        if regrow:
            lost = n - int(kept.sum())
            wanted = kept | ((g >= g[~kept].sort(descending=True).values[lost - 1]) & ~kept)
            assert int(mask.sum()) == n
        assert torch.equal(mask, wanted)
        assert not weight[~kept].any(), "what returns starts from zero"
        assert not optimizer.state[weight]["momentum_buffer"][~kept].any()
    assert engine.counts == [int(mask.sum()) for mask in engine.masks.values()]
    if not regrow:
        left = sum(counts) - sum(engine.counts)
        assert left == (
            round(0.4 * sum(counts)) if scope == "global" else sum(round(0.4 * n) for n in counts)
        )
    optimizer.step()
    for name, weight in zip(engine.masks, weights, strict=True):
        assert not weight[~engine.masks[name]].any()


def test_masks_can_be_given():
    net = make_net()
    engine = Sparsifier(net, SparsityConfig(0.0), STEPS)
    given = torch.rand(16, 12) < 0.5
    engine.set_masks({"0.weight": given})
    assert torch.equal(engine.masks["0.weight"], given)
    assert not net[0].weight[~given].any()
    assert engine.counts == [int(given.sum()), 80]
    filters = Sparsifier(weights_of(make_net()), SparsityConfig(0.0, granularity="filter"), STEPS)
    filters.set_masks({"0.weight": (torch.arange(16) < 5)[:, None].expand(16, 12)})
    assert filters.counts == [5, 5]


def test_the_run_can_turn_out_longer():
    engine = Sparsifier(make_net(), SparsityConfig(Cubic(0.0, 0.8, 0.0, 0.5), 0.0, 10), 40)
    assert engine.plan.has_arrived(20)
    engine.set_total_steps(80)
    assert not engine.plan.has_arrived(39)
    assert engine.plan.has_arrived(40)
