"""Plasticity for models that people already train with PyTorch Lightning.

The parts are imported where they are used, so that this import costs nothing::

    from lightning_plasticity.callbacks import GraNet
    from lightning_plasticity.continual import SAFE
"""

__version__ = "0.1.0"
