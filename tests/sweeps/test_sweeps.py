"""Sweep configurations: parsed for every recipe, and one run by the real `wandb sweep` and `wandb agent`."""

import os
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


def test_classes_can_be_swept_over(monkeypatch, capsys):
    """A `class_path` parameter arrives as any other, and takes its own arguments after it."""
    script = ROOT / "recipes" / "hippocampus.py"
    given = ["--data.class_path=lightning_plasticity.data.LatentData", "--data.init_args.minutes=3.0"]
    given += ["--model.preset=latents", "--print_config"]
    monkeypatch.setattr(sys, "argv", [str(script), "fit", *given])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(script), run_name="__main__")
    assert done.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)["data"]
    assert printed["class_path"] == "lightning_plasticity.data.LatentData"
    assert printed["init_args"]["minutes"] == 3.0


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.timeout(580)
def test_real_agents_side_by_side(tmp_path):
    """One trial succeeds, one fails, one is given up; folders, offline records and arguments are there."""
    good = {
        "trainer.callbacks.sparsity": 0.8,
        "model.lr": 0.05,
        "model.nesterov": False,
        "trainer.max_epochs": 1,
    }
    bad = good | {"model.lr": -1.0, "model.nesterov": True}
    endless = good | {"trainer.max_epochs": 10_000, "trainer.log_every_n_steps": 1}
    runs = tmp_path / "runs"
    trials = {"trialgood": good, "trialbad0": bad, "triallong": endless}
    trials = {run: given | {"trainer.default_root_dir": str(runs)} for run, given in trials.items()}
    metrics = runs / "sparse_training" / "triallong" / "metrics.csv"
    with serving(trials, {"triallong": lambda: metrics.exists() and metrics.stat().st_size > 0}) as server:
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
        agents = [[*wandb, "agent", "--count", count, f"{ENTITY}/{PROJECT}/{SWEEP}"] for count in ("2", "1")]
        with ThreadPoolExecutor() as pool:
            offline = environment | {"WANDB_MODE": "offline"}
            said = "".join(pool.map(lambda agent: run_wandb(agent, offline), agents))
        assert server.seen == set(trials)
        assert server.together == 2
    assert server.operations[0] == "Viewer"
    assert {"UpsertSweep", "SweepWithRuns", "CreateAgent", "Heartbeat"} <= set(server.operations)
    for name, value in good.items():
        assert f"--{name}={value}" in said, "the agent prints the command of each trial"
    assert "lr=-1.0 must be" in said, "a trial that fails says why"
    assert "To resume: python" in said, "a trial that is given up says how to go on"
    assert_recorded(tmp_path, runs / "sparse_training")


def run_wandb(command, environment):
    """What a wandb command printed; it must end well, as the agent does even when a trial fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def assert_recorded(folder, runs):
    """Metrics in the trials' folders and W&B's offline records; a checkpoint also of the one given up."""
    assert (runs / "trialgood" / "metrics.csv").read_text().splitlines()[0].count("val/accuracy") == 1
    config = yaml.safe_load((runs / "trialgood" / "config.yaml").read_text())
    assert config["model"]["lr"] == 0.05
    assert config["model"]["nesterov"] is False
    record = next(folder.glob("**/offline-run-*-trialgood/run-trialgood.wandb")).read_bytes()
    for said in (
        b"val/accuracy",
        b"sparsity/density",
        b"figures/density_per_layer",
        b"tables/sparsity",
        b"nesterov",
    ):
        assert said in record
    assert not (runs / "trialbad0" / "checkpoints").exists()
    assert (runs / "triallong" / "checkpoints" / "last.ckpt").exists()
    assert len(list(folder.glob("**/offline-run-*-triallong/run-triallong.wandb"))) == 1
