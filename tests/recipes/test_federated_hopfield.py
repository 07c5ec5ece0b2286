"""The recipe through its own command line, on real digits and on random archetypes."""

import re

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),  # Lightning's own
]
QUICK = ["fit", "--trainer.enable_progress_bar=false", "--wandb=false"]


def number(text, pattern):
    """The first number that a pattern finds."""
    return float(re.search(pattern, text)[1])


def clients(text):
    """The last table: client -> (examples, quality, plasticity, dropped, what it does)."""
    rows = re.findall(r"^ +(\d+) +(\d+) +([\d.]+) +([\d.]+|nan) +(\d+) *(\w*)$", text, re.MULTILINE)
    return {int(row[0]): row[1:] for row in rows}


def test_digits_are_found_kept_and_completed(recipe, repository, capsys, tmp_path, logs_what_its_sweep_wants):
    recipe("federated_hopfield", *QUICK, "--trainer.max_epochs=18")
    out = capsys.readouterr().out
    assert "10 archetypes found, not told; true: 10; spurious: 0" in out
    assert number(out, r"worst ([\d.]+)\n") >= 0.98
    assert number(out, r"retrieval +([\d.]+) %") >= 97
    assert number(out, r"forgetting +worst ([\d.]+)") <= 0.02
    latencies = dict(re.findall(r"(\d): (\d+|inf)", re.search(r"until known(.*)", out)[1]))
    assert max(int(latencies[new]) for new in "789") <= 6
    table = clients(out)
    assert len(table) == 7
    assert all(float(table[c][2]) > 0.05 for c in range(6))
    assert table[6][2] == "0.000"
    assert table[6][4] == "noise"
    table = (tmp_path / "runs/federated_hopfield/version_0/tables/archetypes.csv").read_text().splitlines()
    assert len(table) == 11, table
    figures = {path.stem for path in tmp_path.glob("runs/federated_hopfield/version_0/figures/*.png")}
    assert figures == {"spectrum", "archetypes", "magnetisation", "plasticity"}
    logs_what_its_sweep_wants("federated_hopfield")


def test_synthetic_archetypes_of_which_nobody_sees_all(recipe, repository, capsys):
    synthetic = repository / "recipes" / "federated_hopfield_synthetic.yaml"
    recipe(
        "federated_hopfield", *QUICK, f"--config={synthetic}", "--trainer.max_epochs=5", "--seed_everything=3"
    )
    out = capsys.readouterr().out
    assert "20 archetypes found, not told; true: 20; spurious: 0" in out
    table = clients(out)
    assert table[5][3] == "5", "the client that sends NaN is dropped in every round"
    assert table[5][4] == "nan"
