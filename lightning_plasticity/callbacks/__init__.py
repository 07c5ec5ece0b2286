"""Callbacks to attach to any Trainer. Plumbing only: the methods live in the packages named after them."""

from lightning_plasticity.callbacks.entropy import EntropyController
from lightning_plasticity.callbacks.figures import FigureLogger
from lightning_plasticity.callbacks.path_integration import PathIntegrationTest
from lightning_plasticity.callbacks.presets import SET, GradualPruning, GraNet, RigL, StaticSparsity
from lightning_plasticity.callbacks.pruning_plasticity import PruningPlasticity
from lightning_plasticity.callbacks.remap import Remap
from lightning_plasticity.callbacks.sparse_training import SparseTraining

__all__ = [
    "SET",
    "EntropyController",
    "FigureLogger",
    "GraNet",
    "GradualPruning",
    "PathIntegrationTest",
    "PruningPlasticity",
    "Remap",
    "RigL",
    "SparseTraining",
    "StaticSparsity",
]
