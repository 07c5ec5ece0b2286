"""Smaller models: the outputs of the masked model, from fewer channels."""

import copy
import pickle
import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_plasticity.models.convnets import resnet20, vgg19
from lightning_plasticity.sparsity.export.constants import constant_inputs
from lightning_plasticity.sparsity.export.cost import count_zero_filters
from lightning_plasticity.sparsity.export.coupling import filter_groups
from lightning_plasticity.sparsity.export.folding import BorderedConv2d
from lightning_plasticity.sparsity.export.reload import load_shrunk
from lightning_plasticity.sparsity.export.surgery import shrink
from tests.sparsity.export.nets import (
    CLOSE,
    RESIDUAL_GROUPS,
    Residual,
    conv,
    filter_masks,
    images,
    masked,
    settle,
)

CHAINS = {
    "no padding": lambda: [*conv(3, 8), *conv(8, 6), nn.Flatten(), nn.Linear(6 * 64, 5)],
    "zero padding": lambda: [*conv(3, 8, padding=1), *conv(8, 6, padding=1), nn.Flatten(), nn.Linear(864, 5)],
    "same, dilated": lambda: [
        *conv(3, 8, padding="same"),
        *conv(8, 6, padding="same", dilation=2),
        nn.Flatten(),
        nn.Linear(864, 5),
    ],
    "stride, wide padding": lambda: [
        *conv(3, 8, padding=3),
        *conv(8, 6, stride=2, padding=(2, 1), bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ],
    "reflection": lambda: [
        *conv(3, 8, padding=1, padding_mode="reflect"),
        *conv(8, 6, padding=1, padding_mode="circular"),
        nn.Flatten(),
        nn.Linear(864, 5),
    ],
    "pooling": lambda: [
        *conv(3, 8, padding=1),
        nn.MaxPool2d(3, 2, padding=1),
        *conv(8, 6, padding=1),
        nn.AvgPool2d(2),
        *conv(6, 4, padding=1),
        nn.Flatten(),
        nn.Linear(36, 5),
    ],
    "other activations": lambda: [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.PReLU(8),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.GELU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(864, 7),
        nn.BatchNorm1d(7),
        nn.Sigmoid(),
        nn.Linear(7, 5),
    ],
}


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.7])
@pytest.mark.parametrize("kind", CHAINS)
def test_chain_keeps_its_outputs_and_loses_every_dead_filter(kind, share, fuse):
    model = settle(nn.Sequential(*CHAINS[kind]()))
    x = images(4, 3, 12, 12)
    masks = filter_masks(model, share, filter_groups(model, x))
    small = shrink(model, x, masks, fuse_norms=fuse)
    torch.testing.assert_close(small(x), masked(model, masks)(x), **CLOSE)
    assert count_zero_filters(small) == 0
    for name, mask in masks.items():
        alive = int(mask.flatten(1).any(1).sum())
        assert len(dict(small.named_parameters())[name]) == alive
    assert any(isinstance(m, nn.BatchNorm2d) for m in small.modules()) is not fuse


def test_border_of_a_zero_padded_layer_is_not_a_bias():
    """The trap this code is for: folding the constant into the bias alone is wrong along the border."""
    model = settle(nn.Sequential(*conv(3, 8, padding=1), *conv(8, 6, padding=1)))
    x = images(2, 3, 9, 9)
    masks = filter_masks(model, 0.5, [["0.weight"]])
    small = shrink(model, x, masks)
    expected = masked(model, masks)(x)
    torch.testing.assert_close(small(x), expected, **CLOSE)
    layer = small[3]
    assert isinstance(layer, BorderedConv2d)
    layer.bias.data += layer.taps.sum((1, 2, 3))
    layer.taps.zero_()
    layer.border = None
    naive = small(x)
    torch.testing.assert_close(naive[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], **CLOSE)
    assert (naive - expected)[:, :, 0].abs().max() > 1e-2


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_residual_net_keeps_its_outputs_at_every_image_size(share, coupled, fuse):
    model = settle(Residual())
    groups = RESIDUAL_GROUPS if coupled else [[name] for group in RESIDUAL_GROUPS for name in group]
    masks = filter_masks(model, share, groups)
    small = shrink(model, images(2, 3, 16, 16), masks, fuse_norms=fuse)
    for size in (16, 23, 16):
        x = images(3, 3, size, size)
        torch.testing.assert_close(small(x), masked(model, masks)(x), **CLOSE)
    alive = {name: int(mask.flatten(1).any(1).sum()) for name, mask in masks.items()}
    assert small.body1[0].out_channels == alive["body1.0.weight"]
    assert small.body2[0].out_channels == alive["body2.0.weight"]
    both = masks["stem.0.weight"].flatten(1).any(1) | masks["body1.3.weight"].flatten(1).any(1)
    assert small.stem[0].out_channels == small.body1[3].out_channels == int(both.sum())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 0.95))
