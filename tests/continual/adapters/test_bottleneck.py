"""AdaptFormer's bottleneck against its formula, written out with the block's own parts."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

from lightning_plasticity.continual.adapters import AdapterPair, BottleneckConfig, register
from lightning_plasticity.continual.adapters.bottleneck import BottleneckLayer
from tests.continual.adapters.nets import bare, images, small_vit, train


def wrapped_block(dropout=0.0, scale=0.1):
    block = small_vit().blocks[0].requires_grad_(False)
    layer = BottleneckLayer(block)
    layer.update_layer("a", BottleneckConfig(bottleneck=8, dropout=dropout, scale=scale))
    for name, parameter in layer.named_parameters():
        if "bottleneck" in name:
            generator = torch.Generator().manual_seed(len(name))
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return block, layer


@torch.no_grad()
def test_the_branch_reads_the_stream_before_the_second_norm():
    block, layer = wrapped_block(scale=0.7)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    x1 = (x + block.attn(block.norm1(x))).numpy()
    mlp = block.mlp(block.norm2(torch.from_numpy(x1))).numpy()
    down, up = layer.bottleneck_down["a"], layer.bottleneck_up["a"]
    hidden = np.maximum(x1 @ down.weight.numpy().T + down.bias.numpy(), 0)
    branch = 0.7 * (hidden @ up.weight.numpy().T + up.bias.numpy())
    np.testing.assert_allclose(layer(x).numpy(), x1 + mlp + branch, rtol=1e-4, atol=1e-5)
    assert np.abs(branch).max() > 0.1
    layer.enable_adapters(False)
    np.testing.assert_allclose(layer(x).numpy(), x1 + mlp, rtol=1e-5, atol=1e-6)


def test_a_block_that_fails_leaves_no_hook():
    block, layer = wrapped_block()
    with pytest.raises(RuntimeError):
        layer(torch.zeros(2, 5, 31))
    layer(torch.zeros(2, 5, 32))
    assert not block.norm2._forward_pre_hooks


def test_start_and_size():
    register()
    with torch.device("meta"):
        from timm import create_model

        net = get_peft_model(
            create_model("vit_base_patch16_224.augreg_in21k", num_classes=0), BottleneckConfig()
        )
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 12 * 99_136
    pair = AdapterPair(small_vit(), {"method": "bottleneck", "bottleneck": 16})
    state = pair.state_dict_of("fast")
    for key, tensor in state.items():
        if "down.weight" in key:
            assert tensor.abs().max() <= 32**-0.5 * (
                1 + 1e-6
            )  # Kaiming's bound for a = sqrt(5): 1 / sqrt(fan in)
            assert tensor.std().item() == pytest.approx((1 / (3 * 32)) ** 0.5, rel=0.1)
        else:
            assert not tensor.any()


def test_dropout_acts_on_the_fast_learner_while_training_alone():
    pair = train(AdapterPair(small_vit(), {"method": "bottleneck", "dropout": 0.5}))
    pair.hand_over()
    pair.train()
    first, second = pair.features(images()), pair.features(images())
    assert not torch.equal(first, second)
    slow = pair.features(images(), "slow")
    assert torch.equal(slow, pair.features(images(), "slow"))
    assert torch.equal(pair.features(images(), "pretrained"), bare("vit")(images()).detach())
    pair.eval()
    assert torch.equal(pair.features(images()).detach(), slow)


def test_blocks_that_norm_images_as_tokens():
    torch.manual_seed(0)
    net = SwinTransformer(
        img_size=32, patch_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=0
    ).eval()
    expected = net(torch.ones(2, 3, 32, 32))
    pair = AdapterPair(net, "bottleneck").eval()
    torch.testing.assert_close(pair.features(torch.ones(2, 3, 32, 32)), expected)
    assert len(pair.adapter_parameters()) == 2 * 4


@pytest.mark.parametrize("post", [ResPostBlock, "swin"])
def test_blocks_that_norm_after_their_mlp_are_refused(post):
    if post == "swin":
        net = SwinTransformerV2(
            img_size=32, embed_dim=8, depths=(1,), num_heads=(1,), window_size=4, num_classes=0
        )
    else:
        net = VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2, block_fn=post)
    with pytest.raises(ValueError, match="has no transformer block that norms its stream by norm2"):
        AdapterPair(net, "bottleneck")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"bottleneck": 0}, "bottleneck=0 must be 1 or more"),
        ({"dropout": 1.0}, "dropout=1.0 must be 0 or more and below 1"),
        ({"scale": 0.0}, "scale=0.0 must be a finite number other than 0"),
        ({"scale": float("nan")}, "scale=nan must be"),
        ({"target_modules": ["mlp"]}, r"'blocks.0.mlp' is a Mlp; it must be a transformer block"),
    ],
)
def test_bad_settings(config, words):
    with pytest.raises(ValueError, match=words):
        AdapterPair(small_vit(), {"method": "bottleneck", **config})


def test_it_cannot_be_merged_into_weights_and_says_so():
    with pytest.raises(ValueError, match=r"use merge_and_unload\(\)"):
        AdapterPair(small_vit(), "bottleneck").model.merge_adapter()
    assert isinstance(AdapterPair(small_vit(), "bottleneck").merged().blocks, nn.Sequential)
