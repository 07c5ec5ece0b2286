"""The tour: every stop is a command that its recipe takes, and the page shows what came of it."""

import shlex

import pytest
import yaml

STOPS = ("federated_hopfield", "hippocampus", "intrinsic_plasticity", "safe", "sparse_training")


def test_the_tour_stops_at_every_system(repository):
    assert sorted(yaml.safe_load((repository / "recipes" / "tour.yaml").read_text())["stops"]) == sorted(
        STOPS
    )


@pytest.mark.parametrize("name", STOPS)
def test_every_stop_is_understood(name, repository, recipe, capsys):
    stop = yaml.safe_load((repository / "recipes" / "tour.yaml").read_text())["stops"][name]
    script, *arguments = shlex.split(stop["command"])
    with pytest.raises(SystemExit) as done:
        recipe(script.removesuffix(".py"), *arguments, "--wandb=false", "--print_config")
    assert done.value.code in (0, None)
    assert "trainer:" in capsys.readouterr().out


@pytest.mark.slow
def test_a_page_of_what_went_well_and_what_did_not(recipe, tmp_path, capsys):
    stops = {
        "good": {
            "title": "Memory", "text": "found", "figures": ["spectrum"],
            "command": "federated_hopfield.py fit --trainer.max_epochs=2",
        },
        "bad": {
            "title": "Wrong", "text": "x", "figures": ["spectrum"],
            "command": "federated_hopfield.py fit --no_such_option=1",
        },
    }  # fmt: skip
    (tmp_path / "stops.yaml").write_text(yaml.safe_dump({"stops": stops}, sort_keys=False))
    with pytest.raises(SystemExit, match="bad did not end well"):
        recipe("tour", "--config=stops.yaml", "--output=out")
    page = (tmp_path / "out" / "overview.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "archetypes" in page
    assert "no_such_option" in page
    assert "it/s" not in page
    said = capsys.readouterr().out
    assert "[1/2] Memory: python recipes/federated_hopfield.py fit" in said
    assert "no_such_option" in said


def test_an_unknown_stop_names_the_stops(recipe):
    with pytest.raises(SystemExit, match="hippocampus"):
        recipe("tour", "--only=[hipocampus]")
