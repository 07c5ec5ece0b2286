"""Which adapter: configurations by name, the default for a backbone, and how peft learns of ours."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def register() -> None:
    """Make peft know SSF, the bottleneck and deep prompts, as often as it is called.

    peft's own ``register_peft_method`` takes only the names of a closed list, so that the tables behind it
    are filled in directly.

    Raises:
        RuntimeError: if this version of peft has no such tables.
    """
    import peft
    from peft import mapping

    from lightning_plasticity.continual.adapters import bottleneck, prompt, ssf

    names = [f"PEFT_TYPE_TO_{what}_MAPPING" for what in ("CONFIG", "TUNER", "PREFIX")]
    if not all(isinstance(getattr(mapping, name, None), dict) for name in names):
        raise RuntimeError(f"peft {peft.__version__} isn't supported: it has no tables {names}; 0.21 has")
    tables: list[dict[Any, Any]] = [getattr(mapping, name) for name in names]
    methods: dict[str, tuple[type, Any]] = {
        ssf.SSF: (ssf.SSFConfig, ssf.SSFModel),
        bottleneck.BOTTLENECK: (bottleneck.BottleneckConfig, bottleneck.BottleneckModel),
        prompt.DEEP_PROMPT: (prompt.DeepPromptConfig, prompt.DeepPromptModel),
    }
    for name, (config, tuner) in methods.items():
        for table, entry in zip(tables, (config, tuner, tuner.prefix), strict=True):
            table[name] = entry


def default_config(backbone: nn.Module) -> Any:
    """The adapter for a backbone: SSF if it has BatchNorm, else a bottleneck, else SSF.

    Args:
        backbone: the network to adapt.

    Returns:
        An ``SSFConfig`` or a ``BottleneckConfig``.
    """
    from lightning_plasticity.continual.adapters import bottleneck, ssf

    modules = list(backbone.modules())
    convolutional = any(isinstance(module, _BatchNorm) for module in modules)
    if not convolutional and any(bottleneck.is_block(module) for module in modules):
        return bottleneck.BottleneckConfig()
    return ssf.SSFConfig()


def make_config(config: Any, backbone: nn.Module) -> Any:
    """Give the configuration of peft that a user means.

    Args:
        config: any ``PeftConfig``; or the name of a method: ``"ssf"``, ``"bottleneck"``, ``"deep_prompt"``
            or one of peft's (``"lora"``, ``"ia3"``, ``"ln_tuning"`` ...); or a mapping of ``method`` and
            its settings, as YAML has it; or None for ``default_config``.
        backbone: the network to adapt.

    Returns:
        A ``PeftConfig``.

    Raises:
        ValueError: for an unknown method or setting.

    Example:
        >>> make_config({"method": "ssf", "init": "noise"}, nn.Linear(2, 2)).init
        'noise'
    """
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    register()
    if config is None:
        return default_config(backbone)
    if isinstance(config, PeftConfig):
        return config
    settings = {"method": config} if isinstance(config, str) else dict(config)
    method = str(settings.pop("method", "")).upper()
    tables: Mapping[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    known = {str(getattr(key, "value", key)).removeprefix("PLASTICITY_"): cls for key, cls in tables.items()}
    if method not in known:
        raise ValueError(
            f"peft_config={config!r}: its method must be one of {', '.join(sorted(known)).lower()}"
        )
    try:
        return known[method](**settings)
    except TypeError as error:
        raise ValueError(f"peft_config={config!r}: {error}") from error
