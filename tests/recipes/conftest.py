"""Recipes run as scripts, in this process."""

import runpy
import sys

import pytest
import yaml


@pytest.fixture
def recipe(repository, monkeypatch):
    """Run a recipe as ``python recipes/<name>.py <arguments>`` does."""

    def run(name, *arguments):
        path = repository / "recipes" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        monkeypatch.syspath_prepend(str(path.parent))  # as python does for a script
        return runpy.run_path(str(path), run_name="__main__")

    return run


@pytest.fixture
def logs_what_its_sweep_wants(repository, tmp_path):
    """Checks that the metric of a recipe's sweep is among the numbers that its run here has logged."""

    def check(name):
        sweep = yaml.safe_load((repository / "recipes" / "sweeps" / f"{name}.yaml").read_text())
        (metrics,) = tmp_path.glob(f"runs/{name}/version_0/metrics.csv")
        assert sweep["metric"]["name"] in metrics.read_text().splitlines()[0].split(",")

    return check
