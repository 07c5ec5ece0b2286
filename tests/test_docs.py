"""The site builds without a warning, and the examples of its own pages run."""

import subprocess
import sys
from contextlib import ExitStack
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from peft import mapping

from lightning_plasticity.continual.adapters import AdapterPair, make_config
from tests.continual.adapters.nets import images, small_vit, train
from tests.test_readme_examples import python_blocks
from tests.trainer.modules import ConvNet, adamw, loader, make_trainer


@pytest.mark.slow
def test_the_site_builds(repository, tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", "docs/mkdocs.yml"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "site")], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index", "systems/sparsity/index", "reference/hopfield/index", "write_your_own/index"):
        assert (tmp_path / "site" / f"{page}.html").exists()
    assert "EntropyController" in (tmp_path / "site/reference/callbacks/index.html").read_text()


def test_the_example_of_add_it_to_your_trainer(repository):
    (text,) = python_blocks(repository / "docs" / "pages" / "add_to_your_trainer.md")
    scope: dict = {}
    exec(text, scope)
    sparse, figures, checkpoint = scope["callbacks"][:3]  # its Trainer appends progress bars to the list
    trainer = make_trainer(
        [sparse, figures, checkpoint], max_steps=400, max_epochs=-1, enable_checkpointing=True
    )
    trainer.fit(ConvNet(adamw), loader())
    assert sparse.density == pytest.approx(0.1, abs=0.01)


def test_examples_of_write_your_own(repository):
    schedule, score, _, signal = python_blocks(repository / "docs" / "pages" / "write_your_own.md")
    for text, density in ((schedule, 0.1), (score, 0.2)):
        scope: dict = {}
        exec(text, scope)
        callback = scope["callback"]
        make_trainer([callback], max_steps=40, max_epochs=-1).fit(ConvNet(adamw), loader())
        assert callback.density == pytest.approx(density, abs=0.01)
    scope = {}
    exec(signal, scope)
    torch.manual_seed(0)
    net, controller = scope["Net"](), scope["controller"]
    make_trainer([controller], max_steps=60, max_epochs=-1).fit(net, loader())
    assert controller.entropy < 0.5, "most samples are right by now"
    assert controller.w < 0.6


@pytest.fixture
def _tables_of_peft():
    with ExitStack() as stack:
        for what in ("CONFIG", "TUNER", "PREFIX"):
            stack.enter_context(patch.dict(getattr(mapping, f"PEFT_TYPE_TO_{what}_MAPPING")))
        yield


@pytest.mark.usefixtures("_tables_of_peft")
def test_the_tuner_of_write_your_own(repository, tmp_path, monkeypatch):
    text = python_blocks(repository / "docs" / "pages" / "write_your_own.md")[2]
    module = ModuleType("their_tuner")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(text, module.__dict__)
    pair = AdapterPair(small_vit(), module.peft_config)
    names = [name for name, _ in pair.adapter_parameters()]
    assert len(names) == 4, "two blocks with fc1 and fc2"
    assert all("gate_factor" in name for name in names)
    same = pair.features(images(), "pretrained")
    torch.testing.assert_close(pair.features(images()).detach(), same, rtol=0, atol=0)
    train(pair)
    assert (pair.features(images()) - same).abs().max() > 1e-3
    for learner in ("slow", "pretrained"):
        torch.testing.assert_close(pair.features(images(), learner), same, rtol=0, atol=0)
    pair.save_pretrained(tmp_path)
    again = AdapterPair.from_pretrained(small_vit(), tmp_path)
    torch.testing.assert_close(again.features(images()), pair.features(images()), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"GateConfig: start=0 must be positive"):
        make_config({"method": "gate", "start": 0}, small_vit())
