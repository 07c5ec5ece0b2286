"""LightningDataModules: real images, class-incremental sessions, trajectories, archetype streams.

Each name is imported on first use, so that one data set never needs another's packages.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_plasticity.data.archetypes import ArchetypeStream as ArchetypeStream
    from lightning_plasticity.data.drift import DriftData as DriftData
    from lightning_plasticity.data.images import ImageData as ImageData
    from lightning_plasticity.data.intensity import IntensityData as IntensityData
    from lightning_plasticity.data.latents import LatentData as LatentData
    from lightning_plasticity.data.sessions import ClassIncrementalData as ClassIncrementalData
    from lightning_plasticity.data.trajectories import TrackData as TrackData

_HOME = {
    "ArchetypeStream": "archetypes",
    "ClassIncrementalData": "sessions",
    "DriftData": "drift",
    "ImageData": "images",
    "IntensityData": "intensity",
    "LatentData": "latents",
    "TrackData": "trajectories",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import a data module when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the data modules."""
    return sorted({*globals(), *_HOME})
