"""Adapters for frozen backbones: SSF, bottleneck and deep prompts as tuners of peft, and a pair of adapters.

Each name is imported on first use: the tuners extend peft's classes, and so need peft on import.
"""

from typing import TYPE_CHECKING

from lightning_plasticity.continual.adapters import configs
from lightning_plasticity.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_plasticity.continual.adapters.bottleneck import BottleneckConfig as BottleneckConfig
    from lightning_plasticity.continual.adapters.configs import make_config as make_config
    from lightning_plasticity.continual.adapters.configs import plain_config as plain_config
    from lightning_plasticity.continual.adapters.configs import register as register
    from lightning_plasticity.continual.adapters.configs import register_tuner as register_tuner
    from lightning_plasticity.continual.adapters.pair import AdapterPair as AdapterPair
    from lightning_plasticity.continual.adapters.prompt import DeepPromptConfig as DeepPromptConfig
    from lightning_plasticity.continual.adapters.ssf import SSFConfig as SSFConfig
    from lightning_plasticity.continual.adapters.tuner import Tuner as Tuner
    from lightning_plasticity.continual.adapters.tuner import TunerConfig as TunerConfig
    from lightning_plasticity.continual.adapters.tuner import TunerLayer as TunerLayer

_HOME = {
    "AdapterPair": "pair",
    "BottleneckConfig": "bottleneck",
    "DeepPromptConfig": "prompt",
    "SSFConfig": "ssf",
    "Tuner": "tuner",
    "TunerConfig": "tuner",
    "TunerLayer": "tuner",
    "make_config": "configs",
    "plain_config": "configs",
    "register": "configs",
    "register_tuner": "configs",
}

__all__ = sorted(_HOME)
_import_name, __dir__ = lazy_names(__name__, _HOME)


def __getattr__(name: str) -> object:
    """Import a part when it is first asked for, or say which extra it needs."""
    if _HOME.get(name) in ("bottleneck", "prompt", "ssf", "tuner"):
        configs.require_peft()
    return _import_name(name)
