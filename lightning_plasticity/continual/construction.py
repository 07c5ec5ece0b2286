"""The network of `SAFE` from what its constructor is given."""

from typing import Any

import torch
from torch import nn

from lightning_plasticity.continual.adapters import AdapterPair
from lightning_plasticity.continual.backbones import load_backbone


def make_adapters(
    backbone: str | nn.Module | AdapterPair,
    peft_config: Any,
    weights: str | None,
    image_size: int | None,
    seed: int,
) -> AdapterPair:
    """A pair of adapters on a backbone given by name, as a module, or as such a pair."""
    pair: Any = backbone
    if not isinstance(backbone, AdapterPair):
        net = load_backbone(backbone, weights, image_size) if isinstance(backbone, str) else backbone
        pair = AdapterPair(net, peft_config, seed)
    # Else depthwise convolutions are two to three times slower on a processor
    return pair.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def feature_width(adapters: AdapterPair) -> int:
    """Number of features of the backbone.

    Raises:
        ValueError: if the backbone does not say.
    """
    width = adapters.about["num_features"]
    if not isinstance(width, int):
        raise ValueError(
            f"backbone={adapters.about['name']!r} does not say its number of features: set "
            "backbone.num_features = d, where it gives [B, d]"
        )
    return width
