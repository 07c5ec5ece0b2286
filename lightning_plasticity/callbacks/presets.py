"""The named methods: SparseTraining with the settings of a paper."""

from collections.abc import Mapping
from typing import Any

from lightning_plasticity.callbacks.sparse_training import SparseTraining
from lightning_plasticity.sparsity.config import Distribution
from lightning_plasticity.sparsity.schedules import (
    Constant,
    Cosine,
    Cubic,
    Schedule,
    check_fraction,
    check_time,
)

Target = float | Mapping[str, float]
"""A final sparsity, or name pattern to final sparsity."""


class GraNet(SparseTraining):
    """Gradual pruning with zero-cost neuroregeneration (Liu et al., NeurIPS 2021).

    At every update: prune to the cubic schedule over all layers, then in each layer drop a share of the
    active connections of smallest ``|w|`` and grow as many of largest ``|gradient|``. Regeneration goes on to
    the last step, its share falling by a cosine from ``regrow_ratio`` to 0.005 over the whole run.

    Args:
        sparsity: Final sparsity in [0, 1), or name pattern to final sparsity (pruned layer by layer then).
        initial_sparsity: Sparsity of the initial masks, 0 (dense to sparse) or 0.5 in the paper.
        update_every: Optimizer steps between updates (paper: 1000 on CIFAR, 4000 on ImageNet).
        prune_from: Start of pruning: fraction of the run's optimizer steps if a float, steps if an int.
        prune_until: End of pruning, where ``sparsity`` is reached exactly; the same units. Best before the
            learning rate first drops.
        regrow_ratio: First share of regeneration, or a schedule that replaces the cosine.
        distribution: Layer densities of the initial masks, ``"erk"`` or ``"uniform"``.
        granularity: ``"weight"``, ``"filter"`` or an N:M string such as ``"2:4"``.
        **options: Further settings of :class:`SparseTraining`, such as ``exclude`` and ``seed``.

    Raises:
        ValueError: For a setting out of its range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GraNet(sparsity=0.9)], logger=False)
    """

    def __init__(
        self,
        sparsity: Target = 0.9,
        initial_sparsity: float = 0.0,
        update_every: int = 1000,
        prune_from: float | int = 0.0,
        prune_until: float | int = 0.5,
        regrow_ratio: float | Schedule = 0.5,
        distribution: Distribution = "erk",
        granularity: str = "weight",
        **options: Any,
    ) -> None:
        super().__init__(
            sparsity=ramp(sparsity, initial_sparsity, prune_from, prune_until),
            regrow_ratio=_cosine(regrow_ratio, 0.005, 1.0),
            update_every=update_every,
            distribution=distribution,
            granularity=granularity,
            **options,
        )


class GradualPruning(SparseTraining):
    """Gradual magnitude pruning, GMP (Zhu and Gupta 2017): GraNet without regeneration.

    Args:
        sparsity: Final sparsity in [0, 1), or name pattern to final sparsity (pruned layer by layer then).
        initial_sparsity: Sparsity of the initial masks.
        update_every: Optimizer steps between updates.
        prune_from: Start of pruning: fraction of the run's optimizer steps if a float, steps if an int.
        prune_until: End of pruning, where ``sparsity`` is reached exactly; the same units.
        distribution: Layer densities of the initial masks, ``"erk"`` or ``"uniform"``.
        granularity: ``"weight"``, ``"filter"`` or an N:M string.
        **options: Further settings of :class:`SparseTraining`.

    Raises:
        ValueError: For a setting out of its range.
    """

    def __init__(
        self,
        sparsity: Target = 0.9,
        initial_sparsity: float = 0.0,
        update_every: int = 1000,
        prune_from: float | int = 0.0,
        prune_until: float | int = 0.5,
        distribution: Distribution = "erk",
        granularity: str = "weight",
        **options: Any,
    ) -> None:
        super().__init__(
            sparsity=ramp(sparsity, initial_sparsity, prune_from, prune_until),
            regrow_ratio=0.0,
            update_every=update_every,
            distribution=distribution,
            granularity=granularity,
            **options,
        )


