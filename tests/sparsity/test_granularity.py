"""Granularities: whole filters and the BatchNorm trap, N of every M weights, and what they share."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.granularity import Filters, Granularity, Groups
from lightning_plasticity.sparsity.schedules import Cosine, Cubic
from lightning_plasticity.sparsity.selection import LazyScores
from lightning_plasticity.sparsity.sparsifier import Sparsifier
from tests.sparsity.reference import best_in_groups, cosine, cubic, groups_of


def generator(seed=0):
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def known(scores):
    """Scores that exist already."""
    return LazyScores(lambda values: values, (scores,))


@pytest.mark.parametrize(
    ("text", "kind"),
    [("weight", Granularity), ("filter", Filters), ("2:4", Groups), ("1:2", Groups), ("3:16", Groups)],
)
def test_names_are_read_and_written(text, kind):
    pattern = Granularity.parse(text)
    assert type(pattern) is kind
    assert str(pattern) == text
    assert Granularity.parse(pattern) is pattern


@pytest.mark.parametrize("text", ["weights", "4:2", "4:4", "0:4", "2/4", "-1:4", "", "2:4:8", None, 4])
def test_other_names_are_refused(text):
    with pytest.raises(ValueError, match=f"granularity='{text}' must be 'weight', 'filter' or an N:M string"):
        Granularity.parse(text)


# ------------------------------------------------------------------------------ the BatchNorm trap as facts


def filter_gradients(gamma, beta, residual=False):
    """``sum |gradient|`` of 8 filters, the first 4 of them zero, in conv - BatchNorm - ReLU in training."""
    torch.manual_seed(0)
    conv, norm, head = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 10)
    images, labels, skip = torch.randn(32, 3, 8, 8), torch.randint(0, 10, (32,)), torch.rand(32, 8, 8, 8)
    with torch.no_grad():
        conv.weight[:4] = 0
        norm.weight[:4], norm.bias[:4] = gamma, beta
    x = norm(conv(images))
    x = F.relu(x + skip) if residual else F.relu(x)
    F.cross_entropy(head(x.mean((2, 3))), labels).backward()
    sums = conv.weight.grad.abs().flatten(1).sum(1)
    return sums[:4], sums[4:]


@pytest.mark.parametrize(("gamma", "beta"), [(1.0, 0.0), (1.0, -0.1), (0.0, 0.0)])
def test_dead_filters_have_exactly_no_gradient_unless_beta_is_positive(gamma, beta):
    dead, live = filter_gradients(gamma, beta)
    assert dead.tolist() == [0, 0, 0, 0]
    assert (live > 0).all()


def test_dead_filters_have_an_inflated_gradient_if_beta_is_positive():
    dead, live = filter_gradients(1.0, 0.1)
    assert (dead > 30 * live.max()).all(), "gamma / sqrt(eps) is about 316"
    smaller, _ = filter_gradients(0.5, 0.1)
    assert smaller.sum() == pytest.approx(float(dead.sum()) / 2, rel=0.05)


@pytest.mark.parametrize("beta", [-0.1, 0.0, 0.1])
def test_a_norm_that_feeds_an_addition_passes_gradient_for_any_beta(beta):
    dead, live = filter_gradients(1.0, beta, residual=True)
    assert (dead > 10 * live.max()).all()


# -------------------------------------------------------------------------------------------- whole filters


def test_filters_are_summed_and_masked_whole():
    pattern = Filters()
    scores = torch.arange(24.0).reshape(3, 2, 2, 2)
    assert pattern.mask_shape((3, 2, 2, 2)) == (3, 1, 1, 1)
    assert pattern.reduce(scores).flatten().tolist() == [28, 92, 156]
    assert pattern.reduce(scores.reshape(3, 8)).shape == (3, 1)


@given(st.integers(1, 40), st.floats(0.001, 1))
def test_a_layer_keeps_its_share_of_filters_but_never_none(filters, density):
    count = Filters().count((filters, 3, 3, 3), density)
    assert count == max(1, round(filters * density))
    mask = Filters().draw((filters, 3, 3, 3), count, generator())
    assert mask.shape == (filters, 1, 1, 1)
    assert int(mask.sum()) == count


def test_grow_scores_put_live_and_dead_filters_on_one_scale():
    before = torch.tensor([True, True, True, False, False, False, False]).reshape(7, 1, 1, 1)
    captured = torch.tensor([0.1, 0.2, 0.3, 0.0, 20.0, 60.0, 0.0]).reshape(7, 1, 1, 1)
    scores = Filters().grow_scores(captured, before, generator()).flatten()
    torch.testing.assert_close(scores[[0, 1, 2, 4, 5]], torch.tensor([0.5, 1.0, 1.5, 0.5, 1.5]))
    assert (scores[[3, 6]] < 0).all(), "without gradient: after all others"
    assert scores[3] != scores[6], "in random order"
    again = Filters().grow_scores(captured, before, generator()).flatten()
    assert torch.equal(scores, again), "from the generator"


class Net(nn.Module):
    """Two convolutions with BatchNorm between and a classifier."""

    def __init__(self, beta=0.0, filters=8):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv1 = nn.Conv2d(3, filters, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(filters)
            self.conv2, self.head = nn.Conv2d(filters, 4, 3, padding=1), nn.Linear(4, 10)
        nn.init.constant_(self.norm.bias, beta)

    def forward(self, images):
        x = F.relu(self.norm(self.conv1(images)))
        return self.head(F.relu(self.conv2(x)).mean((2, 3)))


def train(net, config, steps, names, lr=0.05, total=None):
    """Train by a plain loop; after each step: gradients before, weights before the update, masks."""
    draws, records = generator(5), []
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    parameters = {name: net.get_parameter(name) for name in names}
    sparsifier = Sparsifier(parameters, config, total or steps)
    optimizer.register_step_post_hook(
        lambda *_: records.append([gradients, {n: p.detach().clone() for n, p in parameters.items()}])
    )
    sparsifier.attach(optimizer)
    for _ in range(steps):
        images = torch.randn(16, 3, 6, 6, generator=draws)
        labels = torch.randint(0, 10, (16,), generator=draws)
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        gradients = {n: p.grad.clone() for n, p in parameters.items()}
        optimizer.step()
        records[-1].append({n: m.clone() for n, m in sparsifier.masks.items()})
    return sparsifier, records


def test_filters_are_pruned_by_their_sum_and_whole():
    net, names = Net(), ["conv1.weight", "conv2.weight"]
    config = SparsityConfig(Cubic(0.0, 0.6, 0, 20), 0.0, 5, granularity="filter")
    _, records = train(net, config, 30, names)
    live = {name: np.ones(net.get_parameter(name).shape[0], dtype=bool) for name in names}
    for t, (_, weights, masks) in enumerate(records, start=1):
        for name in names:
            if t % 5 == 0:
                sums = np.abs(weights[name].double().numpy()).reshape(len(live[name]), -1).sum(1)
                keep = max(1, round(len(sums) * (1 - cubic(t, 0.0, 0.6, 0, 20))))
                order = sorted(np.flatnonzero(live[name]), key=lambda i, sums=sums: -sums[i])
                live[name] = np.isin(np.arange(len(sums)), order[:keep])
            assert np.array_equal(masks[name].flatten(1).all(1).numpy(), live[name]), f"{name} after step {t}"
            assert np.array_equal(masks[name].flatten(1).any(1).numpy(), live[name])
    for name in names:
        weight = net.get_parameter(name)
        assert not weight[~torch.tensor(live[name])].any()
        assert weight[torch.tensor(live[name])].flatten(1).any(1).all()
    assert {name: int(live[name].sum()) for name in names} == {"conv1.weight": 3, "conv2.weight": 2}


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_one_filter_is_always_kept_and_keeps_its_weights(ratio):
    names = ["conv1.weight", "conv2.weight"]
    config = SparsityConfig(Cubic(0.0, 0.95, 0, 10), ratio, 2, granularity="filter")
    sparsifier, records = train(Net(beta=0.1), config, 24, names)
    assert sparsifier.layer_density == {"conv1.weight": 1 / 8, "conv2.weight": 1 / 4}
    for t, (_, weights, masks) in enumerate(records, start=1):
        for name in names:
            alive = masks[name].flatten(1).any(1)
            assert alive.any()
            kept = weights[name].flatten(1).any(1) & alive
            assert kept.any(), f"{name} computes nothing after step {t}"


def test_filters_removed_in_this_update_are_scored_by_their_gradient_before_the_cut():
    """The smallest filter has the largest gradient: cut by magnitude, back at once, from zero."""
    net = nn.Conv2d(1, 4, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(4, 1, 1, 1).expand(4, 1, 2, 2))
    config = SparsityConfig(Cubic(0.0, 0.5, 0, 1), Cosine(0.5, 0.5), 1, granularity="filter")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    sparsifier = Sparsifier(net, config, 10)
    net.weight.grad = torch.tensor([0.1, 0.2, 0.3, 5.0]).reshape(4, 1, 1, 1).expand(4, 1, 2, 2).clone()
    sparsifier.before_step()
    optimizer.step()
    update = sparsifier.after_step(optimizer)
    assert sparsifier.masks["weight"].flatten(1).all(1).tolist() == [True, False, False, True]
    assert (update.pruned, update.dropped, update.grown) == (2, 1, 1)
    assert not net.weight[1:].any()
    momentum = optimizer.state[net.weight]["momentum_buffer"].flatten(1)
    assert momentum.any(1).tolist() == [True, False, False, False]


def returned(seed, beta=-0.1):
    """Filters of conv1 that were dead at first and active later."""
    config = SparsityConfig(0.5, 0.5, 4, granularity="filter", allow_readd=False, seed=seed)
    _, records = train(Net(beta), config, 24, ["conv1.weight"])
    alive = [masks["conv1.weight"].flatten(1).any(1) for _, _, masks in records]
    gradients = [g["conv1.weight"].flatten(1).abs().sum(1) for g, _, _ in records]
    assert not gradients[2][~alive[2]].any(), "beta < 0: dead filters have exactly no gradient"
    return alive, ~alive[2] & torch.stack(alive[3:]).any(0)


def test_dead_filters_without_gradient_return_by_the_seeded_lottery():
    alive, came_back = returned(seed=1)
    assert int(came_back.sum()) >= 2
    assert {int(mask.sum()) for mask in alive} == {4}
    again, _ = returned(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(alive, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(alive, returned(seed=2)[0], strict=True))


def test_linear_filters_are_output_units():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    sparsifier = Sparsifier(
        {"0.weight": net[0].weight}, SparsityConfig(0.75, granularity="filter", initial="magnitude"), 10
    )
    sums = net[0].weight.abs().sum(1)
    assert int((sums > 0).sum()) == 2
    assert sparsifier.masks["0.weight"].shape == (8, 6)
    assert sparsifier.density == 0.25


# ------------------------------------------------------------------------------------------------------ N:M


@pytest.mark.parametrize("shape", [(3, 8), (2, 8, 3, 2), (2, 4, 3), (1, 12, 1, 1)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_groups_run_along_the_inputs(shape, count):
    pattern, scores = Groups(1, 4), torch.rand(shape, generator=generator())
    full = torch.ones(shape, dtype=torch.bool)
    mask = pattern.prune([known(scores)], [full], [math.prod(shape) // 4 * count])[0]
    wanted = best_in_groups(scores.numpy(), full.numpy(), count, 4)
    assert np.array_equal(mask.numpy(), wanted)
    drawn = pattern.draw(shape, math.prod(shape) // 4 * count, generator(1))
    for chosen in (mask, drawn):
        assert {sum(bool(chosen[i]) for i in group) for group in groups_of(shape, 4)} == {count}


def test_ties_in_a_group_go_to_the_lowest_index():
    full = torch.ones(1, 8, dtype=torch.bool)
    assert Groups(2, 4).prune([known(torch.zeros(1, 8))], [full], [4])[0].int().tolist() == [[1, 1, 0, 0] * 2]
    some = torch.tensor([[False, True, False, True, True, True, False, True]])
    pruned = Groups(2, 4).prune([known(torch.zeros(1, 8))], [some], [4])[0]
    assert pruned.int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0]], "an active zero ranks above what is inactive"


@pytest.mark.parametrize(
    ("density", "count"), [(1.0, 4), (0.76, 4), (0.75, 3), (0.7, 3), (0.51, 3), (0.5, 2), (0.1, 2)]
)
def test_groups_thin_out_one_by_one(density, count):
    assert Groups(2, 4).per_group(density) == count
    assert Groups(2, 4).count((5, 8), density) == 10 * count


@pytest.mark.parametrize("readd", [True, False])
def test_groups_equal_the_restatement_at_every_update(readd):
    """On the way from 4:4 to 2:4 and after, on a convolution and a linear layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 2), nn.Flatten(), nn.Linear(72, 10))
    names = ["2.weight", "4.weight"]
    config = SparsityConfig(Cubic(0.0, 0.5, 0, 24), Cosine(0.4, 0.1), 3, granularity="2:4", allow_readd=readd)
    sparsifier, records = train(net, config, 40, names)
    state = {name: np.ones(net.get_parameter(name).shape, dtype=bool) for name in names}
    ramp = []
    for t, (gradients, weights, masks) in enumerate(records, start=1):
        if t % 3 == 0:
            per_group = max(2, math.ceil(round(4 * (1 - cubic(t, 0.0, 0.5, 0, 24)), 9)))
            ramp.append(per_group)
            for name in names:
                w, g = np.abs(weights[name].numpy()), np.abs(gradients[name].numpy())
                pruned = best_in_groups(w, state[name], per_group, 4)
                active = int(pruned.sum())
                k = math.ceil(cosine(t, 40, 0.4, 0.1) * active)
                k = k if readd else min(k, int((~pruned).sum()))
                survivors = _smallest_off(w, pruned, k)
                state[name] = _refill(g, survivors, survivors if readd else pruned, per_group)
        for name in names:
            assert np.array_equal(masks[name].numpy(), state[name]), f"{name} after step {t}"
            counts = {sum(bool(masks[name][i]) for i in group) for group in groups_of(state[name].shape, 4)}
            assert counts == {ramp[-1] if ramp else 4}
            assert not net.get_parameter(name)[~masks[name]].any() or t < 40
    assert sorted(set(ramp), reverse=True) == [4, 3, 2]
    assert sparsifier.density == 0.5


