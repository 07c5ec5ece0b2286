"""Each preset through a real run: its density over time, its exact end, when it rewires and how it draws."""

import pytest
import torch

from lightning_plasticity.callbacks.presets import SET, GradualPruning, GraNet, RigL, StaticSparsity
from lightning_plasticity.sparsity.distributions import erk_densities
from lightning_plasticity.sparsity.schedules import Constant, Cosine, Cubic
from tests.sparsity.reference import Family, cosine, cubic
from tests.trainer.following import follow
from tests.trainer.modules import ConvNet, Tape, loader, make_trainer

STEPS = 60


def run(callback, steps=STEPS, seed=0):
    """Train and give back the module and the tape."""
    module, tape = ConvNet(seed=seed), Tape()
    make_trainer([tape, callback], max_steps=steps, max_epochs=-1).fit(module, loader())
    return module, tape


def densities(tape):
    """Density after every step."""
    total = sum(mask.numel() for mask in tape.frames[0].masks.values())
    return [sum(int(mask.sum()) for mask in frame.masks.values()) / total for frame in tape.frames]


def changes(tape):
    """Steps at which any mask changed."""
    pairs = zip(tape.frames, tape.frames[1:], strict=False)
    return [
        t
        for t, (old, new) in enumerate(pairs, start=2)
        if any(not torch.equal(mask, new.masks[name]) for name, mask in old.masks.items())
    ]


@pytest.mark.parametrize("preset", [GraNet, GradualPruning])
@pytest.mark.parametrize(("start", "until", "initial"), [(0.0, 0.5, 0.0), (0.2, 0.75, 0.5), (7, 39, 0.0)])
def test_gradual_presets_follow_the_cubic_curve_to_an_exact_end(preset, start, until, initial):
    callback = preset(0.9, initial_sparsity=initial, update_every=8, prune_from=start, prune_until=until)
    _, tape = run(callback)
    first, last = (round(time * STEPS) if isinstance(time, float) else time for time in (start, until))
    assert last % 8, "the end lies off the beat"
    density, done = [1 - initial, *densities(tape)], 0
    for t in range(1, STEPS + 1):
        done = t if t % 8 == 0 or t == last else done
        assert density[t] == round(980 * (1 - cubic(done, initial, 0.9, first, last))) / 980, f"step {t}"
    assert density[last] == 98 / 980 < density[last - 1]
    late = [t for t in changes(tape) if t > last]
    assert bool(late) == (preset is GraNet)
    assert all(t % 8 == 0 for t in late)


def test_granet_is_the_restatement_from_half_as_well():
    callback = GraNet(0.9, initial_sparsity=0.5, update_every=6, prune_from=5, prune_until=40)
    module, tape = run(callback)
    names = list(callback.masks)
    shapes = {name: tuple(module.get_parameter(name).shape) for name in names}
    initial = tape.frames[0].masks
    wanted = erk_densities(shapes, 0.5)
    for name in names:
        assert abs(int(initial[name].sum()) - wanted[name] * initial[name].numel()) < 1
    assert sum(int(mask.sum()) for mask in initial.values()) == 490
    reference = Family(
        [initial[name].numpy() for name in names],
        lambda t: cubic(t, 0.5, 0.9, 5, 40),
        40,
        lambda t: cosine(t, STEPS, 0.5, 0.005),
        6,
    )
    follow(tape, reference, names)
    assert reference.updates == 11


@pytest.mark.parametrize("preset", [RigL, GraNet])
def test_a_regrow_ratio_can_be_a_schedule_or_nothing(preset):
    assert preset(0.5, regrow_ratio=Cosine(0.4, 0.2)).config.regrow_schedule == Cosine(0.4, 0.2)
    assert preset(0.5, regrow_ratio=0.0).config.regrow_schedule == Constant(0.0)


def test_published_defaults():
    granet, rigl = GraNet().config, RigL().config
    assert granet.sparsity == Cubic(0.0, 0.9, 0.0, 0.5)
    assert granet.regrow_ratio == Cosine(0.5, 0.005, 0.0, 1.0)
    assert (granet.update_every, granet.scope, granet.drop, granet.grow) == (
        1000,
        "global",
        "magnitude",
        "gradient",
    )
    assert rigl.regrow_ratio == Cosine(0.3, 0.0, 0.0, 0.75)
    assert (rigl.update_every, rigl.distribution, rigl.grow) == (100, "erk", "gradient")
    assert (SET().config.grow, SET().config.regrow_ratio) == ("random", Cosine(0.3, 0.0, 0.0, 0.75))
    assert GradualPruning().config.regrow_ratio == 0.0
    assert StaticSparsity().config.regrow_ratio == 0.0


