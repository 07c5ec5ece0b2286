"""Removing zeroed filters for good: a smaller net with the outputs of the masked one."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from lightning_plasticity.sparsity.export.baking import bake
from lightning_plasticity.sparsity.export.constants import (
    Inputs,
    as_inputs,
    constant_inputs,
)
from lightning_plasticity.sparsity.export.coupling import ChannelGroup, DependencyGraph
from lightning_plasticity.sparsity.export.folding import (
    _Bordered,
    add_constant,
    constant_part,
    fuse_batch_norm,
)

log = logging.getLogger(__name__)


def shrink(
    model: nn.Module,
    example_inputs: Inputs,
    masks: Mapping[str, Tensor] | None = None,
    *,
    fuse_norms: bool = True,
    exclude: Sequence[str] = (),
) -> nn.Module:
    """Remove zeroed filters physically; the outputs stay those of the masked model in evaluation mode.

    torch-pruning's dependency graph (Fang et al. 2023) does the surgery. A removed channel is constant but
    seldom zero (a zero filter gives ``relu(beta - gamma mean / std)`` after BatchNorm), so its constant moves
    into the layers that read it: into the bias where that is exact, and where zero padding makes it differ
    along the border, into a small ``folding.BorderedConv2d`` that adds the exact map for any image size. A
    channel is removed only if every layer that reads it sees a proven constant, or reads it with zero
    weights. In a residual net it has to be dead in every branch that is added (see :func:`filter_groups`).
    Kept whole: channels that reach the model's output, grouped convolutions that are not depthwise, layers
    that run more than once, layers of unknown classes, channels under LayerNorm or GroupNorm, at least one
    channel per layer.

    Args:
        model: The trained model; left untouched. It may be a LightningModule.
        example_inputs: Floating-point tensor ``[N, ...]``, or a sequence of the model's positional inputs.
        masks: Masks of :class:`SparseTraining`. Without, zero filters are read from the weights.
        fuse_norms: Also fold BatchNorm into the convolution before it: exact and faster, for a net that is
            only used. With ``False`` the BatchNorm layers stay, for a net that will be trained on.
        exclude: Names of modules whose channels stay whole (all layers inside them).

    Returns:
        A smaller copy in evaluation mode: the same class, with smaller layers. It pickles; its
        ``state_dict()`` goes back into a fresh model with :func:`load_shrunk`.

    Raises:
        ValueError: If inputs or masks don't fit, a name in ``exclude`` is unknown, or a layer is
            parametrized.
        RuntimeError: If torch-pruning cannot trace the model, or the smaller net computes something else (the
            model uses its channels in a way that the graph does not see); ``exclude`` the layers concerned.
        ModuleNotFoundError: If torch-pruning is not installed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
        >>> alive = torch.tensor([True, False, True, False]).view(4, 1, 1, 1)
        >>> shrink(net, torch.zeros(1, 1, 8, 8), {"0.weight": alive})[0].out_channels
        2
    """
    small = bake(model, masks or {}).eval()
    _check(small, exclude)
    inputs = as_inputs(example_inputs)
    masked = deepcopy(small)
    trainable = {name: p.requires_grad for name, p in small.named_parameters()}
    graph = DependencyGraph(small, inputs)
    norms = {name: norm for name in graph.names.values() if (norm := graph.batch_norm_after(name))}
    constants = constant_inputs(small, inputs)
    cuts = [
        (group, dead)
        for group in graph.groups()
        if (dead := _removable(small, group, constants, exclude)).any()
    ]
    parts = _constant_parts(small, cuts, constants)
    for group, dead in cuts:
        graph.cut(group, dead.nonzero().flatten().tolist())
    _finish(small, cuts, parts)
    if fuse_norms:
        _fuse(small, norms)
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(trainable.get(name, True))
    _verify(masked, small, inputs)
    log.info("shrink: channels cut in %d groups of layers", len(cuts))
    return small


def _check(model: nn.Module, exclude: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    for name in exclude:
        if name not in modules:
            raise ValueError(
                f"exclude: the model has no module '{name}'. It has {', '.join(list(modules)[1:7])} ..."
            )
    for name, module in modules.items():
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"model: layer '{name}' is parametrized, so its weight cannot be cut. "
                "Call torch.nn.utils.parametrize.remove_parametrizations on it first."
            )


def _removable(
    model: nn.Module, group: ChannelGroup, constants: Mapping[str, Tensor], exclude: Sequence[str]
) -> Tensor:
    """Mark the channels of a group that no reader depends on, but never all: bool ``[group.size]``."""
    used = torch.zeros(group.size, dtype=torch.bool)
    for member in group.members:
        if any(member.name == name or member.name.startswith(f"{name}.") or not name for name in exclude):
            return torch.zeros(group.size, dtype=torch.bool)
        if member.role == "reads":
            weight = model.get_submodule(member.name).weight
            assert isinstance(weight, Tensor)
            unknown = constants[member.name].isnan() & (weight != 0).transpose(0, 1).flatten(1).any(1)
            used[member.channel] |= unknown.cpu()[member.index]
    if not used.any():
        used[0] = True
    return ~used


def _constant_parts(
    model: nn.Module, cuts: Sequence[tuple[ChannelGroup, Tensor]], constants: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Per reading layer, what its cut channels contribute to its outputs (before anything is cut)."""
    gone: dict[str, Tensor] = {}
    for group, dead in cuts:
        for member in group.members:
            if member.role == "reads":
                value = gone.setdefault(member.name, torch.zeros_like(constants[member.name]))
                index = member.index[dead[member.channel]].to(value.device)
                # NaN is left only where every weight that reads it is zero
                value[index] = constants[member.name][index].nan_to_num(0.0)
    return {name: constant_part(model.get_submodule(name), value) for name, value in gone.items()}


