"""AdaptFormer's bottleneck beside the MLP of a transformer block (Chen et al., NeurIPS 2022).

``A(x) = scale * Up(Dropout(ReLU(Down(x))))``, and a block becomes ``x1 = x + attention(norm1(x))``,
``x2 = x1 + MLP(norm2(x1)) + A(x1)``: the branch reads the stream *before* ``norm2``. ``Up`` starts at
zero, so that the untrained adapter changes nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_plasticity.continual.adapters.tuner import Layer, Tuner, TunerConfig

BOTTLENECK = "PLASTICITY_BOTTLENECK"


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

    bottleneck: int = 64
    dropout: float = 0.1
    scale: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings."""
        self.finish(BOTTLENECK)
        self.require(self.bottleneck >= 1, "bottleneck", "1 or more")
        self.require(0.0 <= self.dropout < 1.0, "dropout", "0 or more and below 1")
        self.require(math.isfinite(self.scale) and self.scale != 0, "scale", "a finite number other than 0")


class Branch(nn.Module):
    """``A(x)`` of a stream ``[..., width]``."""

    def __init__(self, width: int, config: BottleneckConfig) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, config.bottleneck), nn.Linear(config.bottleneck, width)
        self.dropout, self.scale = nn.Dropout(config.dropout), config.scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Give the branch's output, same shape."""
        output: Tensor = self.up(self.dropout(torch.relu(self.down(x)))) * self.scale
        return output


def run_beside(block: Any, branches: Iterable[nn.Module], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a block and add what the branches make of the stream that enters its ``norm2``."""
    streams: list[Tensor] = []
    # for this call only: nothing to undo when a block is copied, saved or unwrapped
    handle = block.norm2.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0]))
    try:
        output: Tensor = block(x, *args, **kwargs)
    finally:
        handle.remove()
    for branch in branches:
        # some blocks give images what they normed as tokens
        output = output + branch(streams[0]).reshape(output.shape)
    return output


class BlockWithBranches(nn.Module):
    """A block with fixed branches: what is left without peft, for a ReLU can't be folded into weights."""

    def __init__(self, block: nn.Module, branches: Iterable[nn.Module]) -> None:
        super().__init__()
        self.block, self.branches = block, nn.ModuleList(branches)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block with its branches."""
        return run_beside(self.block, self.branches, x, *args, **kwargs)


class BottleneckLayer(Layer):
    """A transformer block with a bottleneck for each adapter."""

    adapter_layer_names = ("bottleneck_branch",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bottleneck_branch = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter."""
        branch = Branch(_width(self.base_layer), config)
        self.bottleneck_branch[adapter_name] = branch.train(self.base_layer.training)
        self._finish(adapter_name, config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block, with the active adapters' branches."""
        names = self.acting()
        if not names:
            plain: Tensor = self.base_layer(x, *args, **kwargs)
            return plain
        return run_beside(self.base_layer, [self.bottleneck_branch[n] for n in names], x, *args, **kwargs)

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
        names = [name for name in adapter_names or self.active_adapters if name in self.bottleneck_branch]
        if not merge or not names:
            return self.base_layer
        return BlockWithBranches(self.base_layer, [self.bottleneck_branch[name] for name in names])


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


def _width(block: nn.Module) -> int:
    weight: Tensor = block.norm2.weight  # type: ignore[union-attr, assignment]
    return len(weight)
