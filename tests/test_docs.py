"""The site builds without a warning, and the examples of its own pages run."""

import subprocess
import sys

import pytest
import torch

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
    schedule, score, signal = python_blocks(repository / "docs" / "pages" / "write_your_own.md")
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
