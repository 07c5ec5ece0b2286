"""AdaptFormer's bottleneck beside the MLP of a transformer block (Chen et al., NeurIPS 2022).

``A(x) = scale * Up(Dropout(ReLU(Down(x))))``, and a block becomes ``x1 = x + attention(norm1(x))``,
``x2 = x1 + MLP(norm2(x1)) + A(x1)``: the branch reads the stream *before* ``norm2``. ``Up`` starts at
zero, so that the untrained adapter changes nothing.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_plasticity.continual.adapters.tuner import Tuner, TunerConfig, TunerLayer


@dataclass
class BottleneckConfig(TunerConfig):
    """A bottleneck in parallel to the MLP of each block.

    Args:
        target_modules: see ``TunerConfig``, here blocks; None: all pre-norm blocks with a ``norm2`` and an
            ``mlp``.
        exclude_modules: see ``TunerConfig``.
        bottleneck: width of the bottleneck.
        dropout: in the bottleneck, while training.
        scale: factor of the branch's output.

    Raises:
        ValueError: for a setting out of range.
    """

    method: ClassVar[str] = "PLASTICITY_BOTTLENECK"
    bottleneck: int = 64
    dropout: float = 0.1
    scale: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self.require(self.bottleneck >= 1, "bottleneck", "1 or more")
        self.require(0.0 <= self.dropout < 1.0, "dropout", "0 or more and below 1")
        self.require(math.isfinite(self.scale) and self.scale != 0, "scale", "a finite number other than 0")


class Branch(nn.Module):
    """``A(x)`` of a stream ``[..., width]``."""

    def __init__(self, down: nn.Module, dropout: nn.Module, up: nn.Module, scale: float) -> None:
        super().__init__()
        self.down, self.dropout, self.up, self.scale = down, dropout, up, scale

    def forward(self, x: Tensor) -> Tensor:
        """Give the branch's output, same shape."""
        return bottleneck(x, self.down, self.dropout, self.up, self.scale)


def bottleneck(x: Tensor, down: nn.Module, dropout: nn.Module, up: nn.Module, scale: float) -> Tensor:
    """``scale * Up(Dropout(ReLU(Down(x))))``."""
    output: Tensor = up(dropout(torch.relu(down(x)))) * scale
    return output


def run_beside(
    block: Any, branches: Iterable[Callable[[Tensor], Tensor]], *args: Any, **kwargs: Any
) -> Tensor:
    """Run a block and add what the branches make of the stream that enters its ``norm2``."""
    streams: list[Tensor] = []
    # for this call only: nothing to undo when a block is copied, saved or unwrapped
    handle = block.norm2.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0]))
    try:
        output: Tensor = block(*args, **kwargs)
    finally:
        handle.remove()
    for branch in branches:
        # some blocks give images what they normed as tokens
        output = output + branch(streams[0]).reshape(output.shape)
    return output


class BlockWithBranches(nn.Module):
    """A block with fixed branches: what is left without peft, for a ReLU can't be folded into weights."""

    def __init__(self, block: nn.Module, branches: Iterable[Branch]) -> None:
        super().__init__()
        self.block, self.branches = block, nn.ModuleList(branches)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block with its branches."""
        return run_beside(self.block, self.branches, *args, **kwargs)


class BottleneckLayer(TunerLayer):
    """A transformer block with a bottleneck for each adapter."""

    # peft finds an adapter's tensors by its name's place: <container>.<name>.<weight or bias>
    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.bottleneck_dropout, self.bottleneck_scale = nn.ModuleDict(), dict[str, float]()

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter."""
        block: Any = self.base_layer
        width = len(block.norm2.weight)
        down, up = nn.Linear(width, config.bottleneck), nn.Linear(config.bottleneck, width)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout).train(self.base_layer.training)
        self.bottleneck_scale[adapter_name] = config.scale
        self.finish(adapter_name, config)

    def _parts(self, name: str) -> tuple[nn.Module, nn.Module, nn.Module, float]:
        modules = (self.bottleneck_down, self.bottleneck_dropout, self.bottleneck_up)
        down, dropout, up = (module[name] for module in modules)
        return down, dropout, up, self.bottleneck_scale[name]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block, with the active adapters' branches."""
        names = self.acting()
        if not names:
            plain: Tensor = self.base_layer(*args, **kwargs)
            return plain
        branches = [partial(_beside, self._parts(name)) for name in names]
        return run_beside(self.base_layer, branches, *args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError("a bottleneck has a ReLU and can't be merged into weights: use merge_and_unload()")

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Give the plain block, or with ``merge`` one that carries the adapters without peft."""
        names = [name for name in adapter_names or self.active_adapters if name in self.bottleneck_down]
        if not merge or not names:
            return self.base_layer
        return BlockWithBranches(self.base_layer, [Branch(*self._parts(name)) for name in names])


def _beside(parts: tuple[nn.Module, nn.Module, nn.Module, float], x: Tensor) -> Tensor:
    return bottleneck(x, *parts)


class BottleneckModel(Tuner):
    """Puts a bottleneck beside the MLP of transformer blocks."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    fitting = "transformer block that norms its stream by norm2 before its mlp"

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is a pre-norm block."""
        return is_block(module)


def is_block(module: nn.Module) -> bool:
    """Whether a module is a pre-norm block."""
    # timm's ResPostBlock and SwinTransformerV2Block norm *after* the MLP: norm2 doesn't read the stream there
    name = type(module).__name__
    post = "Post" in name or "V2" in name
    return all(isinstance(getattr(module, part, None), nn.Module) for part in ("norm2", "mlp")) and not post
