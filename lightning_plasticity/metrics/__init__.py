"""Torchmetrics of the systems, each beside the pure functions that it is made of.

Each name is imported on first use, so that one metric never needs another's packages.
"""

from typing import TYPE_CHECKING

from lightning_plasticity.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_plasticity.metrics.archetype_overlap import ArchetypeOverlap as ArchetypeOverlap
    from lightning_plasticity.metrics.circular_decoding import CircularDecodingError as CircularDecodingError
    from lightning_plasticity.metrics.circular_decoding import (
        PathIntegrationHorizon as PathIntegrationHorizon,
    )
    from lightning_plasticity.metrics.continual_accuracy import ContinualAccuracy as ContinualAccuracy
    from lightning_plasticity.metrics.latent_statistics import AutocorrelationError as AutocorrelationError
    from lightning_plasticity.metrics.latent_statistics import LatentR2 as LatentR2
    from lightning_plasticity.metrics.prediction_error import PredictionError as PredictionError
    from lightning_plasticity.metrics.ring_score import LiveCells as LiveCells
    from lightning_plasticity.metrics.ring_score import RingScore as RingScore

_HOME = {
    "AutocorrelationError": "latent_statistics",
    "CircularDecodingError": "circular_decoding",
    "LatentR2": "latent_statistics",
    "LiveCells": "ring_score",
    "PathIntegrationHorizon": "circular_decoding",
    "PredictionError": "prediction_error",
    "RingScore": "ring_score",
    "ArchetypeOverlap": "archetype_overlap",
    "ContinualAccuracy": "continual_accuracy",
}

__all__ = sorted(_HOME)
__getattr__, __dir__ = lazy_names(__name__, _HOME)
