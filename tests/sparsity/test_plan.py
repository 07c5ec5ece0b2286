"""Plan: when updates fall, and how many units are active after each."""

import math

import pytest

from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.distributions import erk_densities
from lightning_plasticity.sparsity.plan import Plan
from lightning_plasticity.sparsity.schedules import Cosine, Cubic
from tests.sparsity.reference import cubic

SHAPES = {"conv1.weight": (4, 1, 3, 3), "conv2.weight": (32, 4, 3, 3), "head.weight": (10, 32)}
SIZE = 36 + 1152 + 320


def steps_of_updates(config, total, counts=None):
    """Follow a plan as the engine does: after an update the counts are what was wanted."""
    plan, updates = Plan(config, SHAPES, total), []
    counts = plan.initial_counts() if counts is None else counts
    for step in range(1, total + 1):
        if plan.is_update(step, counts):
            updates.append(step)
            wanted = plan.targets(step)
            counts = [wanted, 0, 0] if isinstance(wanted, int) else wanted
    return updates, sum(counts)


def test_gradual_pruning_updates_on_the_beat_and_at_its_end():
    config = SparsityConfig(Cubic(0.0, 0.9, 0.0, 0.5), 0.0, 10)
    assert steps_of_updates(config, 90) == ([10, 20, 30, 40, 45], round(SIZE * 0.1))
    assert steps_of_updates(config, 80) == ([10, 20, 30, 40], round(SIZE * 0.1))


def test_regeneration_goes_on_after_the_end_of_pruning():
    config = SparsityConfig(Cubic(0.0, 0.9, 0, 25), Cosine(0.5, 0.005), 10)
    assert steps_of_updates(config, 60)[0] == [10, 20, 25, 30, 40, 50, 60]


def test_regeneration_ends_where_its_ratio_is_zero():
    config = SparsityConfig(0.9, Cosine(0.3, 0.0, 0.0, 0.75), 10)
    assert steps_of_updates(config, 80)[0] == [10, 20, 30, 40, 50]


def test_updates_rarer_than_the_whole_ramp_still_reach_the_target_at_its_end():
    config = SparsityConfig(Cubic(0.0, 0.9, 0.0, 0.5), 0.0, 1000)
    assert steps_of_updates(config, 80) == ([40], round(SIZE * 0.1))


def test_a_missed_end_is_made_up_at_the_next_step():
    plan = Plan(SparsityConfig(Cubic(0.0, 0.9, 0, 25), 0.0, 10), SHAPES, 60)
    late = [plan.targets(20), 0, 0]
    assert [step for step in range(21, 30) if plan.is_update(step, late)] == [25, 26, 27, 28, 29]
    assert not plan.is_update(24, late)


@pytest.mark.parametrize("step", [0, 1, 7, 13, 25, 26, 60])
def test_global_targets_are_exact(step):
    plan = Plan(SparsityConfig(Cubic(0.2, 0.9, 5, 25)), SHAPES, 60)
    assert plan.is_global
    assert plan.targets(step) == round(SIZE * (1 - cubic(step, 0.2, 0.9, 5, 25)))
    assert plan.has_arrived(step) == (step >= 25)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.77, 0.95])
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_layer_targets_follow_the_distribution_and_add_up_exactly(sparsity, distribution):
    plan = Plan(SparsityConfig(sparsity, scope="layer", distribution=distribution), SHAPES, 60)
    targets = plan.targets(60)
    assert targets == plan.initial_counts()
    assert sum(targets) == round(SIZE * (1 - sparsity))
    wanted = (
        erk_densities(SHAPES, 1 - sparsity) if distribution == "erk" else dict.fromkeys(SHAPES, 1 - sparsity)
    )
    for (name, shape), count in zip(SHAPES.items(), targets, strict=True):
        assert abs(count - math.prod(shape) * wanted[name]) < 1


def test_filters_and_groups_have_one_density_in_all_layers():
    filters = Plan(SparsityConfig(0.5, granularity="filter"), SHAPES, 10)
    assert not filters.is_global
    assert filters.sizes == [4, 32, 10]
    assert filters.targets(10) == filters.initial_counts() == [2, 16, 5]
    assert Plan(SparsityConfig(0.98, granularity="filter"), SHAPES, 10).targets(10) == [1, 1, 1]
    shapes = {name: SHAPES[name] for name in ("conv2.weight", "head.weight")}
    assert Plan(SparsityConfig(0.5, granularity="2:4"), shapes, 10).targets(10) == [576, 160]


def test_a_mapping_gives_every_layer_its_own_and_leaves_the_rest_dense():
    plan = Plan(
        SparsityConfig({"conv*": Cubic(0.0, 0.5, 0, 10), "head": 0.9}), {**SHAPES, "fc.weight": (5, 5)}, 20
    )
    assert list(plan.shapes) == list(SHAPES)
    assert not plan.is_global
    assert plan.initial_counts() == [36, 1152, 32]
    assert plan.targets(10) == [18, 576, 32]
    assert not plan.has_arrived(9)
    assert plan.is_behind(10, [18, 577, 32])
    assert not plan.is_behind(10, [18, 576, 32])


def test_bad_mappings_are_refused():
    with pytest.raises(ValueError, match="sparsity: the pattern 'fc' matches no parameter"):
        Plan(SparsityConfig({"fc": 0.5}), SHAPES, 10)
    with pytest.raises(ValueError, match=r"several patterns match one layer, make them disjoint: .*conv1"):
        Plan(SparsityConfig({"conv1": 0.5, "conv*": 0.5}), SHAPES, 10)


@pytest.mark.parametrize(("allow_readd", "wanted"), [(True, [17, 0, 160]), (False, [3, 0, 0])])
def test_layers_exchange_what_their_room_allows(allow_readd, wanted):
    """Half of 33, rounded up; a layer without gradient sits out; outside are 3 and 0 units."""
    plan = Plan(SparsityConfig(0.5, 0.5, 10, allow_readd=allow_readd), SHAPES, 100)
    assert plan.exchanged(10, [33, 600, 320], [True, False, True]) == wanted


def test_one_filter_is_never_exchanged_nor_cut():
    plan = Plan(SparsityConfig(0.5, 1.0, 10, granularity="filter"), SHAPES, 100)
    assert plan.exchanged(10, [1, 20, 10], [True] * 3) == [0, 19, 9]
    assert plan.after_cut(0.9, [4, 20, 10]) == [1, 2, 1]


@pytest.mark.parametrize(("scope", "left"), [("global", 138), ("layer", [8, 30, 100])])
def test_a_cut_leaves_the_rest_of_all_layers_or_of_each(scope, left):
    """Three tenths of the active units stay, rounded over all layers or in each."""
    plan = Plan(SparsityConfig(0.5, scope=scope), SHAPES, 100)
    assert plan.after_cut(0.7, [27, 100, 333]) == left


def test_pruning_never_asks_for_more_than_there_is():
    plan = Plan(SparsityConfig({"conv1": 0.5, "conv2": 0.5}), SHAPES, 100)
    assert plan.kept(0, [10, 1000]) == [10, 576]
    assert Plan(SparsityConfig(0.5), SHAPES, 100).kept(0, [36, 1152, 320]) == SIZE // 2
