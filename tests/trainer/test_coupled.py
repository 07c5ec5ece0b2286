"""Filters that go together: coupled masks make a residual net shrink through and through."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_plasticity.callbacks import GraNet, RigL, SparseTraining
from lightning_plasticity.models.convnets import resnet20
from lightning_plasticity.sparsity import filter_groups, shrink


class Residual(LightningModule):
    def __init__(self, example=True):
        super().__init__()
        torch.manual_seed(0)
        self.net = resnet20(4, 3)
        self.example_input_array = torch.zeros(2, 3, 8, 8) if example else None

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def fit(callback, module=None, steps=12):
    images = torch.randn(16 * steps, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data = DataLoader(TensorDataset(images, images.mean((1, 2, 3)).gt(0).long()), 16)
    module = module or Residual()
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return module


@pytest.mark.parametrize("preset", [GraNet, RigL])
def test_coupled_filters_share_one_mask_and_shrink_to_it(preset):
    callback = preset(0.5, update_every=3, granularity="filter", coupled=True)
    module = fit(callback)
    masks = callback.masks
    groups = [g for g in filter_groups(module, module.example_input_array) if g[0] in masks]
    assert max(len(group) for group in groups) > 3, "the residual stream couples several convolutions"
    for group in groups:
        first = masks[group[0]].flatten(1).any(1)
        assert 0 < int(first.sum()) <= len(first) // 2 + 1
        for name in group[1:]:
            assert torch.equal(masks[name].flatten(1).any(1), first), name
    images = torch.randn(4, 3, 8, 8)
    small = shrink(module.net, images, {name.removeprefix("net."): mask for name, mask in masks.items()})
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(small(images), module(images), atol=1e-5, rtol=1e-5)
    before, after = (sum(p.numel() for p in net.parameters()) for net in (module.net, small))
    assert after < 0.35 * before


def test_scores_are_summed_over_the_group():
    """A filter is kept for what it weighs in all layers together, though it is the least in one of them."""
    module = Residual()
    groups = [g for g in filter_groups(module, module.example_input_array) if len(g) > 1]
    callback = SparseTraining(
        0.5, granularity="filter", initial="magnitude", distribution="uniform", coupled=groups
    )
    fit(callback, module, steps=1)
    fresh = Residual()
    weights = dict(fresh.named_parameters())
    for group in groups:
        total = sum(weights[name].detach().abs().flatten(1).sum(1) for name in group)
        kept = callback.masks[group[0]].flatten(1).any(1)
        assert total[kept].min() >= total[~kept].max()


def test_errors_name_the_way_out():
    with pytest.raises(ValueError, match="granularity='filter'"):
        GraNet(0.5, coupled=True)
    with pytest.raises(MisconfigurationException, match="example_input_array"):
        fit(GraNet(0.5, granularity="filter", coupled=True), Residual(example=False))
