"""Which adapter: configurations by name, the default for a backbone, and how peft learns of ours."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from importlib import import_module
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def register() -> None:
    """Make peft know SSF, the bottleneck and deep prompts, as often as it is called.

    Raises:
        RuntimeError: if this version of peft has no tables to enter them in.
    """
    from lightning_plasticity.continual.adapters import bottleneck, prompt, ssf

    register_tuner(ssf.SSFConfig, ssf.SSFModel)
    register_tuner(bottleneck.BottleneckConfig, bottleneck.BottleneckModel)
    register_tuner(prompt.DeepPromptConfig, prompt.DeepPromptModel)


def register_tuner(config: type[Any], tuner: type[Any]) -> None:
    """Make peft know a method that it doesn't have; ``make_config`` then finds it by name, too.

    peft's own ``register_peft_method`` takes only the names of a closed list, so that the tables behind it
    are filled in directly.

    Args:
        config: a subclass of ``TunerConfig``; its ``method`` is the name.
        tuner: a subclass of ``Tuner``; the names of its tensors begin with its ``prefix``.

    Raises:
        ModuleNotFoundError: if peft is missing.
        ValueError: if another method has this name or this prefix.
        RuntimeError: if this version of peft has no tables to enter it in.
    """
    require_peft()
    import peft
    from peft import mapping

    names = [f"PEFT_TYPE_TO_{what}_MAPPING" for what in ("CONFIG", "TUNER", "PREFIX")]
    if not all(isinstance(getattr(mapping, name, None), dict) for name in names):
        raise RuntimeError(f"peft {peft.__version__} isn't supported: it has no tables {names}; 0.21 has")
    tables: list[dict[Any, Any]] = [getattr(mapping, name) for name in names]
    method, prefixes = getattr(config, "method", None), tables[2]
    if not isinstance(method, str):
        raise ValueError(f"{config.__name__}: method={method!r} must be the method's name")
    known = tables[0].get(method, config)
    # the same one from a module that is run anew is no other
    if (known.__module__, known.__qualname__) != (config.__module__, config.__qualname__):
        raise ValueError(f"{config.__name__}: method={method!r} is {known.__name__}'s: choose another name")
    taken = [other for other, prefix in prefixes.items() if prefix == tuner.prefix and other != method]
    if taken:
        raise ValueError(
            f"{tuner.__name__}: prefix={tuner.prefix!r} is that of {_method(taken[0])}: choose another one"
        )
    for table, entry in zip(tables, (config, tuner, tuner.prefix), strict=True):
        table[method] = entry


def require_peft() -> None:
    """Say which extra is missing.

    Raises:
        ModuleNotFoundError: if peft is.
    """
    try:
        import_module("peft")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "peft":
            raise
        message = "adapters need peft: pip install 'lightning-plasticity[recipes]'"
        raise ModuleNotFoundError(message, name="peft") from error


_BOOKKEEPING = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode",
}  # fmt: skip


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration as ``make_config`` takes it, in plain types, which checkpoints and YAML can hold.

    Args:
        config: a ``PeftConfig``.

    Returns:
        ``method`` and the settings that are not the method's defaults.

    Raises:
        ValueError: for a setting of another type.

    >>> plain_config(make_config({"method": "ssf", "init": "noise"}, nn.Linear(2, 2)))
    {'method': 'ssf', 'init': 'noise'}
    """
    plain = {"method": _method(config.peft_type)}
    for field in fields(config):
        value = _plain(getattr(config, field.name))
        if field.init and field.name not in _BOOKKEEPING and value != _plain(_default(field)):
            if not _is_plain(value):
                raise ValueError(
                    f"{type(config).__name__}: {field.name}={value!r} can't be kept in a checkpoint"
                )
            plain[field.name] = value
    return plain


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _method(peft_type: Any) -> str:
    return str(getattr(peft_type, "value", peft_type)).removeprefix("PLASTICITY_").lower()


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, str | int | float | bool)


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
    require_peft()
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
    known = {_method(key).upper(): cls for key, cls in tables.items()}
    if method not in known:
        raise ValueError(
            f"peft_config={config!r}: its method must be one of {', '.join(sorted(known)).lower()}"
        )
    try:
        return known[method](**settings)
    except TypeError as error:
        raise ValueError(f"peft_config={config!r}: {error}") from error
