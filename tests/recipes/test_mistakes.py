"""Arguments of the recipes' own commands that can't be are named, before anything is computed."""

import pytest


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("sparse_training", ["compare", "--seeds=0"], "seeds=0 must be 1 or more"),
        ("sparse_training", ["export", "--ckpt_path=pyproject.toml"], "ckpt_path=pyproject.toml is no file"),
        ("pruning_plasticity", ["grid", "--epochs=0"], "epochs=0 must be 1 or more"),
        ("entropy_controller", ["compare", "--phases=0"], "phases=0 must be 1 or more"),
        ("federated_hopfield", ["compare", "--seeds=-1"], "seeds=-1 must be 1 or more"),
        ("hippocampus", ["compare", "--tests=0"], "tests=0 must be 1 or more"),
        (
            "hippocampus",
            ["fit", "--model.overrides={eta: 3}"],
            "overrides: eta=3 must be a mapping by weights",
        ),
        ("safe", ["ablation", "--orders=0"], "orders=0 must be 1 or more"),
        ("safe", ["ablation", "--runs=[nope]"], r"runs=\['nope'\]: there are SAFE, "),
        ("hopfield_theory", ["--neurons=1"], "neurons=1 must be 2 or more"),
        ("hopfield_streams", ["--only=[nope]"], r"only=\['nope'\]: the streams are disjoint supports, "),
        ("tour", ["--only=[nope]"], r"only=\['nope'\]: the stops are sparse_training"),
    ],
)
def test_each_is_named_in_one_line(recipe, name, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^{name}.py: error: {said}") as stopped:
        recipe(name, *arguments)
    assert "\n" not in stopped.value.code
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
