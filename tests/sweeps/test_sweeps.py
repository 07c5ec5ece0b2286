"""Sweep configurations: parsed for every recipe, and one run by the real `wandb sweep` and `wandb agent`."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.sweeps.server import ENTITY, PROJECT, SWEEP, serving

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "recipes" / "sweeps").glob("*.yaml"))
RECIPES = sorted(
    path.stem for path in (ROOT / "recipes").glob("*.py") if "import PlasticityCLI" in path.read_text()
)


def test_every_recipe_has_a_sweep():
    assert [path.stem for path in SWEEPS] == RECIPES


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_configuration_fits_the_command_line(path):
    """Flat dotted keys; `fit`, the recipe's own YAML and then the arguments, as LightningCLI wants them."""
    config = yaml.safe_load(path.read_text())
    assert config["program"] == f"recipes/{path.stem}.py"
    command = config["command"]
    assert command[:4] == ["${env}", "${interpreter}", "${program}", "fit"]
    assert command[4:6] == ["--config", f"recipes/{path.stem}.yaml"]
    assert command[-1] == "${args}", "booleans arrive as =True and =False, which jsonargparse takes"
    for name, parameter in config["parameters"].items():
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", name), name
        assert parameter.keys() & {"value", "values", "distribution"}, name
    assert re.fullmatch(r"[a-z_]+/[a-z0-9_./]+", config["metric"]["name"])
    assert config["metric"]["goal"] in ("minimize", "maximize")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_recipe_understands_every_parameter(path, monkeypatch, capsys):
    """As the agent gives them, `--name=value`; the recipe prints its configuration and does nothing."""
    config = yaml.safe_load(path.read_text())
    chosen = {
        name: parameter.get("value", [*parameter.get("values", [parameter.get("min")])][-1])
        for name, parameter in config["parameters"].items()
    }
    script = ROOT / config["program"]
    given = [f"--{name}={value}" for name, value in chosen.items()]
    monkeypatch.setattr(
        sys,
        "argv",
        [str(script), "fit", "--config", str(ROOT / config["command"][5]), *given, "--print_config"],
    )
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(script), run_name="__main__")
    assert done.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    for name, value in chosen.items():
        at = printed
        for key in name.split("."):
            at = at[-1] if isinstance(at, list) else at
            at = at["init_args"] if key not in at else at
            at = at[key]
        assert at == value, name


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.timeout(560)
def test_the_real_agent_runs_two_trials(tmp_path):
    """One trial succeeds and one fails; both leave a folder, an offline record and their arguments."""
    good = {"trainer.callbacks.sparsity": 0.8, "model.lr": 0.05, "model.nesterov": False}
    bad = {"trainer.callbacks.sparsity": 0.8, "model.lr": -1.0, "model.nesterov": True}
    short = {"trainer.max_epochs": 1, "trainer.default_root_dir": str(tmp_path / "runs")}
    with serving({"trialgood": good | short, "trialbad0": bad | short}) as server:
        environment = os.environ | {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_PROJECT": PROJECT,
            "WANDB_ENTITY": ENTITY,
            "WANDB_DIR": str(tmp_path),
            "HOME": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        wandb = [sys.executable, "-m", "wandb"]
        run_wandb([*wandb, "sweep", str(ROOT / "recipes/sweeps/sparse_training.yaml")], environment)
        agent = [*wandb, "agent", "--count", "2", f"{ENTITY}/{PROJECT}/{SWEEP}"]
        said = run_wandb(agent, environment | {"WANDB_MODE": "offline"})
        assert server.seen == {"trialgood", "trialbad0"}
    assert server.operations[0] == "Viewer"
    assert {"UpsertSweep", "SweepWithRuns", "CreateAgent", "Heartbeat"} <= set(server.operations)
    for name, value in good.items():
        assert f"--{name}={value}" in said, "the agent prints the command of each trial"
    assert "must be" in said or "lr=-1.0" in said, "a trial that fails says why"
    assert_recorded(tmp_path)


def run_wandb(command, environment):
    """What a wandb command printed; it must end well, as the agent does even when a trial fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def assert_recorded(folder):
    """The good trial's metric is in its folder and in W&B's offline record; the bad one got nowhere."""
    runs = folder / "runs" / "runs" / "sparse_training"
    if not runs.exists():
        runs = next(folder.glob("**/sparse_training"))
    assert (runs / "trialgood" / "metrics.csv").read_text().splitlines()[0].count("val/accuracy") == 1
    config = yaml.safe_load((runs / "trialgood" / "config.yaml").read_text())
    assert config["model"]["lr"] == 0.05
    assert config["model"]["nesterov"] is False
    record = next(folder.glob("**/offline-run-*-trialgood/run-trialgood.wandb")).read_bytes()
    assert b"val/accuracy" in record
    assert b"sparsity/density" in record
    assert not (runs / "trialbad0" / "checkpoints").exists()
    assert json.dumps(config["trainer"]["max_epochs"]) == "1"
