"""The network of `SAFE` from what its constructor is given."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightning_plasticity.continual.adapters import AdapterPair, plain_config
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


def plain_adapter(backbone: object, peft_config: Any) -> str | dict[str, Any] | None:
    """What a checkpoint keeps of the adapter that the constructor was given, in plain types."""
    if isinstance(backbone, AdapterPair):
        return dict(backbone.method)
    if peft_config is None or isinstance(peft_config, str):
        return peft_config
    return dict(peft_config) if isinstance(peft_config, Mapping) else plain_config(peft_config)


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
