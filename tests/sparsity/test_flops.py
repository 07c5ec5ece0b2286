"""FLOPs: the published ResNet-50, PyTorch's own counter, loops written out, and models left as they were."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_plasticity.sparsity.distributions import erk_densities, uniform_densities
from lightning_plasticity.sparsity.flops import FlopsRecorder, batch_size_of, count_flops
from lightning_plasticity.sparsity.training_flops import training_flops


@pytest.fixture(scope="module")
def resnet50():
    """ResNet-50's FLOPs at 224 x 224, per weight, and its weights' shapes."""
    from torchvision.models import resnet50 as build

    with torch.device("meta"):
        model = build()
        flops = count_flops(model, torch.zeros(1, 3, 224, 224))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim in (2, 4)}
    return flops, shapes


def test_resnet50_has_the_published_flops(resnet50):
    flops, shapes = resnet50
    assert len(flops.per_layer) == len(shapes) == 54
    assert sum(math.prod(shape) for shape in shapes.values()) == 25_502_912
    assert flops.dense == 2 * 4_089_184_256  # 8.178e9
    assert flops.sparse == flops.dense


def ratio(flops, densities):
    return sum(flops.per_layer[name].dense * density for name, density in densities.items()) / flops.dense


def test_resnet50_has_the_published_erk_ratios(resnet50):
    flops, shapes = resnet50
    assert round(ratio(flops, erk_densities(shapes, 0.5)), 4) == 0.7143
    assert round(ratio(flops, erk_densities(shapes, 0.5)) * flops.dense / 1e9, 4) == 5.8415
    assert round(ratio(flops, erk_densities(shapes, 0.2)), 3) == 0.414


@pytest.mark.parametrize(("density", "expected"), [(0.5, 0.514), (0.2, 0.223), (0.1, 0.126), (0.05, 0.077)])
def test_resnet50_has_the_published_uniform_ratios(resnet50, density, expected):
    flops, shapes = resnet50
    assert round(ratio(flops, uniform_densities(shapes, density) | {"conv1.weight": 1.0}), 3) == expected


def macs_by_loop(image, weight, stride, padding):
    """Convolve in the plainest way and count the products, those with padding too."""
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    filters, channels, height, width = weight.shape
    rows = (padded.shape[1] - height) // stride + 1
    columns = (padded.shape[2] - width) // stride + 1
    count = 0
    for _ in range(filters):
        for _ in range(rows):
            for _ in range(columns):
                count += channels * height * width
    return count


def test_a_convolution_equals_a_loop():
    model = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    expected = macs_by_loop(np.zeros((3, 9, 8)), model.weight.detach().numpy(), stride=2, padding=1)
    assert count_flops(model, torch.zeros(4, 3, 9, 8)).per_layer["weight"].dense == 2 * expected


MODULES = {
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 17)),
    "conv2d": (nn.Conv2d(4, 6, (3, 5), padding=(1, 0), dilation=2), (4, 12, 13)),
    "conv2d_depthwise": (nn.Conv2d(8, 16, 3, groups=8), (8, 7, 7)),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 4, 5, 6)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), (4, 9)),
    "transposed2d": (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2), (4, 7, 8)),
    "transposed3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 4, 5)),
    "linear": (nn.Linear(7, 5), (7,)),
    "linear_on_sequences": (nn.Linear(7, 5), (11, 7)),
    "linear_on_maps": (nn.Linear(7, 5, bias=False), (3, 4, 7)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_layer_equals_pytorchs_own_counter(name, batch):
    module, shape = MODULES[name]
    inputs = torch.zeros(batch, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs)
    assert count_flops(module, inputs).dense == counter.get_total_flops() / batch


@pytest.mark.parametrize("kdim", [None, 5])
def test_attention_projections_are_counted(kdim):
    attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=kdim, vdim=kdim)
    query, key = torch.zeros(3, 6, 8), torch.zeros(3, 4, kdim or 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attention(query, key, value=key)
    products = 2 * 2 * 8 * 6 * 4  # queries x keys and weights x values: no weight takes part in them
    flops = count_flops(attention, {"query": query, "key": key, "value": key})
    assert flops.dense == counter.get_total_flops() / 3 - products
    inputs = ["q_proj_weight", "k_proj_weight", "v_proj_weight"] if kdim else ["in_proj_weight"]
    assert list(flops.per_layer) == [*inputs, "out_proj.weight"]


class Shared(nn.Module):
    """One module used twice, and two modules with one weight."""

    def __init__(self):
        super().__init__()
        self.used_twice = nn.Linear(6, 6, bias=False)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.never = nn.Linear(6, 6)
        self.embedding = nn.Embedding(4, 6)

    def forward(self, x):
        return self.second(self.first(self.used_twice(self.used_twice(x))))


def test_reuse_and_tied_weights_are_counted_each_time():
    flops = count_flops(Shared(), torch.zeros(2, 6))
    assert flops.dense_per_layer == {"used_twice.weight": 144.0, "first.weight": 144.0}


def test_masks_scale_their_layers():
    model = Shared()
    quarter = torch.zeros(6, 6, dtype=torch.bool)
    quarter[:3, :3] = True
    flops = count_flops(model, torch.zeros(2, 6), {"used_twice.weight": quarter, "second.weight": ~quarter})
    assert flops.per_layer["used_twice.weight"].density == 0.25
    assert flops.per_layer["first.weight"].sparse == 0.75 * 144  # a tied weight by its other name
    assert (flops.dense, flops.sparse) == (288.0, 144.0)
    assert flops.uncounted == ()
    masks = {"embedding.weight": torch.ones(4, 6, dtype=torch.bool), "used_twice.weight": quarter}
    assert count_flops(model, torch.zeros(2, 6), masks).uncounted == ("embedding.weight",)


def test_parametrized_weights_have_their_modules_name():
    model = nn.Sequential(nn.Linear(4, 3))
    nn.utils.parametrizations.orthogonal(model[0])
    assert count_flops(model, torch.zeros(1, 4)).dense_per_layer == {"0.weight": 24.0}


def test_inputs_may_be_tuples_or_dicts():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, a, b):
            return self.layer(a) + self.layer(b)

    a, b = torch.zeros(5, 3), torch.zeros(5, 3)
    assert count_flops(Two(), (a, b)).dense == count_flops(Two(), {"a": a, "b": b}).dense == 24.0


class Eventful(nn.Module):
    """Changes whatever a forward pass can change."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.frozen_norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.dropout = nn.Dropout()
        self.head = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))
        self.fails = False

    def forward(self, x):
        x = self.frozen_norm(self.norm(self.conv(x)))
        self.calls += 1
        self.last = x.mean((0, 2, 3)) + torch.randn(4)
        if self.fails:
            raise RuntimeError("broken on purpose")
        return self.head(self.dropout(x).mean((2, 3)))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    torch.manual_seed(0)
    model = Eventful().train()
    model.frozen_norm.eval()
    model(torch.randn(4, 1, 5, 5)).sum().backward()
    model.fails = fails
    state = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: id(value) for name, value in model.named_buffers()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            count_flops(model, torch.zeros(1, 1, 5, 5))
    else:  # one image with one pixel left: BatchNorm would fail in training mode
        assert count_flops(model, torch.zeros(1, 1, 3, 3)).dense == 2 * (4 * 9 + 8)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: id(value) for name, value in model.named_buffers()} == buffers
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.get_rng_state().equal(generator)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_recorder_watches_a_real_training_step():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))
    images = torch.randn(5, 1, 8, 8)
    recorder = FlopsRecorder(model)
    model(images).sum().backward()
    recorder.close()
    recorder.close()
    model(images)  # not counted any more
    assert recorder.result(batch_size=5) == count_flops(model, images)
    assert recorder.per_layer == {
        name: 5 * flops for name, flops in count_flops(model, images).dense_per_layer.items()
    }
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="batch_size=0"):
        recorder.result(batch_size=0)


