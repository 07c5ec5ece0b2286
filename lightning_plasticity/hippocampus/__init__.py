"""The hippocampal formation: a Helmholtz machine that learns with theta (George et al., NeurIPS 2023)."""

from typing import TYPE_CHECKING

from lightning_plasticity.hippocampus.plasticity import LocalPlasticity

if TYPE_CHECKING:
    from lightning_plasticity.hippocampus.analysis import dark_tracking_error
    from lightning_plasticity.hippocampus.module import HippocampalFormation

__all__ = ["HippocampalFormation", "LocalPlasticity", "dark_tracking_error"]

_HOME = {"HippocampalFormation": "module", "dark_tracking_error": "analysis"}


def __getattr__(name: str) -> object:
    """Imports what needs Lightning when it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
