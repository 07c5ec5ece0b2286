"""Deep prompts against their formula."""

import math

import pytest
import torch
from peft import get_peft_model
from timm.models.vision_transformer import VisionTransformer

from lightning_plasticity.continual.adapters import AdapterPair, DeepPromptConfig, register
from tests.continual.adapters.nets import bare, images, small_vit


@torch.no_grad()
def test_prompts_join_the_tokens_of_every_block_and_leave_after_it():
    pair = AdapterPair(small_vit(depth=3), {"method": "deep_prompt", "num_tokens": 4}).eval()
    net = small_vit(depth=3)
    prompts = list(pair.state_dict_of("fast").values())
    assert [tuple(prompt.shape) for prompt in prompts] == [(4, 32)] * 3
    x = net._pos_embed(net.patch_embed(images()))
    for block, prompt in zip(net.blocks, prompts, strict=True):
        x = block(torch.cat([x, prompt.repeat(len(x), 1, 1)], 1))[:, :17]
    torch.testing.assert_close(pair.features(images()), net.norm(x)[:, 0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_any_number_of_registers_and_no_class_token():
    torch.manual_seed(0)
    net = VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=32,
        depth=1,
        num_heads=2,
        num_classes=0,
        reg_tokens=2,
        class_token=False,
        global_pool="avg",
    ).eval()
    x, pair = net._pos_embed(net.patch_embed(images())), AdapterPair(net, "deep_prompt").eval()
    prompt = pair.state_dict_of("fast").popitem()[1]
    out = pair.merged().blocks[0].block(torch.cat([x, prompt.repeat(6, 1, 1)], 1))[:, : x.shape[1]]
    torch.testing.assert_close(pair.features(images()), net.fc_norm(net.norm(out)[:, 2:].mean(1)))


def test_as_many_parameters_as_published_for_vit_b():
    register()
    with torch.device("meta"):
        from timm import create_model

        net = get_peft_model(
            create_model("vit_base_patch16_224.augreg_in21k", num_classes=0), DeepPromptConfig()
        )
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 46_080


def gradient_of_the_first_step(init):
    pair = AdapterPair(small_vit(), {"method": "deep_prompt", "init": init})
    pair.features(images()).square().sum().backward()
    return torch.stack([parameter.grad.norm() for _, parameter in pair.adapter_parameters()]).max().item()


def test_the_start():
    uniform = torch.cat(list(AdapterPair(small_vit(), "deep_prompt").state_dict_of("fast").values()))
    bound = math.sqrt(6 / 64)
    assert uniform.abs().max() <= bound
    assert uniform.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    zeros = AdapterPair(small_vit(), {"method": "deep_prompt", "init": "zeros"}).state_dict_of("fast")
    assert not any(tensor.any() for tensor in zeros.values())


def test_a_start_at_zero_has_large_first_gradients_as_documented():
    ratio = gradient_of_the_first_step("zeros") / gradient_of_the_first_step("uniform")
    assert ratio > 30


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("vit", {"num_tokens": 0}, "num_tokens=0 must be 1 or more"),
        ("vit", {"init": "noise"}, "init='noise' must be 'uniform' or 'zeros'"),
        ("vit", {"target_modules": ["attn"]}, "'blocks.0.attn' is a Attention; it must be a block of timm's"),
        ("conv", {}, "EfficientNet has no block of timm's VisionTransformer"),
    ],
)
def test_bad_settings(kind, config, words):
    with pytest.raises(ValueError, match=words):
        AdapterPair(bare(kind), {"method": "deep_prompt", **config})


def test_it_cannot_be_merged_into_weights_and_says_so():
    with pytest.raises(ValueError, match=r"use merge_and_unload\(\)"):
        AdapterPair(small_vit(), "deep_prompt").model.merge_adapter()
