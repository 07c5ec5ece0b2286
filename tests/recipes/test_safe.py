"""The recipe through its own command line: a fit and its report, the ablation, the published settings."""

import csv
import re

import pytest
import yaml

from lightning_plasticity.continual.settings import Losses, Optimization, Prediction
from lightning_plasticity.data import ClassIncrementalData
from lightning_plasticity.data.preparation import Preparation

pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
]
SMALL = ["--data.dataset=digits", "--data.sessions=[4,3,3]", "--data.image_size=24"]


@pytest.mark.slow
def test_fit(recipe, repository, capsys, tmp_path, logs_what_its_sweep_wants):
    """Small digits, few epochs, on the real backbone."""
    recipe("safe", "fit", "--trainer.enable_progress_bar=false", "--wandb=false", *SMALL,
        "--data.epochs_per_session=[1,1,1]", "--model.prediction={random_features: 300, views: 1}",
    )  # fmt: skip
    out = capsys.readouterr().out
    rows = re.findall(r"^after session (\d) +([\d. ]+)$", out, re.MULTILINE)
    assert [len(cells.split()) for _, cells in rows] == [1, 2, 3]
    finals = {
        name: float(value)
        for name, value in re.findall(r"^(slow|fast|aggregate) +([\d.]+)", out, re.MULTILINE)
    }
    assert set(finals) == {"slow", "fast", "aggregate"}
    assert finals["aggregate"] > 75
    assert "classes in order of appearance" in out
    table = (tmp_path / "runs/safe/version_0/tables/sessions.csv").read_text().splitlines()
    assert len(table) == 7, table
    figures = {path.stem for path in tmp_path.glob("runs/safe/version_0/figures/*.png")}
    assert figures == {"accuracy", "matrix", "fast_weight"}
    assert (tmp_path / "runs/safe/version_0/config.yaml").exists()
    logs_what_its_sweep_wants("safe")


@pytest.mark.slow
def test_ablation(recipe, repository, capsys, tmp_path):
    """Two runs, of which one goes on from the other's first session; a variant's row each."""
    recipe("safe", "ablation", "--orders=1", "--runs=[SAFE,not aligned,frozen]",
        "--dataset=digits", "--sessions=[6,4]", "--epochs=[1,1]", "--image_size=16",
        "--prediction.random_features=200", "--output=compared",
    )  # fmt: skip
    with (tmp_path / "compared" / "results.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert {
        "SAFE",
        "slow only",
        "naive sequential",
        "no alignment",
        "frozen + ridge",
        "nearest class mean",
    } <= set(rows)
    first = [float(rows[name]["curve"].split()[0]) for name in ("SAFE", "slow only", "naive sequential")]
    assert first[0] == first[1] == first[2]  # one learner after session 1
    assert float(rows["frozen + ridge"]["final_micro"]) > float(rows["nearest class mean"]["final_micro"])
    assert "| SAFE |" in capsys.readouterr().out
    assert (tmp_path / "compared" / "ablation.png").exists()


def test_the_published_settings_are_settings(repository):
    files = sorted((repository / "recipes" / "paper").glob("safe_*.yaml"))
    names = {file.stem.removeprefix("safe_") for file in files}
    assert names == {"cifar100", "imagenet_r", "imagenet_a", "cub200", "omnibenchmark", "vtab", "domainnet"}
    for file in files:
        given = yaml.safe_load(file.read_text())
        Losses.of(given["model"]["losses"])
        Optimization.of(given["model"]["optimization"])
        Prediction.of(given["model"]["prediction"])
        data = given["data"]
        assert len(data["epochs_per_session"]) == data["sessions"]
        Preparation(**data["preparation"])
        if data["dataset"] == "cifar100":
            plan = ClassIncrementalData(**(data | {"preparation": Preparation(**data["preparation"])}))
            assert [len(classes) for classes in plan.session_classes] == [10] * 10