def _smallest_off(w, mask, k):
    """Switch off the ``k`` smallest active entries of the whole layer, of equals the last."""
    order = sorted(np.flatnonzero(mask), key=lambda i: (w.flat[i], -i))
    left = mask.copy()
    left.flat[order[:k]] = False
    return left


def _refill(g, survivors, closed, per_group):
    """Fill every group up: by gradient outside ``closed``, then what was dropped, of equals the first."""
    filled = survivors.copy()
    for group in groups_of(g.shape, 4):
        rest = sorted(
            (closed[i], -g[i] if not closed[i] else 0, place)
            for place, i in enumerate(group)
            if not survivors[i]
        )
        for _, _, place in rest[: per_group - sum(bool(survivors[i]) for i in group)]:
            filled[group[place]] = True
    return filled


def test_every_layer_gets_its_groups_whatever_the_distribution():
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 64), nn.Linear(64, 64))
    for distribution in ("erk", "uniform"):
        config = SparsityConfig(0.5, granularity="2:4", distribution=distribution)
        assert set(Sparsifier(net, config, 10).layer_density.values()) == {0.5}


def test_a_shape_that_does_not_divide_is_refused():
    assert Groups(2, 4).problem("fc.weight", (10, 8)) is None
    assert Groups(2, 4).problem("fc.weight", (8, 10)) == (
        "'fc.weight' of shape (8, 10) has 10 inputs, not a multiple of 4"
    )
    with pytest.raises(
        ValueError, match=r"granularity='2:4' does not fit: '0.weight' of shape \(8, 3, 3, 3\)"
    ):
        Sparsifier(nn.Sequential(nn.Conv2d(3, 8, 3)), SparsityConfig(0.5, granularity="2:4"), 10)
