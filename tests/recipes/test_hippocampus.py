"""The recipe through its own command line, with each of its configurations."""

import re

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),  # Lightning's own
]


@pytest.fixture
def run(recipe, repository, capsys):
    """Runs the recipe; what it prints."""
    recipes = repository / "recipes"

    def run(command, *arguments):
        recipe("hippocampus", command, *arguments)
        return capsys.readouterr().out

    def fit(*arguments):
        configs = [f"--config={recipes / name}" for name in arguments if name.endswith(".yaml")]
        others = [name for name in arguments if not name.endswith(".yaml")]
        return run("fit", *configs, "--trainer.enable_progress_bar=false", "--wandb=false", *others)

    run.fit = fit
    return run


def dark_errors(text, row="without noise"):
    """Mean error at each time of a row of the table."""
    line = re.search(rf"^{row} +(.*?)   (?:never|[\d.]+ s)", text, re.MULTILINE)
    return [float(number) for number in re.findall(r"([\d.]+) ±", line[1])]


def drawn(tmp_path):
    return {path.stem for path in tmp_path.glob("runs/hippocampus/version_0/figures/*.png")}


@pytest.mark.slow
def test_tracks_in_the_dark(run, tmp_path, logs_what_its_sweep_wants):
    """Twenty minutes instead of an hour."""
    out = run.fit("--data.minutes=20")
    table = (tmp_path / "runs/hippocampus/version_0/tables/dark_error.csv").read_text().splitlines()
    assert table[0].split(",") == ["minutes", *(f"after_{time}_s" for time in (1, 2, 5, 10, 20))]
    assert [float(row.split(",")[0]) for row in table[1:]] == [10.0, 20.0]
    errors = dark_errors(out)
    assert len(errors) == 7
    assert errors[0] < 0.03
    assert errors[3] < 0.08
    assert re.search(r"ring: antisymmetry +0\.9", out)
    assert drawn(tmp_path) == {
        "bump_speed", "dark_error", "prediction_error", "rate_maps", "rates", "ring", "tracking"
    }  # fmt: skip
    logs_what_its_sweep_wants("hippocampus")


def test_latents(run, tmp_path):
    out = run.fit("hippocampus_latents.yaml", "--data.minutes=10")
    explained = re.search(r"R2 of the features from MEC, awake +([\d.]+)", out)
    assert float(explained[1]) > 0.9
    assert drawn(tmp_path) == {"prediction_error", "rates", "wake_and_sleep"}


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("config", ["hippocampus_remap.yaml", "paper/hippocampus_remap.yaml"])
def test_transfer(run, config, tmp_path, repository):
    """Two minutes on each track instead of half an hour or more."""
    text = (repository / "recipes" / config).read_text()
    short, changed = re.subn(r"at_minutes: \d+", "at_minutes: 2", text)
    assert changed == 1
    (tmp_path / "short.yaml").write_text(short)
    out = run.fit(str(tmp_path / "short.yaml"), "--data.minutes=4")
    assert "above 0.1 m after" in out
    transfer = out.split("new environment\n")[1]
    errors = dict(re.findall(r"^(before|just after|after) +([\d.]+) m$", transfer, re.MULTILINE))
    assert set(errors) == {"before", "just after", "after"}
    assert float(errors["just after"]) > 0.1
    assert re.search(r"within 20 % of before in [01] of 1 models", transfer)


@pytest.mark.usefixtures("quickly")
def test_the_paper_and_the_rat(run):
    for arguments in (
        ["paper/hippocampus_track.yaml", "--data.minutes=1"],
        ["--data.source=sargolini", "--data.minutes=1"],
    ):
        assert len(dark_errors(run.fit(*arguments, "--model.models=2"), "with noise")) == 7


@pytest.fixture
def quickly(monkeypatch):
    """Short decoders and darkness, where only the way through matters."""
    from functools import partial

    from lightning_plasticity.hippocampus import analysis

    monkeypatch.setattr(analysis, "fit_decoder", partial(analysis.fit_decoder, minutes=0.2))


@pytest.mark.usefixtures("quickly")
def test_compare(run, tmp_path, monkeypatch, repository):
    """Every row, for a minute instead of an hour."""
    monkeypatch.syspath_prepend(str(repository / "recipes"))
    import hippocampus_compare

    for rows in hippocampus_compare.GROUPS.values():
        for row in rows.values():
            monkeypatch.setattr(row, "minutes", 0.5)
    out = run("compare", "--seeds=2", "--what=baselines", "--seconds=1", "--tests=2", "--output=out")
    assert "ring set by hand" in out
    lines = (tmp_path / "out" / "baselines.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(hippocampus_compare.BASELINES)
    assert lines[0].startswith("method,seed,dark_error_1s,prediction_error_hpc")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data.minutes=0.01"], "minutes=0.01 must be whole chunks"),
        (["--model.preset=track", "--model.overrides={'thresholds': 1}"], "no such setting"),
        (
            ["--data.chunk_seconds=0.1", "--data.minutes=1", "--trainer.max_steps=1"],
            "no whole number of theta cycles",
        ),
    ],
)
def test_mistakes_end_in_one_line(run, arguments, text):
    with pytest.raises((SystemExit, ValueError), match=text):
        run.fit(*arguments)
