"""FLOPs of a forward pass, dense and sparse: the convention of RigL, ITOP and GraNet.

One multiply-accumulate (MAC) is 2 FLOPs. Convolutions and linear layers are counted (those inside
``nn.MultiheadAttention`` too); norms, activations, other matrix products and element-wise work are not. A
layer whose weight has density d costs d times its dense FLOPs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_plasticity.sparsity.training_flops import training_flops as training_flops


@dataclass(frozen=True)
class LayerFlops:
    """Forward FLOPs of one sample in the layers of one weight.

    Attributes:
        dense: FLOPs if every weight were active.
        density: share of active weights.
    """

    dense: float
    density: float = 1.0

    @property
    def sparse(self) -> float:
        """FLOPs of the active weights."""
        return self.dense * self.density


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs of one sample.

    Attributes:
        per_layer: parameter name of the weight -> its FLOPs, in the order of the forward pass.
        uncounted: masked parameters that no counted layer used, such as embeddings: they cost nothing in
            this convention.
    """

    per_layer: dict[str, LayerFlops]
    uncounted: tuple[str, ...] = ()

    @property
    def dense(self) -> float:
        """FLOPs of the dense net."""
        return sum(layer.dense for layer in self.per_layer.values())

    @property
    def sparse(self) -> float:
        """FLOPs of the masked net."""
        return sum(layer.sparse for layer in self.per_layer.values())

    @property
    def dense_per_layer(self) -> dict[str, float]:
        """Parameter name -> dense FLOPs, as ``training_flops`` takes it."""
        return {name: layer.dense for name, layer in self.per_layer.items()}


def _convolution_macs(module: _ConvNd, inputs: tuple[Any, ...], output: Tensor) -> int:
    taps = math.prod(module.kernel_size)
    if isinstance(module, _ConvTransposeNd):  # every input value meets each of these weights once
        return int(inputs[0].numel()) * module.out_channels // module.groups * taps
    return output.numel() * module.in_channels // module.groups * taps