def test_any_mask_of_a_residual_net_keeps_the_outputs(seed, share):
    model = settle(Residual(), seed)
    names = [name for group in RESIDUAL_GROUPS for name in group]
    masks = {}
    for index, name in enumerate(names):
        shape = dict(model.named_parameters())[name].shape
        draw = torch.rand(shape[0], 1, 1, 1, generator=torch.Generator().manual_seed(seed + index))
        masks[name] = (draw >= share).expand(shape).clone()
    x = images(2, 3, 10, 10, seed=seed)
    torch.testing.assert_close(shrink(model, x, masks)(x), masked(model, masks)(x), **CLOSE)


def test_a_layer_keeps_one_channel_when_all_but_one_or_all_filters_are_dead():
    model = settle(nn.Sequential(*conv(3, 8, padding=1), *conv(8, 6, padding=1), *conv(6, 4)))
    x = images(2, 3, 10, 10)
    for alive in (1, 0):
        mask = torch.zeros_like(model[0].weight, dtype=torch.bool)
        mask[:alive] = True
        masks = {"0.weight": mask}
        small = shrink(model, x, masks)
        assert small[0].out_channels == 1
        torch.testing.assert_close(small(x), masked(model, masks)(x), **CLOSE)


def test_depthwise_channels_leave_with_their_layer_and_grouped_layers_stay():
    depthwise = nn.Sequential(
        *conv(3, 8, padding=1),
        *conv(8, 8, padding=1, groups=8),
        nn.Conv2d(8, 10, 1),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        *conv(10, 6, padding=1, groups=2),
        nn.Conv2d(6, 5, 1),
    )
    model = settle(depthwise)
    x = images(2, 3, 10, 10)
    assert filter_groups(model, x) == [["0.weight", "3.weight"]]
    masks = filter_masks(model, 0.5, [["0.weight", "3.weight"], ["6.weight"], ["9.weight"]])
    small = shrink(model, x, masks)
    torch.testing.assert_close(small(x), masked(model, masks)(x), **CLOSE)
    assert small[3].groups == small[3].in_channels == small[3].out_channels == small[0].out_channels == 4
    assert small[6].in_channels == 4
    assert (small[6].out_channels, small[9].out_channels) == (10, 6)
    rebuilt = load_shrunk(settle(copy.deepcopy(depthwise), 5), small.state_dict())
    torch.testing.assert_close(rebuilt(x), small(x), rtol=0, atol=0)


class Branches(nn.Module):
    """Channels under concatenation, in a layer that runs twice, under squeeze-and-excitation, given out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.join = nn.Conv2d(10, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.gate = nn.Linear(8, 8)
        self.out = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.join(torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1))
        x = self.twice(F.relu(self.twice(F.relu(x))))
        x = F.relu(x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None])
        features = self.out(x)
        return {"features": features, "logits": self.head(features.mean((2, 3)))}


def test_concatenation_is_cut_and_what_cannot_be_cut_stays():
    model = settle(Branches())
    with torch.no_grad():
        model.left.bias += 1.0  # dead channels carry a constant that is not zero
    x = images(2, 3, 10, 10)
    assert filter_groups(model, x) == [["left.weight"], ["right.weight"]]
    masks = filter_masks(
        model, 0.5, [[f"{name}.weight"] for name in ("left", "right", "join", "twice", "out")]
    )
    small = shrink(model, x, masks)
    expected = masked(model, masks)(x)
    for name, value in small(x).items():
        torch.testing.assert_close(value, expected[name], **CLOSE)
    assert (small.left.out_channels, small.right.out_channels, small.join.in_channels) == (3, 2, 5)
    assert (small.join.out_channels, small.twice.out_channels, small.out.out_channels) == (8, 8, 4)


class Transformer(nn.Module):
    """One pre-norm MLP block: the hidden units are free, the stream under LayerNorm is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.down(F.gelu(self.up(self.norm(x))))).mean(1))


