"""Backbones and adapters that every tuner is tested on: a real convolutional network, a small transformer."""

import copy
import functools

import torch
from timm.models.vision_transformer import VisionTransformer

from lightning_plasticity.continual.backbones import load_backbone

CONV = {
    "ssf": {"method": "ssf"},
    "ssf_convs": {"method": "ssf", "target_modules": r".*(conv_pw|conv_dw|bn1)"},
    "lora": {"method": "lora", "target_modules": ["conv_pw"], "lora_dropout": 0.5},
    "ln_tuning": {"method": "ln_tuning", "target_modules": ["bn2"]},
}
VIT = {
    "ssf": {"method": "ssf"},
    "bottleneck": {"method": "bottleneck", "bottleneck": 8, "dropout": 0.5},
    "deep_prompt": {"method": "deep_prompt", "num_tokens": 3},
    "lora": {"method": "lora", "target_modules": ["qkv", "fc1"], "lora_dropout": 0.5},
    "ia3": {"method": "ia3", "target_modules": ["qkv"], "feedforward_modules": []},
    "ln_tuning": {"method": "ln_tuning", "target_modules": ["norm1", "norm2"]},
    "lora_and_norm": {"method": "lora", "target_modules": ["fc2"], "modules_to_save": ["norm"]},
    "shared": {"method": "vblora", "target_modules": ["qkv"], "vector_length": 32, "num_vectors": 16},
    "oft": {"method": "oft", "target_modules": ["qkv"], "oft_block_size": 8},
}
CASES = [("conv", name) for name in CONV] + [("vit", name) for name in VIT]
NOT_IDENTITY = {"deep_prompt", "shared"}  # change the features before they have learned anything


def small_vit(depth=2):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = VisionTransformer(
            img_size=16, patch_size=4, embed_dim=32, depth=depth, num_heads=2, num_classes=0
        )
        for norm in (module for module in net.modules() if isinstance(module, torch.nn.LayerNorm)):
            torch.nn.init.normal_(norm.weight, 1, 0.2)
            torch.nn.init.normal_(norm.bias, 0, 0.2)
        return net.eval()


@functools.cache
def _original(kind):
    return load_backbone() if kind == "conv" else small_vit()


def bare(kind):
    """The backbone, anew."""
    return copy.deepcopy(_original(kind))


def settings(kind, name):
    return (CONV if kind == "conv" else VIT)[name]


def images(count=6, seed=0):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def train(pair, steps=3, lr=0.1, seed=3):
    """A few steps of classifying random images by a fixed random head."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(pair.about["num_features"], 5, generator=generator)
    labels = torch.arange(6) % 5
    optimizer = torch.optim.SGD([parameter for _, parameter in pair.adapter_parameters()], lr=lr)
    pair.train()
    for step in range(steps):
        optimizer.zero_grad()
        features = torch.nn.functional.normalize(pair.features(images(seed=step)), dim=1)
        torch.nn.functional.cross_entropy(features @ head, labels).backward()
        optimizer.step()
    pair.eval()
    return pair
