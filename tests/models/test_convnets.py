"""Networks: the sizes of the papers, any image size, names."""

import math

import pytest
import torch
from torch import nn

from lightning_plasticity.models import SmallConvNet, create_model, resnet20, resnet50_cifar, vgg16, vgg19


def weights(model):
    return {name: p for name, p in model.named_parameters() if p.ndim in (2, 4)}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_resnet50_for_cifar_has_the_papers_54_weights():
    model = resnet50_cifar()
    assert len(weights(model)) == 54
    total = sum(p.numel() for p in weights(model).values())
    # stem and head; per stage of planes p and input i: bottlenecks i*p + 9p^2 + 4p^2, and the shortcut i*4p
    expected, width = 64 * 27 + 2048 * 10, 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        expected += width * planes + 13 * planes**2 + width * 4 * planes
        expected += (blocks - 1) * (4 * planes * planes + 13 * planes**2)
        width = 4 * planes
    assert total == expected
    assert round(total / 1e6, 2) == 23.47


@pytest.mark.parametrize(
    ("factory", "millions", "convolutions"),
    [(resnet20, 0.27, 19 + 2), (vgg16, 14.72, 13), (vgg19, 20.04, 16), (SmallConvNet, 0.11, 3)],
)
def test_sizes(factory, millions, convolutions):
    model = factory()
    assert round(parameters(model) / 1e6, 2) == millions
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions


def test_resnet20_without_its_projections_is_the_published_size():
    model = resnet20()
    projections = sum(parameters(m.shortcut) for m in model.modules() if hasattr(m, "shortcut"))
    assert parameters(model) - projections == 269_722


@pytest.mark.parametrize("name", ["small_convnet", "resnet20", "vgg16", "vgg19", "resnet50_cifar"])
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 28), (3, 32)])
def test_all_take_digits_and_colour_images(name, channels, side):
    torch.manual_seed(0)
    model = create_model(name, num_classes=7, in_channels=channels)
    logits = model(torch.randn(2, channels, side, side))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet20", "vgg19"])
def test_the_signal_keeps_its_scale_through_the_depth(name):
    torch.manual_seed(0)
    model = create_model(name, in_channels=3)
    logits = model(torch.randn(16, 3, 32, 32))
    assert 0.05 < logits.std() < 5.0


def test_resolutions_are_those_of_the_papers():
    seen = {}
    model = resnet20()
    for stage in range(3):
        model.stages[stage].register_forward_hook(
            lambda _, __, output, stage=stage: seen.update({stage: tuple(output.shape[1:])})
        )
    model(torch.zeros(1, 3, 32, 32))
    assert seen == {0: (16, 32, 32), 1: (32, 16, 16), 2: (64, 8, 8)}


def test_convolutions_are_drawn_as_he_et_al_do():
    torch.manual_seed(0)
    for weight in (p for p in weights(resnet20()).values() if p.ndim == 4 and p.numel() > 2000):
        fan_out = weight.shape[0] * math.prod(weight.shape[2:])
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)


def test_other_names_come_from_timm():
    model = create_model("resnet10t", num_classes=5, in_channels=1)
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 5)
    assert parameters(create_model("timm/test_vit", num_classes=3)) < 1e6


def test_own_names_come_first_and_timms_stay_reachable():
    assert parameters(create_model("vgg16")) < 15e6
    with torch.device("meta"):
        assert parameters(create_model("timm/vgg16")) > 100e6


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "resnet_20"}, r"model='resnet_20' is unknown; did you mean .*resnet20"),
        ({"name": "resnet20", "num_classes": 0}, "num_classes=0"),
        ({"name": "resnet20", "in_channels": -1}, "in_channels=-1"),
        ({"name": "vgg19", "pretrained": True}, r"pretrained=True.*'vgg19'"),
    ],
)
def test_bad_arguments_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        create_model(**arguments)


def test_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-plasticity\[recipes\]'"):
        create_model("resnet18")
