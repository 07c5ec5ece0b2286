"""Plain dense weights with zeros: no trace of masks, hooks or gradients of ours."""

import torch
from torch import nn

from lightning_plasticity.sparsity.export import baking
from lightning_plasticity.sparsity.export.baking import bake


def test_bake_leaves_plain_weights_and_only_the_users_hooks():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model(torch.ones(1, 4)).sum().backward()

    def ours(*_):
        return None

    ours.__module__ = baking.__name__
    model[0].register_forward_hook(ours)
    model[0].register_forward_pre_hook(ours)
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    mask = torch.tensor([[True, False, True, True]] * 3)
    with torch.no_grad():
        model[0].weight[0, 1] = torch.nan
    baked = bake(model, {"0.weight": mask})
    assert torch.equal(baked[0].weight != 0, mask)
    assert torch.equal(baked[0].weight[mask], model[0].weight[mask])
    assert not baked[0]._forward_hooks
    assert not baked[0]._forward_pre_hooks
    baked(torch.ones(1, 4))
    assert len(calls) == 1
    assert all(p.grad is None for p in baked.parameters())
    assert model[0].weight.grad is not None
    assert model[0]._forward_hooks
    assert type(baked) is nn.Sequential
    assert baked.state_dict().keys() == model.state_dict().keys()
