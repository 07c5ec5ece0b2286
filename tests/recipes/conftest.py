"""Recipes run as scripts, in this process."""

import runpy
import sys

import pytest


@pytest.fixture
def recipe(repository, monkeypatch):
    """Run a recipe as ``python recipes/<name>.py <arguments>`` does."""

    def run(name, *arguments):
        path = repository / "recipes" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        monkeypatch.syspath_prepend(str(path.parent))  # as python does for a script
        return runpy.run_path(str(path), run_name="__main__")

    return run