def test_bad_masks_and_inputs_are_named():
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"masks\['1.weight'\] belongs to no parameter; names are 0.weight"):
        count_flops(model, torch.zeros(1, 4), {"1.weight": torch.ones(3, 4)})
    with pytest.raises(ValueError, match=r"shape \(4, 3\), its parameter \(3, 4\)"):
        count_flops(model, torch.zeros(1, 4), {"0.weight": torch.ones(4, 3)})
    for nothing in ({}, [], torch.zeros(()), torch.zeros(0, 4)):
        with pytest.raises(ValueError, match="no tensor with a batch axis"):
            count_flops(model, nothing)


def test_batch_size_is_found_in_nested_batches():
    assert batch_size_of([{"id": torch.tensor(3), "image": torch.zeros(7, 2)}, torch.zeros(9)]) == 7


# ---------------------------------------------------------------------------------------------- training


def training_by_loop(dense, history, steps, growing):
    """Walk every step, and every layer in it."""
    total = 0.0
    for step in range(steps):
        densities = [entry for start, entry in history if start <= step][-1]
        for name, flops in dense.items():
            sparse = flops * densities.get(name, 1.0)
            total += 2 * sparse + (flops if step in growing else sparse)
    return total


def test_training_equals_a_loop_over_steps():
    rng = np.random.default_rng(0)
    dense = {"a": 30.0, "b": 500.0, "c": 70.0}
    history = [(start, {"a": rng.random(), "b": rng.random()}) for start in (0, 3, 4, 20, 41)]
    growing = {2, 3, 19, 40, 59}
    expected = training_by_loop(dense, history, 60, growing)
    result = training_flops(dense, history, 60, dense_gradient_steps=growing, batch_size=8)
    assert result == pytest.approx(8 * expected)


