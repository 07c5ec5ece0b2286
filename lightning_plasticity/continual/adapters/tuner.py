"""What SSF, the bottleneck and deep prompts share: how peft finds, wraps and unwraps their modules."""

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn


@dataclass
class TunerConfig(PeftConfig):
    """Where an adapter goes, as for peft's own methods.

    A subclass is a dataclass with settings of its own, all with defaults, and names its method.

    Args:
        target_modules: names of the modules to adapt: a list of endings, or a regular expression that a whole
            name must match. None: those that the method itself is for.
        exclude_modules: names of modules to leave out, likewise.

    Attributes:
        method: its name for peft, which no other method has.
    """

    method: ClassVar[str]

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None

    def __post_init__(self) -> None:
        """Run peft's own checks, and say of which method this is; a subclass adds checks of its own."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = self.method

    def require(self, condition: bool, name: str, wanted: str) -> None:
        """Refuse a setting.

        Raises:
            ValueError: unless the condition holds.
        """
        if not condition:
            raise ValueError(f"{type(self).__name__}: {name}={getattr(self, name)!r} must be {wanted}")


class TunerLayer(nn.Module, BaseTunerLayer):
    """A module with adapters beside it, one for each name.

    A subclass lists in ``adapter_layer_names`` its containers keyed by the adapters' names, fills them in
    ``update_layer``, which ends with ``finish``, and changes ``base_layer``'s output by those that are
    ``acting()``.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []

    @abstractmethod
    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add an adapter."""

    def acting(self) -> list[str]:
        """Names of the adapters that change the output now."""
        if self.disable_adapters:
            return []
        available = self._get_available_adapters()
        return [name for name in self.active_adapters if name in available]

    def finish(self, adapter_name: str, config: TunerConfig) -> None:
        """Put a new adapter where the wrapped module is, and leave the active adapters as they are."""
        like = next(self.base_layer.parameters(), None)
        if like is not None:
            for container in self.adapter_layer_names:
                entry = getattr(self, container)[adapter_name]
                for parameter in [entry] if isinstance(entry, nn.Parameter) else entry.parameters():
                    parameter.data = parameter.data.to(like.device)
        self.set_adapter(self.active_adapters or [adapter_name], inference_mode=config.inference_mode)


class Tuner(BaseTuner):
    """Wraps each module that a configuration names into this method's layer.

    Attributes:
        prefix: how the names of the method's tensors begin; no other method's do.
        tuner_layer_cls: the method's layer.
        fitting: what a module must be for it, in words.
    """

    tuner_layer_cls: type[TunerLayer]
    fitting = "module"

    @abstractmethod
    def fits(self, module: nn.Module) -> bool:
        """Whether this method can adapt a module."""

    def is_default(self, module: nn.Module) -> bool:
        """Whether this method adapts a module unless told otherwise."""
        return self.fits(module)

    def _default_targets(self) -> Iterator[str]:
        for name, module in self.model.named_modules():
            inside = "base_layer" in name.split(".")  # of a layer that has an adapter already
            if isinstance(module, self.tuner_layer_cls) or (not inside and self.is_default(module)):
                yield name

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if peft_config.target_modules is None:
            names = [re.escape(name) for name in self._default_targets()]
            if not names:
                raise ValueError(
                    f"{type(peft_config).__name__}: {type(self.model).__name__} has no {self.fitting} to "
                    f"adapt; use another method"
                )
            # an expression: peft takes names in a list for endings, and 'bn1' ends many a name
            peft_config.target_modules = "|".join(names)
        return peft_config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        if not self.fits(target):
            raise ValueError(
                f"{type(peft_config).__name__}: target module {current_key!r} is a {type(target).__name__}; "
                f"it must be a {self.fitting}"
            )
        layer = self.tuner_layer_cls(target)
        layer.update_layer(adapter_name, peft_config)
        layer.train(target.training)  # peft leaves new modules in train mode (huggingface/peft#3753)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: Any) -> None:
        setattr(parent, child_name, new_module)
