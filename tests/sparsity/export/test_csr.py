"""Very sparse linear layers as compressed rows."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_plasticity.sparsity.export.csr import CSRLinear, to_csr
from tests.sparsity.export.nets import images, masked


@pytest.mark.parametrize("shape", [(1,), (5,), (32,), (2, 3), (4, 8), ()])
@pytest.mark.parametrize("bias", [True, False])
def test_csr_layer_equals_the_dense_one(shape, bias):
    linear = nn.Linear(40, 30, bias=bias)
    mask = torch.rand(30, 40, generator=torch.Generator().manual_seed(0)) < 0.1
    mask[3] = False  # a row without weights
    mask[4] = True
    with torch.no_grad():
        linear.weight[5, :] = 0.0  # active weights that are zero stay
    x = images(*shape, 40)
    layer = CSRLinear.from_linear(linear, mask)
    expected = (x.double().numpy() @ (linear.weight.detach() * mask).double().numpy().T).astype(np.float32)
    expected = expected + (linear.bias.detach().numpy() if bias else 0.0)
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-5, atol=1e-5)
    assert layer.values.numel() == int(mask.sum())
    fresh = CSRLinear.from_linear(nn.Linear(40, 30, bias=bias), mask)
    fresh(x)  # makes the kept weight, which has to follow the buffers
    fresh.load_state_dict(layer.state_dict(), assign=True)
    torch.testing.assert_close(fresh(x), layer(x), rtol=0, atol=0)
    torch.testing.assert_close(
        copy.deepcopy(layer).double()(x.double()).float(), layer(x), rtol=1e-5, atol=1e-5
    )


def test_to_csr_takes_large_sparse_layers_only():
    model = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))
    generator = torch.Generator().manual_seed(0)
    densities = {"0.weight": 0.05, "2.weight": 0.5, "4.weight": 0.05}
    masks = {
        name: torch.rand(model.get_parameter(name).shape, generator=generator) < density
        for name, density in densities.items()
    }
    fast = to_csr(model, masks, min_weights=1000)
    assert [type(layer) for layer in fast] == [CSRLinear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert not fast.training
    x = images(6, 50)
    torch.testing.assert_close(fast(x), masked(model, masks)(x), rtol=1e-5, atol=1e-5)
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match="no linear layer inside the model"):
        to_csr(model, masks)
    with pytest.raises(ValueError, match="max_density=0"):
        to_csr(model, masks, max_density=0.0)
    with pytest.raises(ValueError, match=r"layer '0' is torch.bfloat16.*model.float\(\)"):
        to_csr(copy.deepcopy(model).bfloat16(), masks, min_weights=1000)
