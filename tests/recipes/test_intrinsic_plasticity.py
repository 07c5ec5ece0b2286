"""The recipe through its own command line, on real digits and on artificial stimuli."""

import re

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),  # Lightning's own
]
QUICK = ["fit", "--trainer.enable_progress_bar=false", "--wandb=false"]


def accuracies(text, method):
    """Accuracy at each contrast, in percent."""
    line = re.search(rf"{method}((?: +[\d.]+)+)$", text, re.MULTILINE)
    return [float(value) for value in line[1].split()]


def test_digits(recipe, repository, capsys, tmp_path, logs_what_its_sweep_wants):
    recipe("intrinsic_plasticity", *QUICK, "--trainer.max_epochs=8", "--model.warmup_epochs=3")
    out = capsys.readouterr().out
    learned, flat = (accuracies(out, name) for name in ("intrinsic plasticity", "normalising mixture"))
    assert len(learned) == len(flat) == 7
    at_training_contrast = 3
    assert learned[at_training_contrast] > 50
    assert learned[at_training_contrast] > flat[at_training_contrast]
    rows = re.findall(r"^ +(\d) +(\d+) +(\d+) +10\.0 +[\d.]+$", out, re.MULTILINE)
    truth, found = ([float(row[column]) for row in rows] for column in (1, 2))
    assert len(rows) >= 8
    assert max(truth) / min(truth) > 5
    assert sum(0.5 < f / t < 2 for f, t in zip(found, truth, strict=True)) >= len(rows) - 2
    table = (tmp_path / "runs/intrinsic_plasticity/version_0/tables/classes.csv").read_text().splitlines()
    assert table[0] == "class,mean,shape,prior"
    assert len(table) == 41
    figures = {path.stem for path in tmp_path.glob("runs/intrinsic_plasticity/version_0/figures/*.png")}
    assert figures == {"weights", "intensities", "intensities_over_time", "weights_over_time", "contrast"}
    logs_what_its_sweep_wants("intrinsic_plasticity")


def test_bumps_are_told_apart_by_intensity_alone(recipe, repository, capsys):
    bumps = ["--data.kind=bumps", "--model.num_classes=8", "--trainer.max_epochs=8", "--model.rule=em"]
    recipe("intrinsic_plasticity", *QUICK, *bumps)
    out = capsys.readouterr().out
    assert accuracies(out, "intrinsic plasticity")[3] > 80
    assert accuracies(out, "normalising mixture")[3] < 60
