"""Which layers share a channel, so that it can only leave all of them together."""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_plasticity.sparsity.export.constants import Inputs, as_inputs
from lightning_plasticity.sparsity.export.folding import is_foldable

Role: TypeAlias = Literal["reads", "writes", "passes"]


@dataclass(frozen=True)
class Member:
    """A layer that takes part in a channel group.

    Attributes:
        name: Module name.
        role: It ``writes`` the channels, ``reads`` them, or ``passes`` them on one by one.
        index: Positions in the layer's own channel dimension.
        channel: The group's channel (0 .. size - 1) that each position belongs to.
    """

    name: str
    role: Role
    index: Tensor
    channel: Tensor


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that several layers share and that can be cut only in all of them together."""

    root: str
    size: int
    members: tuple[Member, ...]


class DependencyGraph:
    """torch-pruning's dependency graph of a model (Fang et al. 2023, DepGraph), by module name.

    Args:
        model: The model that will be cut. It is traced in evaluation mode; gradients and modes are restored.
        example_inputs: The model's positional inputs.

    Raises:
        ModuleNotFoundError: If torch-pruning is not installed.
        RuntimeError: If torch-pruning cannot trace the model.
    """

    def __init__(self, model: nn.Module, example_inputs: Inputs) -> None:
        self.model = model
        self.names: dict[Any, str] = {module: name for name, module in model.named_modules()}
        self._outputs: set[Any] = set()
        self._tp = _torch_pruning()
        self._graph = self._tp.DependencyGraph()
        self._calls = _count_calls(model, as_inputs(example_inputs))
        frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
        modes = {module: module.training for module in model.modules()}
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)  # the graph is read from autograd's record
            with torch.inference_mode(False), torch.enable_grad():
                self._graph.build_dependency(
                    model, as_inputs(example_inputs), output_transform=self._note_outputs, verbose=False
                )
        except Exception as error:  # torch-pruning raises whatever its analysis trips over
            raise RuntimeError(
                f"model: torch-pruning cannot trace {type(model).__name__}: {type(error).__name__}, {error}. "
                "Its channels stay; use bake() for plain dense weights with zeros."
            ) from error
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for module, training in modes.items():
                module.training = training

    def groups(self) -> list[ChannelGroup]:
        """List the groups that can be cut: read by plain layers, away from outputs and shared modules."""
        types = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
        found = (self._describe(group) for group in self._graph.get_all_groups(root_module_types=types))
        return [group for group in found if group is not None]

    def cut(self, group: ChannelGroup, channels: Sequence[int]) -> None:
        """Remove channels of one group from every layer that shares them, in place."""
        root = self.model.get_submodule(group.root)
        pruner = self._graph.get_pruner_of_module(root)
        self._graph.get_pruning_group(root, pruner.prune_out_channels, list(channels)).prune(
            record_history=False
        )

    def batch_norm_after(self, name: str) -> str | None:
        """Name the BatchNorm that is the only reader of a convolution's output and reads nothing else."""
        node = self._graph.module2node.get(self.model.get_submodule(name))
        if node is None or self._calls[name] != 1 or self._is_output(node):
            return None
        readers = set(node.outputs)
        if len(readers) != 1 or not isinstance((reader := readers.pop()).module, _BatchNorm):
            return None
        after = self.names[reader.module]
        return after if set(reader.inputs) == {node} and self._calls[after] == 1 else None

    def _note_outputs(self, outputs: Any) -> Any:
        flat = self._tp.utils.flatten_as_list(outputs)
        self._outputs = {getattr(value, "grad_fn", None) for value in flat} - {None}
        if not self._outputs:
            raise RuntimeError("its outputs carry no gradient")
        return flat

    def _is_output(self, node: Any) -> bool:
        return node.grad_fn in self._outputs

    def _is_elementwise(self, module: Any) -> bool:
        """Tell whether channels pass through without anything to change (also reshape, cat, split)."""
        ops = self._tp.ops
        shaping = (ops._ReshapeOp, ops._ConcatOp, ops._SplitOp, ops._SliceOp, ops._UnbindOp, ops._ExpandOp)
        if isinstance(module, shaping):
            return True
        return ops.module2type(module) == ops.OPTYPE.ELEMENTWISE and not any(
            True for _ in module.parameters()
        )

    def _describe(self, group: Any) -> ChannelGroup | None:
        members: list[Member] = []
        for item in group:
            node, module = item.dep.target, item.dep.target.module
            reads = self._graph.is_in_channel_pruning_fn(item.dep.handler) and is_foldable(module)
            if self._is_output(node) and not reads:
                return None
            if self._is_elementwise(module):
                continue
            role = _role(module, reads)
            if role is None or self._calls[self.names[module]] != 1:
                return None
            index, channel = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
            members.append(Member(self.names[module], role, index, channel))
        if not any(member.role == "reads" for member in members):
            return None
        return ChannelGroup(members[0].name, len(group[0].idxs), tuple(members))


def _role(module: nn.Module, reads: bool) -> Role | None:
    """Say what a layer does with its group's channels; None if it mixes them or is of an unknown kind."""
    if isinstance(module, _BatchNorm | nn.PReLU) or _is_depthwise(module):
        return "passes"
    return ("reads" if reads else "writes") if is_foldable(module) else None


def _is_depthwise(module: nn.Module) -> bool:
    if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd):
        return False
    return module.groups == module.in_channels == module.out_channels > 1


def _count_calls(model: nn.Module, inputs: tuple[Tensor, ...]) -> Counter[str]:
    calls: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in model.named_modules()
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return calls


def _torch_pruning() -> ModuleType:
    try:
        torch_pruning = import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "removing filters needs torch-pruning: pip install 'lightning-plasticity[export]'"
        ) from error
    return torch_pruning


def filter_groups(model: nn.Module, example_inputs: Inputs) -> list[list[str]]:
    """List the weights whose filters have to die together for the channel to be removable.

    In a residual net the channels of the stream are written by several convolutions: channel k disappears
    only if filter k is zero in all of them. A method that drops filters by the score summed over such a group
    gives nets that shrink fully; one that scores every layer by itself leaves the stream at its full width.

    Args:
        model: Any model; left untouched.
        example_inputs: The model's positional inputs.

    Returns:
        Groups of parameter names, in the model's order; a group of one is a layer whose filters are free.
        Layers that write the model's output, or whose channels cannot be cut, are left out.

    Raises:
        ModuleNotFoundError: If torch-pruning is not installed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten())
        >>> filter_groups(net, torch.zeros(1, 1, 5, 5))  # layer 2 writes the output
        [['0.weight']]
    """
    order = {name: position for position, (name, _) in enumerate(model.named_parameters())}
    groups: list[list[str]] = []
    for group in DependencyGraph(deepcopy(model), example_inputs).groups():
        writers = [
            f"{member.name}.weight"
            for member in group.members
            if member.role == "writes" or _is_depthwise(model.get_submodule(member.name))
        ]
        groups.append(sorted(set(writers), key=order.__getitem__))
    return sorted(groups, key=lambda names: order[names[0]])
