"""Which parameters are masked: module types, tied and frozen weights, name patterns."""

import pytest
import torch
from torch import nn

from lightning_plasticity.sparsity.maskable import check_patterns, maskable_parameters, matches


class Zoo(nn.Module):
    """One layer of each kind."""

    def __init__(self):
        super().__init__()
        self.conv1d, self.conv2d, self.conv3d = nn.Conv1d(4, 8, 3), nn.Conv2d(4, 8, 3), nn.Conv3d(4, 8, 3)
        self.up = nn.ConvTranspose2d(8, 4, 3)
        self.attention = nn.MultiheadAttention(8, 2)
        self.split = nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
        self.embedding, self.norm = nn.Embedding(12, 8), nn.BatchNorm2d(8)
        self.layer_norm, self.gru = nn.LayerNorm([8, 8]), nn.GRU(8, 8)
        self.fc = nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.ones(4, 4))


def test_layers_are_chosen_by_type():
    assert list(maskable_parameters(Zoo())) == [
        "conv1d.weight", "conv2d.weight", "conv3d.weight", "up.weight",
        "attention.in_proj_weight", "attention.out_proj.weight",
        "split.q_proj_weight", "split.k_proj_weight", "split.v_proj_weight", "split.out_proj.weight",
        "fc.weight",
    ]  # fmt: skip
    assert list(maskable_parameters(Zoo(), granularity="filter")) == [
        "conv1d.weight",
        "conv2d.weight",
        "conv3d.weight",
    ]


def test_include_takes_any_weight_of_two_dimensions_or_more():
    zoo = Zoo()
    assert list(maskable_parameters(zoo, include=["embedding", "scale"])) == ["scale", "embedding.weight"]
    assert list(maskable_parameters(zoo, include=["gru"])) == ["gru.weight_ih_l0", "gru.weight_hh_l0"]
    assert list(maskable_parameters(zoo, ["fc"], granularity="filter")) == ["fc.weight"]
    assert list(maskable_parameters(zoo, ["conv?d"], ["conv2*"])) == ["conv1d.weight", "conv3d.weight"]
    parameters = maskable_parameters(zoo, include=["fc.weight"])
    assert parameters["fc.weight"] is zoo.fc.weight


def test_tied_weights_appear_once_and_frozen_ones_not_at_all():
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6))
    net[2].weight = net[0].weight
    assert list(maskable_parameters(net)) == ["0.weight", "1.weight"]
    net[1].weight.requires_grad_(False)
    assert list(maskable_parameters(net)) == ["0.weight"]


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("layer1.0.conv.weight", "layer1", True),
        ("layer1.0.conv.weight", "layer1.0", True),
        ("layer1.0.conv.weight", "layer1.*", True),
        ("layer1.0.conv.weight", "*.conv", True),
        ("layer1.0.conv.weight", "*.conv.weight", True),
        ("layer1.0.conv.weight", "conv", False),
        ("layer10.conv.weight", "layer1", False),
        ("Layer1.weight", "layer1", False),
        ("conv1.weight", "conv", False),
    ],
)
def test_patterns_match_whole_names(name, pattern, expected):
    assert matches(name, [pattern]) is expected
    assert matches(name, ["nothing", pattern]) is expected
    assert not matches(name, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"include": ["conv9"]},
            "include: the pattern 'conv9' matches no parameter. Names look like scale, conv1d",
        ),
        ({"exclude": ["fc", "f"]}, "exclude: the pattern 'f' matches no parameter"),
        ({"include": "fc"}, r"include='fc' must be a list of patterns: include=\['fc'\]"),
        ({"exclude": ["*"]}, r"nothing to mask with include=\[\], exclude=\['\*'\]"),
        ({"include": ["norm"]}, r"nothing to mask with include=\['norm'\]"),
        ({"include": ["fc", "conv1d"], "granularity": "2:4", "exclude": ["conv1d"]}, None),
        (
            {"granularity": "3:5", "include": ["fc"]},
            r"'3:5' does not fit: 'fc.weight' of shape \(4, 8\) has 8 inputs",
        ),
        (
            {"granularity": "2:4", "include": ["up"]},
            r"not defined for transposed convolutions .*exclude=\['up.weight'\]",
        ),
        ({"granularity": "filter", "include": ["up"]}, "not defined for transposed convolutions"),
        ({"granularity": "4:2"}, "granularity='4:2' must be 'weight', 'filter' or an N:M string"),
    ],
)
def test_bad_choices_are_refused(options, message):
    if message is None:
        assert list(maskable_parameters(Zoo(), **options)) == ["fc.weight"]
        return
    with pytest.raises(ValueError, match=message):
        maskable_parameters(Zoo(), **options)


def test_a_frozen_parameter_that_is_asked_for_is_refused():
    zoo = Zoo()
    zoo.fc.weight.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"include=\['fc'\] names frozen parameters.*\['fc.weight'\].*Unfreeze them"
    ):
        maskable_parameters(zoo, include=["fc"])
    assert "fc.weight" not in maskable_parameters(zoo, include=["fc", "up"], exclude=["fc"])


def test_a_model_with_nothing_to_mask_is_refused():
    with pytest.raises(
        ValueError, match=r"nothing to mask.*trainable weights of linear or convolution layers"
    ):
        maskable_parameters(nn.LayerNorm(4))
    with pytest.raises(ValueError, match="trainable weights of convolution layers"):
        maskable_parameters(nn.Linear(4, 4), granularity="filter")


def test_patterns_are_checked_under_the_name_of_their_argument():
    check_patterns("sparsity", ["a"], {"a.weight": 1})
    with pytest.raises(
        ValueError, match=r"sparsity: the pattern 'b' matches no parameter\. Names look like a.weight"
    ):
        check_patterns("sparsity", ["b"], {"a.weight": 1})
