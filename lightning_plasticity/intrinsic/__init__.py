"""Intrinsic plasticity: neurons that learn how strong their stimuli are (Monk et al., NIPS 2016)."""

from typing import TYPE_CHECKING

from lightning_plasticity.intrinsic.mixture import PoissonGammaMixture
from lightning_plasticity.intrinsic.optimizers import CircuitPlasticity, ExpectationMaximization

if TYPE_CHECKING:
    from lightning_plasticity.intrinsic.module import IntrinsicPlasticityMixture

__all__ = [
    "CircuitPlasticity",
    "ExpectationMaximization",
    "IntrinsicPlasticityMixture",
    "PoissonGammaMixture",
]


def __getattr__(name: str) -> object:
    """Imports the LightningModule when it is asked for, so that the estimator costs no Lightning import."""
    if name != "IntrinsicPlasticityMixture":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_plasticity.intrinsic.module import IntrinsicPlasticityMixture

    return IntrinsicPlasticityMixture