def _attention_macs(module: nn.MultiheadAttention, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Count the four projections; attention calls no linear module, so their hooks stay silent."""
    query, key, value = (tensor.numel() * module.embed_dim for tensor in inputs)
    output = {"out_proj.weight": query}
    if module.in_proj_weight is not None:
        return {"in_proj_weight": query + key + value} | output
    return {"q_proj_weight": query, "k_proj_weight": key, "v_proj_weight": value} | output


class FlopsRecorder:
    """Counts the FLOPs of whatever forward passes a live model makes, by hooks that it takes away again.

    Attach it before a training step, close it after: no extra pass is made and nothing else is touched.
    Layers that are used several times, and layers that share one weight, are counted each time.

    Args:
        model: any module; parameter names are those of ``model.named_parameters()``.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with FlopsRecorder(model) as recorder:
        ...     output = model(torch.ones(5, 4))
        >>> recorder.result(batch_size=5).dense_per_layer
        {'0.weight': 64.0, '2.weight': 32.0}
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {id(weight): name for name, weight in model.named_parameters()}  # tied: the first name
        self._macs: dict[str, int] = {}
        self._handles = [
            module.register_forward_hook(partial(self._count, path), with_kwargs=True)
            for path, module in model.named_modules()
            if isinstance(module, _ConvNd | nn.Linear | nn.MultiheadAttention)
        ]

    def __enter__(self) -> Self:
        """Record from here on."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop recording."""
        self.close()

    def close(self) -> None:
        """Take the hooks away; what was recorded stays."""
        while self._handles:
            self._handles.pop().remove()

    def _count(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        inputs = (*args, *kwargs.values())
        if isinstance(module, nn.MultiheadAttention):
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            macs = _attention_macs(module, [named[name] for name in ("query", "key", "value")])
        elif isinstance(module, _ConvNd):
            macs = {"weight": _convolution_macs(module, inputs, output)}
        else:
            macs = {"weight": output.numel() * module.in_features}
        for name, count in macs.items():
            key = self._name_of(path, module, name)
            self._macs[key] = self._macs.get(key, 0) + count

    def _name_of(self, path: str, module: nn.Module, name: str) -> str:
        owner, _, attribute = name.rpartition(".")
        weight = module.get_submodule(owner)._parameters.get(attribute)  # None if it is parametrized
        return self._names.get(id(weight), f"{path}.{name}" if path else name)

    @property
    def per_layer(self) -> dict[str, float]:
        """Parameter name -> dense FLOPs of all passes recorded, all samples together."""
        return {name: 2.0 * macs for name, macs in self._macs.items()}

    def result(self, batch_size: int, masks: Mapping[str, Tensor] | None = None) -> Flops:
        """Give the FLOPs recorded so far, per sample.

        Args:
            batch_size: samples in the passes that were recorded.
            masks: parameter name -> bool mask of the parameter's shape; parameters without one are dense.

        Raises:
            ValueError: if ``batch_size`` is below 1, or a mask has no parameter or another shape.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be 1 or more.")
        densities = self._densities(masks or {})
        layers = {
            name: LayerFlops(flops / batch_size, densities.get(name, 1.0))
            for name, flops in self.per_layer.items()
        }
        return Flops(layers, tuple(name for name in densities if name not in layers))

    def _densities(self, masks: Mapping[str, Tensor]) -> dict[str, float]:
        known = dict(self._model.named_parameters(remove_duplicate=False))
        densities = {}
        for name, mask in masks.items():
            if name not in known and name not in self._macs:
                raise ValueError(f"masks[{name!r}] belongs to no parameter; names are {', '.join(known)}.")
            if name in known and known[name].shape != mask.shape:
                expected = tuple(known[name].shape)
                raise ValueError(f"masks[{name!r}] has shape {tuple(mask.shape)}, its parameter {expected}.")
            first_name = self._names.get(id(known.get(name)), name)
            densities[first_name] = int(mask.count_nonzero()) / mask.numel()
        return densities


def _tensors(inputs: Any) -> Iterator[Tensor]:
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, Mapping):
        yield from _tensors(list(inputs.values()))
    elif isinstance(inputs, list | tuple):
        for entry in inputs:
            yield from _tensors(entry)


def batch_size_of(batch: Any) -> int:
    """Give the length of a batch: the first axis of its first tensor.

    Args:
        batch: tensor, or nested tuples, lists or dicts that hold some.

    Raises:
        ValueError: if there is no tensor with an axis of length 1 or more.

    Example:
        >>> batch_size_of({"image": torch.ones(8, 3, 4, 4), "label": torch.ones(8)})
        8
    """
    for tensor in _tensors(batch):
        if tensor.dim() and len(tensor):
            return len(tensor)
    raise ValueError(f"A batch of type {type(batch).__name__} holds no tensor with a batch axis.")


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluate without gradients, and put modes, buffers and random generators back, whatever happens."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            for module in modules:
                module.training = False  # not .eval(): some nets rewrite their weights there
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                if not buffer.is_meta and not torch.equal(buffer, value):
                    buffer.copy_(value)
                module._buffers[name] = buffer


def count_flops(model: nn.Module, example_inputs: Any, masks: Mapping[str, Tensor] | None = None) -> Flops:
    """Count the forward FLOPs (2 x MACs) of one sample, by one pass in evaluation mode.

    Modes, buffers, gradients and random generators of the model are as before afterwards, after an error too.

    Args:
        model: any module, called as ``model(x)``.
        example_inputs: tensor; or tuple or list of positional, or dict of keyword arguments. The first
            axis of the first tensor is the batch; the count is divided by its length. A model and inputs on
            the ``meta`` device cost no memory and no time.
        masks: parameter name -> bool mask of the parameter's shape; parameters without one are dense.

    Returns:
        ``.dense`` and ``.sparse`` FLOPs, and ``.per_layer``.

    Raises:
        ValueError: if there is no tensor with a batch axis, or a mask has no parameter or another shape.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.Flatten(), nn.Linear(8 * 36, 10))
        >>> keep_half = torch.arange(8 * 9).view(8, 1, 3, 3) % 2 == 0
        >>> flops = count_flops(model, torch.zeros(1, 1, 8, 8), masks={"0.weight": keep_half})
        >>> flops.dense, flops.sparse
        (10944.0, 8352.0)
    """
    batch_size = batch_size_of(example_inputs)
    call: Callable[[], object] = partial(model, example_inputs)
    if isinstance(example_inputs, Mapping):
        call = partial(model, **example_inputs)
    elif isinstance(example_inputs, tuple | list):
        call = partial(model, *example_inputs)
    with _as_it_was(model), FlopsRecorder(model) as recorder:
        call()
    return recorder.result(batch_size, masks)
