"""A federated associative memory: clients share no examples, only sketches (Alessandrelli et al., 2026)."""

from typing import TYPE_CHECKING

from lightning_plasticity.hopfield.client import client_step
from lightning_plasticity.hopfield.config import FederationConfig
from lightning_plasticity.hopfield.disentangle import disentangle
from lightning_plasticity.hopfield.federation import combine, federate
from lightning_plasticity.hopfield.memory import Memory
from lightning_plasticity.hopfield.privacy import DifferentialPrivacy
from lightning_plasticity.hopfield.server import server_step
from lightning_plasticity.hopfield.spectrum import detectability, marchenko_pastur_edge

if TYPE_CHECKING:
    from lightning_plasticity.hopfield.module import FederatedHopfield

__all__ = [
    "DifferentialPrivacy",
    "FederatedHopfield",
    "FederationConfig",
    "Memory",
    "client_step",
    "combine",
    "detectability",
    "disentangle",
    "federate",
    "marchenko_pastur_edge",
    "server_step",
]


def __getattr__(name: str) -> object:
    """Imports the LightningModule when it is asked for, so that the engine costs no Lightning import."""
    if name != "FederatedHopfield":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_plasticity.hopfield.module import FederatedHopfield

    return FederatedHopfield
