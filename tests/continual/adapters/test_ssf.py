"""SSF against its formula, layer by layer, in NumPy."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from timm.layers import BatchNormAct2d, LayerNorm2d
from torch import nn

from lightning_plasticity.continual.adapters import AdapterPair, SSFConfig, register
from lightning_plasticity.continual.adapters.ssf import SSFLayer
from tests.continual.adapters.nets import bare, images, settings, small_vit


def normed(norm, x, axes):
    """(x - mean) / std over the axes, NumPy."""
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + norm.eps)


def channel(value, ndim, axis):
    return value.reshape([-1 if dim == axis else 1 for dim in range(ndim)])


def linear(layer, x):
    return x @ layer.weight.numpy().T + (0 if layer.bias is None else layer.bias.numpy())


def conv(layer, x):
    weight, out = layer.weight.numpy(), []
    for row in range(x.shape[2] - 1):
        for column in range(x.shape[3] - 1):
            out.append(np.einsum("bchw,ochw->bo", x[:, :, row : row + 2, column : column + 2], weight))
    y = np.stack(out, -1).reshape(len(x), len(weight), x.shape[2] - 1, x.shape[3] - 1)
    return y + channel(layer.bias.numpy(), 4, 1)


def batch_norm(layer, x):
    mean, var = layer.running_mean.numpy(), layer.running_var.numpy()
    shown = (x - channel(mean, x.ndim, 1)) / np.sqrt(channel(var, x.ndim, 1) + layer.eps)
    weight, bias = (1, 0) if layer.weight is None else (layer.weight.numpy(), layer.bias.numpy())
    return shown * channel(np.asarray(weight), x.ndim, 1) + channel(np.asarray(bias), x.ndim, 1)


def layer_norm(layer, x):
    return normed(layer, x, -1) * layer.weight.numpy() + layer.bias.numpy()


def layer_norm_2d(layer, x):
    return normed(layer, x, 1) * channel(layer.weight.numpy(), 4, 1) + channel(layer.bias.numpy(), 4, 1)


def group_norm(layer, x):
    groups = x.reshape(len(x), layer.num_groups, -1)
    shown = normed(layer, groups, -1).reshape(x.shape)
    return shown * channel(layer.weight.numpy(), 4, 1) + channel(layer.bias.numpy(), 4, 1)


def relu(y):
    return np.maximum(y, 0)


def identity(y):
    return y


PICTURES, TOKENS = (3, 4, 5, 5), (3, 7, 4)
LAYERS = {  # layer, shape of its input, what it computes, channel axis, what follows the scale
    "linear": (nn.Linear(4, 6), TOKENS, linear, -1, identity),
    "linear_no_bias": (nn.Linear(4, 6, bias=False), TOKENS, linear, -1, identity),
    "conv": (nn.Conv2d(4, 6, 2), PICTURES, conv, 1, identity),
    "batch_norm": (nn.BatchNorm2d(4), PICTURES, batch_norm, 1, identity),
    "batch_norm_plain": (nn.BatchNorm2d(4, affine=False), PICTURES, batch_norm, 1, identity),
    "batch_norm_act": (BatchNormAct2d(4, act_layer=nn.ReLU), PICTURES, batch_norm, 1, relu),
    "layer_norm": (nn.LayerNorm(4), TOKENS, layer_norm, -1, identity),
    "layer_norm_2d": (LayerNorm2d(4), PICTURES, layer_norm_2d, 1, identity),
    "group_norm": (nn.GroupNorm(2, 4), PICTURES, group_norm, 1, identity),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    """A wrapped layer with random weights, its input, and what it should give."""
    base, shape, formula, axis, after = LAYERS[request.param]
    generator = torch.Generator().manual_seed(0)
    for name, tensor in base.state_dict().items():
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator) + 0.5
            tensor.copy_(values if name == "running_var" else values - 1)
    base.eval().requires_grad_(False)
    x = torch.randn(shape, generator=generator)
    wrapped = SSFLayer(base)
    wrapped.update_layer("a", SSFConfig())
    for values in (wrapped.ssf_scale["a"], wrapped.ssf_shift["a"]):
        values.data = torch.randn(values.shape, generator=generator)
    plain = formula(base, x.numpy())
    scale, shift = (
        channel(v["a"].detach().numpy(), plain.ndim, axis % plain.ndim)
        for v in (wrapped.ssf_scale, wrapped.ssf_shift)
    )
    return wrapped, x, after(plain), after(plain * scale + shift)


def close(output, expected):
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_scales_and_shifts_each_channel_before_any_activation(layer):
    wrapped, x, plain, expected = layer
    close(wrapped(x), expected)
    wrapped.enable_adapters(False)
    close(wrapped(x), plain)


def test_merging_folds_into_the_layer_and_unmerging_is_exact(layer):
    wrapped, x, _, expected = layer
    before = {
        key: None if value is None else value.clone() for key, value in wrapped.base_layer._parameters.items()
    }
    wrapped.merge(safe_merge=True)
    close(wrapped.base_layer(x), expected)
    close(wrapped(x), expected)
    wrapped.unmerge()
    close(wrapped(x), expected)
    for key, value in before.items():
        after = wrapped.base_layer._parameters[key]
        assert after is None if value is None else torch.equal(after, value)


def test_a_merge_that_is_not_finite_is_refused(layer):
    wrapped, _, _, _ = layer
    wrapped.ssf_scale["a"].data[0] = torch.inf
    with pytest.raises(ValueError, match=r"\['a'\] hold values that aren't finite"):
        wrapped.merge(safe_merge=True)
    assert not wrapped.merged


def test_gradients_of_scale_and_shift_are_those_of_the_formula(layer):
    wrapped, x, _, _ = layer
    up = torch.randn(wrapped(x).shape, generator=torch.Generator().manual_seed(2))
    (wrapped(x) * up).sum().backward()
    for values in (wrapped.ssf_scale["a"], wrapped.ssf_shift["a"]):
        for place in range(len(values)):
            with torch.no_grad():
                step = torch.zeros_like(values)
                step[place] = 1e-2
                values += step
                above = (wrapped(x).double() * up).sum()
                values -= 2 * step
                below = (wrapped(x).double() * up).sum()
                values += step
            # the finite difference is wrong by more only where a ReLU switches within it
            if not isinstance(wrapped.base_layer, BatchNormAct2d):
                assert values.grad[place].item() == pytest.approx(((above - below) / 2e-2).item(), abs=2e-3)


def test_the_authors_noise():
    register()
    net = get_peft_model(bare("conv"), SSFConfig(init="noise"))
    for container, mean in (("ssf_scale", 1.0), ("ssf_shift", 0.0)):
        named = [p for name, p in net.named_parameters() if container in name]
        values = torch.cat([parameter.detach() for parameter in named])
        assert len(values) == 21_008
        assert values.mean().item() == pytest.approx(mean, abs=6e-4)
        assert values.std().item() == pytest.approx(0.02, abs=4e-4)


def test_targets_are_the_norms_of_a_network_with_batch_norm_and_all_layers_of_a_transformer():
    pair = AdapterPair(bare("conv"), "ssf")
    wrapped = [type(m.base_layer).__name__ for m in pair.modules() if isinstance(m, SSFLayer)]
    assert wrapped == ["BatchNormAct2d"] * 49
    assert sum(parameter.numel() for _, parameter in pair.adapter_parameters()) == 42_016
    pair = AdapterPair(small_vit(depth=2), "ssf")
    names = [
        name.removeprefix("model.base_model.model.")
        for name, m in pair.named_modules()
        if isinstance(m, SSFLayer)
    ]
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    assert names == ["patch_embed.proj", *[f"blocks.{b}.{part}" for b in (0, 1) for part in block], "norm"]


def test_as_many_parameters_as_published_for_vit_b():
    register()
    from timm import create_model

    with torch.device("meta"):
        net = get_peft_model(create_model("vit_base_patch16_224.augreg_in21k", num_classes=0), SSFConfig())
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 205_824


@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_works_under_half_precision(kind):
    pair = AdapterPair(bare(kind), settings(kind, "ssf"))
    expected = pair.features(images()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        features = pair.features(images())
        features.float().square().sum().backward()
    torch.testing.assert_close(features.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
    assert all(parameter.grad.isfinite().all() for _, parameter in pair.adapter_parameters())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"init": "ones"}, "init='ones' must be 'identity' or 'noise'"),
        ({"target_modules": ["nothing_of_the_kind"]}, "nothing_of_the_kind"),
        ({"target_modules": ["blocks"]}, "'blocks' is a Sequential; it must be a linear, convolution"),
    ],
)
def test_bad_settings(config, words):
    with pytest.raises(ValueError, match=words):
        AdapterPair(bare("conv"), {"method": "ssf", **config})


def test_a_network_without_layers_to_scale():
    with pytest.raises(ValueError, match="Flatten has no linear, convolution or normalisation layer"):
        AdapterPair(nn.Flatten(), "ssf")