@pytest.mark.parametrize(("until", "last"), [(0.5, 25), (33, 30), (0.75, 40)])
def test_rigl_rewires_until_its_end_and_keeps_every_count(until, last):
    callback = RigL(0.8, update_every=5, update_until=until)
    _, tape = run(callback)
    names = list(callback.masks)
    end = round(until * STEPS) if isinstance(until, float) else until
    initial = [tape.frames[0].masks[name].numpy() for name in names]
    reference = Family(initial, lambda t: 0.8, 0, lambda t: cosine(t, end, 0.3, 0.0) if t < end else 0.0, 5)
    follow(tape, reference, names)
    assert max(changes(tape)) == last
    counts = [int(mask.sum()) for mask in initial]
    assert sum(counts) == 196
    assert all([int(f.masks[n].sum()) for n in names] == counts for f in tape.frames)


def test_set_grows_at_random_reproducibly_from_its_seed():
    runs = [run(SET(0.8, update_every=10, seed=seed))[1] for seed in (0, 0, 1)]
    names = list(runs[0].frames[0].masks)
    for name in names:
        assert all(
            torch.equal(a.masks[name], b.masks[name])
            for a, b in zip(runs[0].frames, runs[1].frames, strict=True)
        )
    assert any(not torch.equal(runs[0].frames[-1].masks[n], runs[2].frames[-1].masks[n]) for n in names)
    assert changes(runs[0]) == [10, 20, 30, 40]
    assert set(densities(runs[0])) == {0.2}


def test_set_drops_the_smallest_and_its_growth_ignores_the_gradient():
    callback = SET(0.8, update_every=10, regrow_ratio=Constant(0.3), seed=3)
    _, tape = run(callback)
    chances, grown = 0.0, 0
    for t in range(10, STEPS + 1, 10):
        frame, before = tape.frames[t - 1], tape.frames[t - 2]
        for name in ("conv2.weight", "conv3.weight"):
            old, new, weight = before.masks[name], frame.masks[name], frame.weights[name].abs()
            count = int(old.sum())
            survivors = count - int(torch.ceil(torch.tensor(0.3 * count)))
            threshold = weight[old].sort(descending=True).values[survivors - 1]
            assert new[old & (weight >= threshold)].all(), "the largest stay"
            candidates = frame.gradients[name].abs()[~old]
            chosen = frame.gradients[name].abs()[new & ~old]
            below, equal = candidates[None] < chosen[:, None], candidates[None] == chosen[:, None]
            rank = below.float().mean(1) + equal.float().mean(1) / 2
            chances, grown = chances + float(rank.sum()), grown + len(chosen)
    assert grown > 150
    assert abs(chances / grown - 0.5) < 0.1, (
        "ranks of what grew are uniform; by gradient they would be near 1"
    )


def test_static_sparsity_never_changes_and_trains_its_weights():
    callback = StaticSparsity(0.85, distribution="uniform")
    module, tape = run(callback)
    assert changes(tape) == []
    for name, mask in callback.masks.items():
        assert abs(int(mask.sum()) - 0.15 * mask.numel()) < 1
        weight = module.get_parameter(name)
        assert not weight[~mask].any()
        assert (weight[mask] != tape.frames[0].weights_after[name][mask]).any()
    assert callback.density == round(980 * 0.15) / 980


def test_static_sparsity_by_magnitude_keeps_the_largest_of_a_trained_net():
    module = ConvNet(seed=4)
    weights = {name: p.detach().abs().clone() for name, p in module.named_parameters() if p.dim() > 1}
    callback = StaticSparsity(0.7, initial="magnitude")
    make_trainer([callback], max_steps=1).fit(module, loader())
    threshold = torch.cat([weight.flatten() for weight in weights.values()]).sort(descending=True).values[293]
    for name, mask in callback.masks.items():
        assert torch.equal(mask, weights[name] >= threshold)


@pytest.mark.parametrize("seed", [0, 7])
def test_initial_masks_come_from_the_seed_alone(seed):
    drawn = []
    for torch_seed in (1, 2):
        torch.manual_seed(torch_seed)
        callback = StaticSparsity(0.9, seed=seed)
        make_trainer([callback], max_steps=1).fit(ConvNet(), loader())
        drawn.append(callback.masks)
    assert all(torch.equal(mask, drawn[1][name]) for name, mask in drawn[0].items())
    other = StaticSparsity(0.9, seed=seed + 1)
    make_trainer([other], max_steps=1).fit(ConvNet(), loader())
    assert any(not torch.equal(mask, other.masks[name]) for name, mask in drawn[0].items())


@pytest.mark.parametrize("preset", [GraNet, GradualPruning, RigL, SET, StaticSparsity])
def test_filters_and_groups_in_every_preset(preset):
    timing = {} if preset is StaticSparsity else {"update_every": 6}
    filters = preset(0.5, granularity="filter", **timing)
    run(filters, 30)
    assert {name: int(mask.flatten(1).any(1).sum()) for name, mask in filters.masks.items()} == {
        "conv1.weight": 2,
        "conv2.weight": 4,
        "conv3.weight": 4,
    }
    assert filters.density == 0.5
    groups = preset(0.5, granularity="2:4", exclude=["conv1"], **timing)
    module, _ = run(groups, 30)
    for name, mask in groups.masks.items():
        assert (mask.movedim(1, -1).unflatten(-1, (-1, 4)).sum(-1) == 2).all(), name
        assert not module.get_parameter(name)[~mask].any()
