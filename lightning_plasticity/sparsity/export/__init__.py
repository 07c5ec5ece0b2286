"""Models that leave training smaller and faster: filters removed, 2:4 and CSR kernels, files to deploy."""

from lightning_plasticity.sparsity.export.baking import bake
from lightning_plasticity.sparsity.export.cost import ShrinkReport, compare, measure_latency
from lightning_plasticity.sparsity.export.coupling import filter_groups
from lightning_plasticity.sparsity.export.csr import to_csr
from lightning_plasticity.sparsity.export.reload import load_shrunk
from lightning_plasticity.sparsity.export.semi_structured import to_semi_structured
from lightning_plasticity.sparsity.export.surgery import shrink
from lightning_plasticity.sparsity.export.write import ExportReport, export_model

__all__ = [
    "ExportReport",
    "ShrinkReport",
    "bake",
    "compare",
    "export_model",
    "filter_groups",
    "load_shrunk",
    "measure_latency",
    "shrink",
    "to_csr",
    "to_semi_structured",
]
