"""SAFE: continual learning with a slow and a fast adapter on one frozen backbone (Zhao et al., NeurIPS 2024).

Each name is imported on first use: losses and heads are plain torch, the module brings Lightning.
"""

from typing import TYPE_CHECKING

from lightning_plasticity.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_plasticity.continual.aggregation import aggregate as aggregate
    from lightning_plasticity.continual.backbones import load_backbone as load_backbone
    from lightning_plasticity.continual.heads import CosineHead as CosineHead
    from lightning_plasticity.continual.heads import RidgeHead as RidgeHead
    from lightning_plasticity.continual.losses import alignment_loss as alignment_loss
    from lightning_plasticity.continual.losses import cross_classification_loss as cross_classification_loss
    from lightning_plasticity.continual.losses import transfer_loss as transfer_loss
    from lightning_plasticity.continual.module import SAFE as SAFE
    from lightning_plasticity.continual.settings import Losses as Losses
    from lightning_plasticity.continual.settings import Optimization as Optimization
    from lightning_plasticity.continual.settings import Prediction as Prediction

_HOME = {
    "CosineHead": "heads",
    "Losses": "settings",
    "Optimization": "settings",
    "Prediction": "settings",
    "RidgeHead": "heads",
    "SAFE": "module",
    "aggregate": "aggregation",
    "alignment_loss": "losses",
    "cross_classification_loss": "losses",
    "load_backbone": "backbones",
    "transfer_loss": "losses",
}

__all__ = sorted(_HOME)
__getattr__, __dir__ = lazy_names(__name__, _HOME)