def test_linear_layers_over_a_sequence():
    model = settle(Transformer())
    x = images(2, 7, 6)
    names = ["embed.weight", "up.weight", "down.weight"]
    masks = filter_masks(model, 0.5, [[name] for name in names])
    small = shrink(model, x, masks)
    torch.testing.assert_close(small(x), masked(model, masks)(x), **CLOSE)
    assert (small.up.out_features, small.down.in_features) == (8, 8)
    assert (small.embed.out_features, small.down.out_features) == (8, 8)


class Gate(nn.Module):
    """A comparison swallows NaN, so that a probe with NaN alone would take the gate for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x) > 0).to(x.dtype))


def test_a_comparison_is_not_taken_for_a_constant():
    model, x = settle(Gate()), images(2, 3, 5, 5)
    assert constant_inputs(model, x)["last"].isnan().all()
    torch.testing.assert_close(shrink(model, x)(x), model(x), **CLOSE)


def test_constants_are_those_of_the_masked_net():
    model = settle(nn.Sequential(*conv(3, 4, padding=1), nn.Conv2d(4, 2, 3, padding=1)))
    masks = {"0.weight": torch.tensor([True, False, False, True]).view(4, 1, 1, 1)}
    reference = masked(model, masks)
    found = constant_inputs(reference, images(1, 3, 6, 6))["3"]
    norm, bias = model[1], model[0].bias
    by_hand = (
        (bias - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    ).relu()
    assert found.isnan().tolist() == [True, False, False, True]
    np.testing.assert_allclose(found[1:3], by_hand[1:3].detach(), rtol=1e-6)


@pytest.mark.parametrize("build", [resnet20, vgg19])
def test_nets_of_the_papers(build):
    model = settle(build())
    x = images(2, 3, 32, 32)
    groups = filter_groups(model, x)
    masks = filter_masks(model, 0.7, groups)
    small = shrink(model, x, masks)
    torch.testing.assert_close(small(x), masked(model, masks)(x), **CLOSE)
    assert count_zero_filters(small) == 0
    assert sum(p.numel() for p in small.parameters()) < 0.12 * sum(p.numel() for p in model.parameters())
    if build is resnet20:  # the three streams, and the inside of nine blocks
        assert sorted(len(names) for names in groups) == [1] * 9 + [4, 4, 4]


def test_masks_are_read_from_the_weights_and_may_be_one_entry_per_filter():
    model = settle(Residual())
    x = images(2, 3, 12, 12)
    masks = filter_masks(model, 0.5, RESIDUAL_GROUPS)
    narrow = {name: mask[:, :1, :1, :1] for name, mask in masks.items()}
    expected = shrink(model, x, masks).state_dict()
    for other in (shrink(masked(model, masks), x), shrink(model, x, narrow)):
        state = other.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)


def test_the_original_is_untouched():
    model = settle(Residual()).train()
    model.head.weight.requires_grad_(False)
    model.stem[1].eval()
    x = images(2, 3, 12, 12)
    before = copy.deepcopy(model.state_dict())
    small = shrink(model, x, filter_masks(model, 0.5, RESIDUAL_GROUPS))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model.stem[1].training
    assert not small.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*model.modules(), *small.modules()])
    frozen = {name for name, p in small.named_parameters() if not p.requires_grad}
    assert frozen == {"head.weight"}


def test_shrinking_twice_and_dead_weights_of_a_bordered_layer():
    model = settle(Residual())
    x = images(2, 3, 12, 12)
    masks = filter_masks(model, 0.5, RESIDUAL_GROUPS)
    small = shrink(model, x, masks)
    again = filter_masks(small, 0.5, RESIDUAL_GROUPS, seed=3)
    smaller = shrink(small, x, again)
    torch.testing.assert_close(smaller(x), masked(small, again)(x), **CLOSE)
    assert smaller.body1[0].out_channels < small.body1[0].out_channels


def test_shrunk_model_pickles_and_comes_back_from_tensors_alone(tmp_path):
    model = settle(Residual())
    x = images(2, 3, 12, 12)
    for fuse in (True, False):
        small = shrink(model, x, filter_masks(model, 0.5, RESIDUAL_GROUPS), fuse_norms=fuse)
        torch.testing.assert_close(pickle.loads(pickle.dumps(small))(x), small(x), rtol=0, atol=0)
        torch.save(small.state_dict(), tmp_path / "small.pt")
        fresh = Residual()
        back = load_shrunk(fresh, torch.load(tmp_path / "small.pt", weights_only=True))
        torch.testing.assert_close(back(x), small(x), rtol=0, atol=0)
        assert fresh.stem[0].out_channels == 8
    with pytest.raises(ValueError, match="state does not fit a shrunk Transformer"):
        load_shrunk(Transformer(), small.state_dict())


def test_bordered_layer_trains_moves_and_reloads():
    model = settle(nn.Sequential(*conv(3, 8, padding=1), *conv(8, 6, padding=1)))
    x = images(2, 3, 9, 9)
    small = shrink(model, x, filter_masks(model, 0.5, [["0.weight"]]))
    small(x).square().sum().backward()
    assert small[3].weight.grad.abs().sum() > 0
    other = copy.deepcopy(small)
    other[3].taps.mul_(2)
    small.load_state_dict(other.state_dict())  # the cached border map must follow
    other[3].border = None
    torch.testing.assert_close(small(x), other(x), rtol=0, atol=0)
    double = copy.deepcopy(small).double()
    torch.testing.assert_close(double(x.double()).float(), small(x), **CLOSE)
    with torch.inference_mode():
        small(images(1, 3, 11, 11))
    small(images(1, 3, 11, 11)).sum().backward()


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Residual()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_lightning_module():
    model = settle(Module())
    x = images(2, 3, 12, 12)
    masks = filter_masks(model, 0.5, [[f"net.{name}" for name in group] for group in RESIDUAL_GROUPS])
    small = shrink(model, x, masks)
    assert isinstance(small, Module)
    torch.testing.assert_close(small(x), masked(model, masks)(x), **CLOSE)


def test_excluded_modules_stay_whole():
    model = settle(Residual())
    x = images(2, 3, 12, 12)
    masks = filter_masks(model, 0.5, RESIDUAL_GROUPS)
    small = shrink(model, x, masks, exclude=["body2"])
    assert (small.body2[0].out_channels, small.project[0].out_channels) == (10, 12)
    assert small.body1[0].out_channels == 3
    torch.testing.assert_close(small(x), masked(model, masks)(x), **CLOSE)


class Shuffled(nn.Module):
    """Reorders its channels by indexing, which torch-pruning's graph takes for an element-wise step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)[:, [3, 2, 1, 0]])


