"""LightningDataModules: real images, class-incremental sessions, trajectories, archetype streams.

Each name is imported on first use, so that one data set never needs another's packages.
"""

from typing import TYPE_CHECKING

from lightning_plasticity.lazy import lazy_names

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
__getattr__, __dir__ = lazy_names(__name__, _HOME)