class RigL(SparseTraining):
    """Sparse from the start, rewired by magnitude and gradient (Evci et al. 2020).

    Args:
        sparsity: Sparsity in [0, 1), or name pattern to sparsity.
        update_every: Optimizer steps between updates.
        regrow_ratio: First share of active connections exchanged, falling by a cosine to 0 at
            ``update_until``, or a schedule that replaces the cosine.
        update_until: Where rewiring stops: fraction of the run if a float, steps if an int.
        distribution: Layer densities, ``"erk"`` or ``"uniform"``.
        granularity: ``"weight"``, ``"filter"`` or an N:M string.
        **options: Further settings of :class:`SparseTraining`.

    Raises:
        ValueError: For a setting out of its range.
    """

    def __init__(
        self,
        sparsity: Target = 0.9,
        update_every: int = 100,
        regrow_ratio: float | Schedule = 0.3,
        update_until: float | int = 0.75,
        distribution: Distribution = "erk",
        granularity: str = "weight",
        **options: Any,
    ) -> None:
        check_time("update_until", update_until)
        super().__init__(
            sparsity=sparsity,
            regrow_ratio=_cosine(regrow_ratio, 0.0, update_until),
            update_every=update_every,
            distribution=distribution,
            granularity=granularity,
            **options,
        )


class SET(RigL):
    """Sparse evolutionary training (Mocanu et al. 2018): drop by magnitude, grow at random.

    RigL with another grow score; its falling share of exchanged connections, too, as the RigL paper compares
    the two. ``regrow_ratio=Constant(0.3)`` exchanges the same share up to the last step, as SET first did.

    Args:
        sparsity: Sparsity in [0, 1), or name pattern to sparsity.
        update_every: Optimizer steps between updates.
        regrow_ratio: First share of active connections exchanged, falling by a cosine to 0 at
            ``update_until``, or a schedule that replaces the cosine.
        update_until: Where rewiring stops: fraction of the run if a float, steps if an int.
        distribution: Layer densities, ``"erk"`` or ``"uniform"``.
        granularity: ``"weight"``, ``"filter"`` or an N:M string.
        **options: Further settings of :class:`SparseTraining`.

    Raises:
        ValueError: For a setting out of its range.
    """

    def __init__(
        self,
        sparsity: Target = 0.9,
        update_every: int = 100,
        regrow_ratio: float | Schedule = 0.3,
        update_until: float | int = 0.75,
        distribution: Distribution = "erk",
        granularity: str = "weight",
        **options: Any,
    ) -> None:
        super().__init__(
            sparsity,
            update_every,
            regrow_ratio,
            update_until,
            distribution,
            granularity,
            grow="random",
            **options,
        )


class StaticSparsity(SparseTraining):
    """Masks drawn once and never changed: the baseline that rewiring has to beat.

    Args:
        sparsity: Sparsity in [0, 1), or name pattern to sparsity.
        distribution: Layer densities, ``"erk"`` or ``"uniform"``.
        granularity: ``"weight"``, ``"filter"`` or an N:M string.
        **options: Further settings of :class:`SparseTraining`, such as ``initial="magnitude"`` for a trained
            net.

    Raises:
        ValueError: For a setting out of its range.
    """

    def __init__(
        self,
        sparsity: Target = 0.9,
        distribution: Distribution = "erk",
        granularity: str = "weight",
        **options: Any,
    ) -> None:
        super().__init__(sparsity=sparsity, distribution=distribution, granularity=granularity, **options)


def ramp(
    sparsity: Target, initial_sparsity: float, prune_from: float | int, prune_until: float | int
) -> Schedule | dict[str, float | Schedule]:
    """The cubic schedule that presets prune along, or one for each name pattern.

    Raises:
        ValueError: Names the preset's own argument.
    """
    check_fraction("initial_sparsity", initial_sparsity)
    if isinstance(sparsity, Mapping):
        return {
            name: _cubic(target, initial_sparsity, prune_from, prune_until)
            for name, target in sparsity.items()
        }
    return _cubic(sparsity, initial_sparsity, prune_from, prune_until)


def _cubic(sparsity: float, initial: float, prune_from: float | int, prune_until: float | int) -> Schedule:
    if isinstance(sparsity, Schedule):
        raise ValueError(
            "sparsity must be the final sparsity, a number; for a schedule of your own use SparseTraining"
        )
    check_fraction("sparsity", sparsity)
    if initial > sparsity:
        raise ValueError(
            f"initial_sparsity={initial} is above sparsity={sparsity}; connections cannot be added back"
        )
    for argument, value in (("prune_from", prune_from), ("prune_until", prune_until)):
        check_time(argument, value)
    if prune_until == 0:
        raise ValueError(
            "prune_until=0 leaves no step to prune in; for masks from the start use StaticSparsity"
        )
    if type(prune_from) is type(prune_until) and prune_until < prune_from:
        raise ValueError(f"prune_until={prune_until} comes before prune_from={prune_from}")
    return Cubic(initial, sparsity, prune_from, prune_until)


def _cosine(ratio: float | Schedule, final: float, end: float | int) -> Schedule:
    if isinstance(ratio, Schedule):
        return ratio
    check_fraction("regrow_ratio", ratio, closed=True)
    return Cosine(ratio, min(ratio, final), 0.0, end) if ratio > 0 else Constant(0.0)
