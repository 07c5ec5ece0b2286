"""Densities: ERK against the published table and a plain restatement of the reference; exact counts."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_plasticity.sparsity.distributions import erk_densities, exact_counts, uniform_densities


def resnet50_for_cifar():
    """The 54 weight shapes written out, independently of any model code."""
    shapes, width = [(64, 3, 3, 3)], 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        planes = 64 * 2**stage
        for block in range(blocks):
            shapes += [(planes, width, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)]
            shapes += [(4 * planes, width, 1, 1)] if block == 0 else []
            width = 4 * planes
    return {str(k): shape for k, shape in enumerate([*shapes, (10, 2048)])}


def reference_erk(shapes, density):
    """The loop of the RigL and GraNet codes: each round makes only the likeliest layers dense."""
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    raw = {name: np.sum(shape) / np.prod(shape) for name, shape in shapes.items()}
    dense, rounds = set(), 0
    while True:
        rounds += 1
        divisor = sum(raw[name] * sizes[name] for name in shapes if name not in dense)
        budget = sum(
            density * sizes[name] - (1 if name in dense else density) * sizes[name] for name in dense
        )
        budget += sum(density * sizes[name] for name in shapes if name not in dense)
        epsilon = budget / divisor
        top = max(raw[name] for name in shapes if name not in dense)
        if top * epsilon <= 1:
            break
        dense |= {name for name in shapes if name not in dense and raw[name] == top}
    return {name: 1.0 if name in dense else epsilon * raw[name] for name in shapes}


@pytest.mark.parametrize(("density", "dense_layers", "smallest"), [(0.5, 33, 0.131), (0.2, 10, 0.042)])
def test_erk_gives_the_published_row(density, dense_layers, smallest):
    shapes = resnet50_for_cifar()
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert len(shapes) == 54
    assert round(sum(sizes.values()) / 1e6, 2) == 23.47
    densities = erk_densities(shapes, density)
    assert sum(value == 1.0 for value in densities.values()) == dense_layers
    assert round(min(densities.values()), 3) == smallest
    total = sum(densities[name] * size for name, size in sizes.items())
    assert total / sum(sizes.values()) == pytest.approx(density, rel=1e-12)


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 0.95])
def test_erk_equals_the_reference_loop(density):
    shapes = resnet50_for_cifar()
    expected = reference_erk(shapes, density)
    assert erk_densities(shapes, density) == pytest.approx(expected, rel=1e-10)


def test_erk_by_hand():
    # a: 9 weights, (1+1+3+3)/9 = 8/9; b: 16 weights, 8/16 = 1/2; budget 12.5 of 25: eps = 12.5/16
    densities = erk_densities({"a": (1, 1, 3, 3), "b": (4, 4)}, 0.5)
    assert densities == pytest.approx({"a": 12.5 / 16 * 8 / 9, "b": 12.5 / 16 / 2})
    # budget 20: eps = 1.25 makes a 10/9, so a is dense, b gets 11 of 16
    assert erk_densities({"a": (1, 1, 3, 3), "b": (4, 4)}, 0.8) == pytest.approx({"a": 1.0, "b": 11 / 16})


shape_dicts = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple),
    min_size=1,
    max_size=8,
)
densities_above_0 = st.floats(1e-4, 1.0)


@given(shape_dicts, densities_above_0, st.sampled_from([0.0, 0.5, 1.0]))
def test_erk_keeps_the_total_and_the_order(shapes, density, power_scale):
    densities = erk_densities(shapes, density, power_scale=power_scale)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert list(densities) == list(shapes)
    assert all(0.0 < value <= 1.0 + 1e-12 for value in densities.values())
    total = math.fsum(densities[name] * size for name, size in sizes.items())
    assert total == pytest.approx(density * sum(sizes.values()), rel=1e-9)
    by_raw = sorted(shapes, key=lambda name: sum(shapes[name]) / sizes[name])
    ordered = [densities[name] for name in by_raw]
    assert all(low <= high + 1e-9 for low, high in pairwise(ordered))


def test_erk_of_density_1_is_dense_and_power_0_uniform():
    shapes = resnet50_for_cifar()
    assert set(erk_densities(shapes, 1.0).values()) == {1.0}
    assert erk_densities(shapes, 0.3, power_scale=0.0) == pytest.approx(uniform_densities(shapes, 0.3))


@given(shape_dicts, densities_above_0, st.sampled_from([erk_densities, uniform_densities]))
def test_counts_add_up_and_stay_within_one(shapes, density, distribution):
    densities = distribution(shapes, density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = round(density * sum(sizes.values()))
    counts = exact_counts(shapes, densities, total)
    assert sum(counts.values()) == total
    for name, size in sizes.items():
        assert 0 <= counts[name] <= size
        assert abs(counts[name] - Fraction(densities[name]) * size) < 1 + 1e-6
    assert counts == exact_counts(shapes, densities, total)


def test_counts_by_hand():
    shapes = {"a": (3,), "b": (3,), "c": (2, 2), "full": (5,)}
    densities = {"a": 0.5, "b": 0.5, "c": 0.45, "full": 1.0}
    assert exact_counts(shapes, densities, total=9) == {
        "a": 1,
        "b": 1,
        "c": 2,
        "full": 5,
    }  # 1.8 has the most left
    assert exact_counts(shapes, densities, total=10) == {"a": 2, "b": 1, "c": 2, "full": 5}  # then a before b
    assert exact_counts(shapes, densities) == exact_counts(shapes, densities, total=10)  # 1.5 + 1.5 + 1.8 + 5


@pytest.mark.parametrize("density", [0.0, -0.2, 1.0001, math.nan])
@pytest.mark.parametrize("distribution", [erk_densities, uniform_densities])
def test_a_bad_density_is_named(distribution, density):
    with pytest.raises(ValueError, match=f"density={density!r}"):
        distribution({"a": (3, 3)}, density)


@pytest.mark.parametrize(
    ("shapes", "match"), [({}, "names no layer"), ({"a": (0, 3)}, "'a'"), ({"a": ()}, "'a'")]
)
def test_bad_shapes_are_named(shapes, match):
    with pytest.raises(ValueError, match=match):
        erk_densities(shapes, 0.5)


def test_bad_counts_are_named():
    shapes = {"a": (10,), "b": (10,)}
    with pytest.raises(ValueError, match=r"only: \['b'\]"):
        exact_counts(shapes, {"a": 0.5})
    with pytest.raises(ValueError, match=r"densities\['a'\]=1.2"):
        exact_counts(shapes, {"a": 1.2, "b": 0.5})
    for total in (9, 13):
        with pytest.raises(ValueError, match=f"total={total} .*10.8"):
            exact_counts(shapes, {"a": 0.54, "b": 0.54}, total)
    with pytest.raises(ValueError, match="power_scale=-1"):
        erk_densities(shapes, 0.5, power_scale=-1)
