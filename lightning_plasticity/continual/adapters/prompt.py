"""Deep prompts: learned tokens for every block of a vision transformer (VPT-deep, Jia et al., ECCV 2022).

``[x_l; _] = block_l([x_{l-1}; P_l])``: the prompts ``P_l`` are put after the tokens of the image, and what
the block makes of them is thrown away.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_plasticity.continual.adapters.tuner import Tuner, TunerConfig, TunerLayer


@dataclass
class DeepPromptConfig(TunerConfig):
    """Learned tokens for every block.

    Prompts take part in attention as soon as they are there: an untrained adapter changes the features too.

    Args:
        target_modules: see ``TunerConfig``, here blocks; None: all blocks of timm's VisionTransformer.
        exclude_modules: see ``TunerConfig``.
        num_tokens: prompts per block.
        init: ``"uniform"``: in +- sqrt(6 / (2 d)), Xavier's for width d; ``"zeros"``, as SAFE's authors
            have it: ``norm1`` magnifies the first gradients by 1 / sqrt(eps), 1000-fold, for its input has
            no variance.

    Raises:
        ValueError: for a setting out of range.
    """

    method: ClassVar[str] = "PLASTICITY_DEEP_PROMPT"
    num_tokens: int = 5
    init: Literal["uniform", "zeros"] = "uniform"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self.require(self.num_tokens >= 1, "num_tokens", "1 or more")
        self.require(self.init in ("uniform", "zeros"), "init", "'uniform' or 'zeros'")


def run_prompted(block: nn.Module, prompts: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a block on the tokens ``[B, N, d]`` and the prompts ``[n, d]``; give the tokens alone."""
    tokens = torch.cat([x, prompts.to(x.dtype).expand(len(x), -1, -1)], dim=1)
    output: Tensor = block(tokens, *args, **kwargs)
    return output[:, : x.shape[1]]


class PromptedBlock(nn.Module):
    """A block with fixed prompts: what is left when peft is taken away."""

    def __init__(self, block: nn.Module, prompts: Tensor) -> None:
        super().__init__()
        self.block, self.prompts = block, nn.Parameter(prompts.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block with its prompts."""
        return run_prompted(self.block, self.prompts, x, *args, **kwargs)


class DeepPromptLayer(TunerLayer):
    """A block with prompts for each adapter."""

    adapter_layer_names = ("deep_prompt_tokens",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.deep_prompt_tokens = nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: DeepPromptConfig) -> None:
        """Add an adapter."""
        block: Any = self.base_layer
        width = len(block.norm1.weight)
        prompts = torch.zeros(config.num_tokens, width)
        if config.init == "uniform":
            bound = math.sqrt(6 / (2 * width))
            nn.init.uniform_(prompts, -bound, bound)
        self.deep_prompt_tokens[adapter_name] = nn.Parameter(prompts)
        self.finish(adapter_name, config)

    def _prompts(self, names: Iterable[str]) -> Tensor:
        return torch.cat([self.deep_prompt_tokens[name] for name in names])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block, with the active adapters' prompts."""
        names = self.acting()
        if not names:
            plain: Tensor = self.base_layer(x, *args, **kwargs)
            return plain
        return run_prompted(self.base_layer, self._prompts(names), x, *args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError("prompts can't be merged into weights: use merge_and_unload()")

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Give the plain block, or with ``merge`` one that carries the prompts without peft."""
        names = [name for name in adapter_names or self.active_adapters if name in self.deep_prompt_tokens]
        return PromptedBlock(self.base_layer, self._prompts(names)) if merge and names else self.base_layer


class DeepPromptModel(Tuner):
    """Gives prompts to the blocks of a vision transformer."""

    prefix = "deep_prompt_"
    tuner_layer_cls = DeepPromptLayer
    fitting = "block of timm's VisionTransformer, which attends among any number of tokens"

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is a block of timm's VisionTransformer."""
        return is_block(module)


def is_block(module: nn.Module) -> bool:
    """Whether a module is a block of timm's VisionTransformer."""
    from timm.models import vision_transformer

    return isinstance(module, vision_transformer.Block)
