"""Intrinsic plasticity: neurons that learn how strong their stimuli are (Poisson-Gamma mixture)."""

from lightning_plasticity.intrinsic.mixture import PoissonGammaMixture

__all__ = ["PoissonGammaMixture"]
