"""Sparse training in pure torch: which connections exist, and how that changes."""

from lightning_plasticity.sparsity.checkpoints import masks_in_checkpoint
from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.distributions import erk_densities, uniform_densities
from lightning_plasticity.sparsity.export import (
    bake,
    export_model,
    filter_groups,
    load_shrunk,
    shrink,
    to_csr,
    to_semi_structured,
)
from lightning_plasticity.sparsity.flops import Flops, count_flops
from lightning_plasticity.sparsity.maskable import maskable_parameters
from lightning_plasticity.sparsity.rewire import prune_mask, regrow_mask, rewire
from lightning_plasticity.sparsity.schedules import Constant, Cosine, Cubic, Schedule
from lightning_plasticity.sparsity.selection import exact_threshold, top_mask
from lightning_plasticity.sparsity.sparsifier import Sparsifier, Update

__all__ = [
    "Constant",
    "Cosine",
    "Cubic",
    "Flops",
    "Schedule",
    "Sparsifier",
    "SparsityConfig",
    "Update",
    "bake",
    "count_flops",
    "erk_densities",
    "exact_threshold",
    "export_model",
    "filter_groups",
    "load_shrunk",
    "maskable_parameters",
    "masks_in_checkpoint",
    "prune_mask",
    "regrow_mask",
    "rewire",
    "shrink",
    "to_csr",
    "to_semi_structured",
    "top_mask",
    "uniform_densities",
]
