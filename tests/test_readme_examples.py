"""The Python examples of the READMEs run as they are written."""

import re

import pytest
import torch
from torch import nn


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def test_engine_example(repository):
    first, *_ = python_blocks(repository / "lightning_plasticity" / "sparsity" / "README.md")
    scope: dict = {}
    exec(first, scope)
    net, optimizer, sparsifier = (scope[name] for name in ("net", "optimizer", "sparsifier"))
    for _ in range(200):
        nn.functional.cross_entropy(net(torch.randn(8, 64)), torch.randint(10, (8,))).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert 0.8 < sparsifier.density < 1.0
    assert sparsifier.updates == 2


def test_trainer_example(repository, tmp_path):
    from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

    first, *_ = python_blocks(repository / "README.md")
    scope: dict = {"your_module": BoringModel(), "your_data": BoringDataModule()}
    text = first.replace("max_epochs=160", "max_epochs=1, accelerator='cpu', enable_progress_bar=False")
    text = text.replace("GraNet(sparsity=0.9)", "GraNet(sparsity=0.9, update_every=8)")
    exec(text, scope)
    trainer = scope["trainer"]
    assert trainer.callback_metrics["sparsity/density"] == pytest.approx(0.1, abs=0.01)
