"""Torchmetrics of the systems, each beside the pure functions that it is made of.

Each name is imported on first use, so that one metric never needs another's packages.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_plasticity.metrics.archetype_overlap import ArchetypeOverlap as ArchetypeOverlap
    from lightning_plasticity.metrics.continual_accuracy import ContinualAccuracy as ContinualAccuracy

_HOME = {
    "ArchetypeOverlap": "archetype_overlap",
    "ContinualAccuracy": "continual_accuracy",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import a metric when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the metrics."""
    return sorted({*globals(), *_HOME})