class Halves(nn.Module):
    """Splits, joins and shuffles its channels, as ShuffleNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = self.first(x).chunk(2, 1)
        x = torch.cat([kept, self.last(changed)], 1)
        return x.view(len(x), 2, 3, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


class Frozen(Residual):
    """Runs without gradients, so that there is no record to read the graph from."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_shuffled_channels_stay_right_and_an_untraceable_model_is_named():
    model, x = settle(Halves()), images(2, 3, 4, 4)
    masks = filter_masks(model, 0.5, [["first.weight"], ["last.weight"]])
    torch.testing.assert_close(shrink(model, x, masks)(x), masked(model, masks)(x), **CLOSE)
    with pytest.raises(RuntimeError, match=r"torch-pruning cannot trace Frozen: .*bake\(\)"):
        shrink(settle(Frozen()), images(2, 3, 12, 12))


def test_errors_name_the_argument_and_the_way_out(monkeypatch):
    model, x = settle(Residual()), images(2, 3, 12, 12)
    with pytest.raises(ValueError, match=r"masks\['nothing'\] has no parameter"):
        shrink(model, x, {"nothing": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"masks\['head.weight'\] has shape \(7,\)"):
        shrink(model, x, {"head.weight": torch.ones(7, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"example_inputs\[0\] is torch.int64"):
        shrink(model, torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="exclude: the model has no module 'body9'"):
        shrink(model, x, exclude=["body9"])
    tied = torch.nn.utils.parametrizations.weight_norm(copy.deepcopy(model).head)
    with pytest.raises(ValueError, match="parametrized"):
        shrink(nn.Sequential(tied), images(1, 12))
    shuffled = settle(Shuffled())
    masks = {"first.weight": torch.tensor([True, True, False, True]).view(4, 1, 1, 1)}
    with pytest.raises(RuntimeError, match=r"exclude=\['module.name', ...\]"):
        shrink(shuffled, images(1, 3, 4, 4), masks)
    torch.testing.assert_close(
        shrink(shuffled, images(1, 3, 4, 4), masks, exclude=["first"])(images(1, 3, 4, 4)),
        masked(shuffled, masks)(images(1, 3, 4, 4)),
        **CLOSE,
    )
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-plasticity\[export\]'"):
        shrink(model, x)
