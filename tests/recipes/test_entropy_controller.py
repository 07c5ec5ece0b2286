"""The drifting stream through its own command line: one run, and the comparison."""

import csv
import re

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),  # Lightning's own
]
QUICK = ["--trainer.enable_progress_bar=false", "--wandb=false"]


def test_fit_measures_both_conditions_and_draws_them(recipe, tmp_path, capsys, logs_what_its_sweep_wants):
    recipe("entropy_controller", "fit", *QUICK, "--data.phases=2", "--data.steps_per_phase=50")
    said = re.search(r"present condition ([.\d]+), other condition ([.\d]+)", capsys.readouterr().out)
    now, other = (float(value) for value in said.groups())
    assert now > 0.7
    assert other < now
    (run,) = (tmp_path / "runs" / "entropy_controller").iterdir()
    assert {path.stem for path in (run / "figures").iterdir()} == {"plasticity", "stream"}
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"plasticity/entropy", "plasticity/w", "stream/present", "stream/other"} <= set(header)
    logs_what_its_sweep_wants("entropy_controller")


def test_compare_writes_table_figure_and_csv(recipe, tmp_path, capsys):
    few = ["--seeds=1", "--phases=2", "--steps_per_phase=25", "--kind=contrast", "--output=out"]
    recipe("entropy_controller", "compare", *few)
    with (tmp_path / "out" / "contrast.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["method"] for row in rows}) == len(rows) == 7
    assert "| agreement, consolidation |" in (tmp_path / "out" / "contrast.md").read_text()
    assert (tmp_path / "out" / "contrast.png").exists()
    assert "Written to out" in capsys.readouterr().out
