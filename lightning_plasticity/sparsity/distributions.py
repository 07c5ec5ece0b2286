"""Distributions: how a global density is shared out among the layers. Plain Python numbers, no tensors."""

import math
from collections.abc import Mapping, Sequence


def _sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if not sizes:
        raise ValueError("shapes={} names no layer; give at least one weight, name -> shape.")
    for name, size in sizes.items():
        if size < 1 or not len(shapes[name]):
            raise ValueError(f"shapes[{name!r}]={tuple(shapes[name])} has no axis or no entry; leave it out.")
    return sizes


def _check_density(density: float) -> None:
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density={density!r} must be above 0 and at most 1 (density = 1 - sparsity).")


def uniform_densities(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Give every layer the same density.

    Args:
        shapes: weight name -> shape.
        density: share of active weights, in (0, 1].

    Returns:
        Weight name -> density.

    Raises:
        ValueError: if a shape is empty or the density out of range.

    Example:
        >>> uniform_densities({"conv": (8, 3, 3, 3), "head": (10, 8)}, 0.5)
        {'conv': 0.5, 'head': 0.5}
    """
    _check_density(density)
    return dict.fromkeys(_sizes(shapes), float(density))


def erk_densities(
    shapes: Mapping[str, Sequence[int]], density: float, *, power_scale: float = 1.0
) -> dict[str, float]:
    """Erdos-Renyi-Kernel densities: the larger a layer, the sparser (Evci et al. 2020, RigL, section 3).

    ``density_l = eps * (sum(shape_l) / prod(shape_l)) ** power_scale``, with eps such that the whole net has
    ``density``. A layer above 1 is made dense and eps is solved again on the others, until none is above 1.
    Every such round raises eps, so that all layers above 1 may be made dense at once: the fixed point is the
    same as the reference's, which moves only the largest in each round.

    Args:
        shapes: weight name -> shape.
        density: share of active weights in the whole net, in (0, 1].
        power_scale: 1 is ERK; 0 gives uniform densities.

    Returns:
        Weight name -> density in (0, 1]; the mean weighted by layer size is ``density``.

    Raises:
        ValueError: if a shape is empty, the density out of range or the power scale negative or not finite.

    Example:
        >>> shapes = {"conv1": (4, 1, 3, 3), "conv2": (32, 4, 3, 3), "head": (10, 32)}
        >>> {name: round(value, 3) for name, value in erk_densities(shapes, 0.25).items()}
        {'conv1': 1.0, 'conv2': 0.148, 'head': 0.533}
    """
    _check_density(density)
    if not (math.isfinite(power_scale) and power_scale >= 0.0):
        raise ValueError(f"power_scale={power_scale!r} must be finite and 0 or more.")
    sizes = _sizes(shapes)
    raw = {name: (sum(shapes[name]) / size) ** power_scale for name, size in sizes.items()}
    sparse = set(sizes) if density < 1.0 else set()
    eps = 0.0
    while sparse:
        budget = density * sum(sizes.values()) - sum(
            size for name, size in sizes.items() if name not in sparse
        )
        eps = budget / math.fsum(raw[name] * sizes[name] for name in sparse)
        saturated = {name for name in sparse if eps * raw[name] > 1.0}
        if not saturated:
            break
        sparse -= saturated
    return {name: eps * raw[name] if name in sparse else 1.0 for name in sizes}


def exact_counts(
    shapes: Mapping[str, Sequence[int]], densities: Mapping[str, float], total: int | None = None
) -> dict[str, int]:
    """Turn densities into whole numbers of active weights that add up exactly (largest remainder).

    Args:
        shapes: weight name -> shape.
        densities: weight name -> density in [0, 1], the same names.
        total: active weights of the whole net; default: the densities' own sum, rounded.

    Returns:
        Weight name -> active weights, each within one of ``size * density``, with sum ``total``. Equal
        remainders go to the layer named first.

    Raises:
        ValueError: if names differ, a density is out of range, or ``total`` isn't the densities' sum.

    Example:
        >>> exact_counts({"a": (3,), "b": (3,), "c": (4,)}, {"a": 0.5, "b": 0.5, "c": 0.5}, total=5)
        {'a': 2, 'b': 1, 'c': 2}
    """
    sizes = _sizes(shapes)
    if set(sizes) != set(densities):
        different = sorted(set(sizes) ^ set(densities))
        raise ValueError(
            f"densities must name the same layers as shapes; these are in one only: {different}."
        )
    for name, density in densities.items():
        if not 0.0 <= density <= 1.0:
            raise ValueError(f"densities[{name!r}]={density!r} must lie between 0 and 1.")
    wanted = {name: size * densities[name] for name, size in sizes.items()}
    counts = {name: math.floor(value) for name, value in wanted.items()}
    exact = math.fsum(wanted.values())
    total = round(exact) if total is None else total
    missing = total - sum(counts.values())
    takers = sorted(
        (name for name in sizes if counts[name] < sizes[name]), key=lambda name: counts[name] - wanted[name]
    )
    if not 0 <= missing <= len(takers):
        raise ValueError(
            f"total={total} can't be met: the densities add up to {math.fsum(wanted.values()):.1f}."
        )
    for name in takers[:missing]:
        counts[name] += 1
    return counts