def test_the_papers_formulas():
    f_d, f_s, period = 1000.0, 100.0, 100
    steps = 50 * (period + 1)
    dense, sparse = {"w": f_d}, [(0, {"w": 0.1})]
    assert training_flops(dense, sparse, steps) == pytest.approx(3 * f_s * steps)  # static, SET
    rigl = training_flops(dense, sparse, steps, dense_gradient_steps=range(period, steps, period + 1))
    assert rigl / steps == pytest.approx((3 * f_s * period + 2 * f_s + f_d) / (period + 1))
    snfs = training_flops(dense, sparse, steps, dense_gradient_steps=range(steps))
    assert snfs / steps == pytest.approx(2 * f_s + f_d)
    densities = np.linspace(1.0, 0.1, 101)  # GMP
    history = [(50 * k, {"w": float(d)}) for k, d in enumerate(densities)]
    gmp = training_flops(dense, history, 5050)
    assert gmp / 5050 == pytest.approx(3 * f_d * densities.mean())
    granet = training_flops(dense, history, 5050, dense_gradient_steps=[50 * k - 1 for k in range(1, 101)])
    assert granet - gmp == pytest.approx(sum(f_d * (1 - d) for d in densities[:-1]))
    assert training_flops(dense, [(0, {})], 10) == 30 * f_d


@pytest.mark.parametrize(
    ("history", "growing", "match"),
    [
        ([], (), r"steps are \[\]"),
        ([(1, {})], (), r"steps are \[1\]"),
        ([(0, {}), (5, {}), (5, {})], (), r"steps are \[0, 5, 5\]"),
        ([(0, {}), (11, {})], (), r"steps=10; its steps are \[0, 11\]"),
        ([(0, {"module.w": 0.5})], (), r"no counted layer: \['module.w'\]"),
        ([(0, {})], (10,), r"0..9; they span 10..10"),
        ([(0, {})], (-1, 3), r"0..9; they span -1..3"),
    ],
)
def test_bad_histories_are_named(history, growing, match):
    with pytest.raises(ValueError, match=match):
        training_flops({"w": 1.0}, history, 10, dense_gradient_steps=growing)