def _finish(
    model: nn.Module, cuts: Sequence[tuple[ChannelGroup, Tensor]], parts: Mapping[str, Tensor]
) -> None:
    """Cut the constant parts to the outputs that are left and add them to their layers."""
    kept: dict[str, Tensor] = {}
    for group, dead in cuts:
        for member in group.members:
            if member.role == "writes":
                kept[member.name] = member.index[~dead[member.channel]].sort().values
    for name, layer in list(model.named_modules()):
        if isinstance(layer, _Bordered) and name in kept:
            layer.taps, layer.border = layer.taps[kept[name].to(layer.taps.device)], None
        if name in parts:
            part = parts[name]
            part = part[kept[name].to(part.device)] if name in kept else part
            model.set_submodule(name, add_constant(layer, part))


def _fuse(model: nn.Module, norms: Mapping[str, str]) -> None:
    for conv_name, norm_name in norms.items():
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and isinstance(conv, _ConvNd):
            fuse_batch_norm(conv, norm)
            model.set_submodule(norm_name, nn.Identity())


@torch.no_grad()
def _verify(masked: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = tuple(torch.randn(x.shape, generator=generator).to(x) for x in inputs)
    for example in (inputs, noise):
        expected = _tensors(masked(*example))
        try:
            got = _tensors(small(*example))
        except Exception as error:  # whatever a forward pass raises when its channels no longer fit
            raise RuntimeError(_UNSEEN) from error
        if not all(_close(*pair) for pair in zip(expected, got, strict=True)):
            raise RuntimeError(_UNSEEN)


_UNSEEN = (
    "model: its smaller copy fails or differs, so the model uses channels in a way that the dependency "
    "graph does not see. Leave layers whole with exclude=['module.name', ...]."
)


def _close(expected: Tensor, got: Tensor) -> bool:
    if expected.shape != got.shape or not expected.is_floating_point():
        return torch.equal(expected, got)
    limit = 1e3 * torch.finfo(expected.dtype).eps * (1 + float(expected.abs().max()))
    return float((expected - got).abs().max()) <= limit


def _tensors(outputs: object) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    nested = outputs if isinstance(outputs, list | tuple) else []
    return [tensor for value in nested for tensor in _tensors(value)]
