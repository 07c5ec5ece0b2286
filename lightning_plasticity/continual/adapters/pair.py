"""One frozen backbone with two adapters: the fast one learns, the slow one is its frozen copy."""

import copy
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_plasticity.continual.adapters.configs import make_config, plain_config
from lightning_plasticity.continual.backbones import describe

Learner = Literal["fast", "slow", "pretrained"]
_FAST, _SLOW = "fast", "slow"
_ABOUT = "backbone.json"
_Pair = TypeVar("_Pair", bound="AdapterPair")


class AdapterPair(nn.Module):
    """A backbone and its two adapters of the same kind, ``fast`` and ``slow``, in one network.

    Three learners share the backbone's weights: ``fast`` is trained, ``slow`` is a frozen copy of it
    (``hand_over``), ``pretrained`` is the backbone alone. peft selects adapters by switching the network,
    which also switches what can be trained: gradients of a forward through ``fast`` are lost, without an
    error, when ``slow`` is made active before ``backward``. Here ``fast`` is the active adapter always,
    and the others are read in a context that touches nothing that gradients depend on.

    The backbone stays in eval mode, BatchNorm too, whatever ``train()`` is called with: that reaches the fast
    adapter alone.

    Args:
        backbone: maps images to features ``[B, d]``. It is changed: its modules are wrapped in place.
        peft_config: anything that ``make_config`` takes. None: SSF on the norms of convolutional networks, a
            bottleneck on transformers.
        seed: of the adapter's random start; the global generator is left as it was.

    Attributes:
        about: name, fingerprint and number of features of the bare backbone (see ``describe``).
        peft_config: the adapters' configuration, with their modules filled in.
        method: the same in plain types, as ``peft_config`` can also be given.

    Raises:
        ValueError: for a configuration that doesn't fit the backbone, or one that has adapters already.
        ModuleNotFoundError: if peft is missing.

    Example:
        >>> from lightning_plasticity.continual.backbones import load_backbone
        >>> pair = AdapterPair(load_backbone(), {"method": "ssf"})
        >>> images = torch.zeros(2, 3, 32, 32)
        >>> pair.features(images).requires_grad, pair.features(images, "slow").requires_grad
        (True, False)
    """

    def __init__(self, backbone: nn.Module, peft_config: Any = None, seed: int = 0) -> None:
        super().__init__()
        _check_bare(backbone)
        self.about: dict[str, Any] = describe(backbone)
        config = copy.deepcopy(make_config(peft_config, backbone))
        _check_config(config)
        self.model = _with_adapters(backbone, config, seed)
        self.peft_config = self.model.peft_config[_FAST]
        self.method = plain_config(self.peft_config)
        named = dict(self.model.named_parameters())
        self._trained = [name for name, parameter in named.items() if parameter.requires_grad]
        strangers = [name for name in self._trained if _FAST not in name.split(".")]
        if strangers or not self._trained:
            raise ValueError(
                f"peft_config={type(config).__name__}: it must train parameters of the adapter alone; "
                f"it trains {strangers[:3] or 'none'}"
            )
        self.hand_over()
        self.train(self.training)

    def train(self: _Pair, mode: bool = True) -> _Pair:
        """Set the mode of the fast adapter; the backbone and the slow adapter stay in eval mode."""
        super().train(False)
        self.training = mode
        for name, module in self.model.named_modules():
            of_fast = _FAST in name.split(".") and not isinstance(module, _BatchNorm)
            if of_fast or hasattr(module, "_disable_adapters"):
                module.training = mode
        return self

    def features(self, images: Tensor, learner: Learner = "fast") -> Tensor:
        """Features of a learner.

        Args:
            images: ``[B, C, H, W]``.
            learner: ``"fast"``: with gradients, and dropout while training; ``"slow"`` or
                ``"pretrained"``: in eval mode and without gradients. Can be mixed at will before
                ``backward``.

        Returns:
            ``[B, d]``.

        Raises:
            ValueError: for another learner.
        """
        if learner not in get_args(Learner):
            raise ValueError(f"learner={learner!r} must be one of {', '.join(get_args(Learner))}")
        net = self.model.get_base_model()
        if learner == "fast":
            output: Tensor = net(images)
            return output
        with self._reading(learner):
            output = net(images)
        return output

    def forward(self, images: Tensor, learner: Learner = "fast") -> Tensor:
        """Same as ``features``."""
        return self.features(images, learner)

    @contextmanager
    def _reading(self, learner: str) -> Iterator[None]:
        """Let the network act as another learner, by flags alone; they are put back whatever happens."""
        layers: list[Any] = [
            module for module in self.model.modules() if hasattr(module, "_disable_adapters")
        ]
        before = [(layer._active_adapter, layer._disable_adapters, layer.training) for layer in layers]
        try:
            for layer in layers:
                layer.training = False
                if learner == "pretrained":
                    layer._disable_adapters = True
                else:
                    layer._active_adapter = [learner]
            with torch.no_grad():
                yield
        finally:
            for layer, flags in zip(layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters, layer.training = flags

    def adapter_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of the fast adapter that are trained; always the same ones, in the same order.

        They were listed at construction: ``requires_grad`` may be switched by peft or the user.
        """
        named = dict(self.model.named_parameters())
        return [(_without(name, _FAST), named[name]) for name in self._trained]

    def _tensors_of(self, adapter: str) -> dict[str, Tensor]:
        if adapter not in (_FAST, _SLOW):
            raise ValueError(f"adapter={adapter!r} must be 'fast' or 'slow'")
        everything = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {_without(name, adapter): tensor for name, tensor in everything if adapter in name.split(".")}

    @torch.no_grad()
    def hand_over(self) -> None:
        """Copy the fast adapter into the slow one, in place."""
        fast = self._tensors_of(_FAST)
        for name, tensor in self._tensors_of(_SLOW).items():
            tensor.copy_(fast[name])

    def state_dict_of(self, adapter: Literal["fast", "slow"]) -> dict[str, Tensor]:
        """Copy of an adapter's tensors, the same names for both."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors_of(adapter).items()}

    @torch.no_grad()
    def load_state_dict_of(self, adapter: Literal["fast", "slow"], state: Mapping[str, Tensor]) -> None:
        """Copy a state into an adapter, in place.

        Raises:
            ValueError: if names or shapes differ; nothing is copied then.
        """
        own = self._tensors_of(adapter)
        if own.keys() != state.keys():
            differing = sorted(own.keys() ^ state.keys())
            raise ValueError(
                f"the state isn't of this adapter: {len(differing)} names differ, as {differing[0]!r}"
            )
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                shapes = f"{tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
                raise ValueError(f"the state isn't of this adapter: {name!r} has shape {shapes}")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both adapters in peft's format, ``fast/`` and ``slow/``, and whose backbone they are for."""
        self.model.save_pretrained(str(folder))
        (Path(folder) / _ABOUT).write_text(json.dumps(self.about, indent=2))

    @classmethod
    def from_pretrained(cls, backbone: nn.Module, folder: str | Path) -> "AdapterPair":
        """Put adapters that ``save_pretrained`` wrote onto their backbone.

        Raises:
            ValueError: if the folder holds no such adapters, or those of another backbone.
        """
        from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict

        folder = Path(folder)
        if not (folder / _ABOUT).is_file():
            raise ValueError(
                f"folder={str(folder)!r} has no {_ABOUT}: write it by AdapterPair.save_pretrained"
            )
        wanted, given = json.loads((folder / _ABOUT).read_text()), describe(backbone)
        if wanted["fingerprint"] != given["fingerprint"]:
            raise ValueError(
                f"the adapters in {str(folder)!r} are for the backbone {wanted['name']!r} "
                f"({wanted['fingerprint']}), not for {given['name']!r} ({given['fingerprint']})"
            )
        make_config(None, backbone)  # peft must know our methods to read their configuration
        config = PeftConfig.from_pretrained(str(folder / _FAST))
        config.inference_mode = False
        pair = cls(backbone, config)
        for adapter in (_FAST, _SLOW):
            state = load_peft_weights(str(folder / adapter), device="cpu")
            result: Any = set_peft_model_state_dict(pair.model, state, adapter_name=adapter)
            odd = [*_not_loaded(pair.model, adapter, result.missing_keys), *result.unexpected_keys]
            if odd:
                raise ValueError(f"{str(folder / adapter)!r} doesn't fit its configuration: see {odd[0]!r}")
        return pair

    def merged(self, adapter: Literal["fast", "slow"] = "slow") -> nn.Module:
        """A copy of the backbone with an adapter in it, free of peft, frozen and in eval mode.

        SSF, LoRA and the like go into the weights; a bottleneck or prompts stay as modules of their own.
        """
        self._tensors_of(adapter)
        model = copy.deepcopy(self.model)
        model.set_adapter(adapter)
        net: nn.Module = model.merge_and_unload(adapter_names=[adapter])
        return net.requires_grad_(False).eval()


def _without(name: str, adapter: str) -> str:
    return ".".join(part for part in name.split(".") if part != adapter)


def _not_loaded(model: nn.Module, adapter: str, missing: Iterable[str]) -> list[str]:
    """Parameters of an adapter that a file didn't hold: peft lists the backbone's and shared ones' too."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if adapter in name.split("."):
            names.setdefault(id(parameter), []).append(name)
    without = set(missing)
    return [aliases[0] for aliases in names.values() if without.issuperset(aliases)]


def _check_bare(backbone: nn.Module) -> None:
    """Refuse networks that can't take the pair."""
    names = {part for name, _ in backbone.named_modules() for part in name.split(".")}
    if names & {_FAST, _SLOW}:
        raise ValueError(
            "the backbone has modules named 'fast' or 'slow': rename them, the adapters are named so"
        )
    if any(hasattr(module, "_disable_adapters") for module in backbone.modules()):
        raise ValueError("the backbone has adapters already: give a fresh one, for each is changed in place")


def _check_config(config: Any) -> None:
    """Refuse configurations that don't act inside the network, or train the backbone too."""
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ValueError(
            f"peft_config={type(config).__name__} is for language models only; use 'deep_prompt' for ViTs"
        )
    if config.peft_type == "ADALORA":
        raise ValueError("peft_config=AdaLoraConfig moves ranks by calls at every step; use 'lora'")
    if getattr(config, "bias", "none") != "none":
        raise ValueError(
            f"peft_config: bias={config.bias!r} would train the backbone, which two adapters share"
        )


def _with_adapters(backbone: nn.Module, config: Any, seed: int) -> Any:
    """Wrap the backbone, with both adapters in place and the fast one active; random starts by seed."""
    from peft import get_peft_model

    slow = copy.deepcopy(config)
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        # peft's norm tuning, of norms that are subclasses of torch's
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        torch.manual_seed(seed)
        model = get_peft_model(backbone, config, adapter_name=_FAST)
        slow.target_modules, slow.inference_mode = copy.deepcopy(config.target_modules), True
        model.add_adapter(_SLOW, slow)
    model.set_adapter(_FAST)
    return model
