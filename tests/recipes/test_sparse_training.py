"""The sparse-training recipes, through their own command lines on data that packages ship."""

import csv
import json

import pytest

QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--wandb=false"]


def test_fit_ends_sparse_with_summary_and_figures(
    recipe, tmp_path, capsys, caplog, logs_what_its_sweep_wants
):
    with caplog.at_level("INFO"):
        recipe("sparse_training", "fit", "--trainer.max_epochs=2", "--data.dataset=digits", *QUICK)
    text = capsys.readouterr().out + caplog.text
    assert "density 0.1000" in text
    assert "FLOPs: forward" in text
    assert "grown" in text
    (run,) = (tmp_path / "runs" / "sparse_training").iterdir()
    figures = sorted(path.name for path in (run / "figures").iterdir())
    assert figures == ["density_over_run.png", "density_per_layer.png"]
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    densities = [float(row["sparsity/density"]) for row in rows if row.get("sparsity/density")]
    assert densities[0] > densities[-1] == pytest.approx(0.1, abs=1e-4)
    assert any(row.get("test/accuracy") for row in rows)
    logs_what_its_sweep_wants("sparse_training")


def test_an_option_reaches_the_callback(recipe, tmp_path, caplog):
    arguments = ["--trainer.max_epochs=1", "--data.dataset=digits", "--trainer.callbacks.sparsity=0.5"]
    with caplog.at_level("INFO"):
        recipe("sparse_training", "fit", *arguments, *QUICK)
    assert "density 0.5000" in caplog.text


def test_compare_writes_table_figure_and_csv(recipe, tmp_path):
    arguments = ["--seeds=2", "--epochs=1", "--update_every=2", "--sparsity=0.8", "--dataset=digits"]
    recipe("sparse_training", "compare", *arguments)
    folder = tmp_path / "runs" / "sparse_training" / "compare"
    assert (folder / "compare.png").stat().st_size > 10_000
    with (folder / "results.csv").open() as file:
        runs = list(csv.DictReader(file))
    methods = {run["method"]: run for run in runs}
    assert len(runs) == 2 * len(methods) == 14
    for name, run in methods.items():
        expected = 1.0 if name == "dense" else 0.2
        assert float(run["density"]) == pytest.approx(expected, abs=1e-4), name
    flops = {name: float(run["train_flops"]) for name, run in methods.items()}
    assert flops["dense"] == pytest.approx(1.0)
    assert flops["static ERK"] < flops["GraNet from 50 %"] < flops["GraNet"] < 1.0
    assert (folder / "table.md").read_text().count("\n") == 9


def test_pruning_plasticity_fit_and_grid(recipe, tmp_path, logs_what_its_sweep_wants):
    probes = [
        {
            "class_path": "lightning_plasticity.callbacks.PruningPlasticity",
            "init_args": {"rates": [0.9], "epochs": [1], "continue_epochs": 1, "regrow": regrow},
        }
        for regrow in (False, True)
    ]
    figures = {"class_path": "lightning_plasticity.callbacks.FigureLogger"}
    quick = {"trainer": {"callbacks": [figures, *probes]}}
    (tmp_path / "quick.yaml").write_text(json.dumps(quick))  # JSON is YAML
    arguments = ["--trainer.max_epochs=3", "--data.dataset=digits", "--data.batch_size=256"]
    recipe("pruning_plasticity", "fit", f"--config={tmp_path / 'quick.yaml'}", *arguments, *QUICK)
    (run,) = (tmp_path / "runs" / "pruning_plasticity").iterdir()
    figures = {path.name for path in (run / "figures").iterdir()}
    assert {"pruning_plasticity.png", "pruning_plasticity_regrown.png"} <= figures
    logs_what_its_sweep_wants("pruning_plasticity")

    grid = [
        "--epochs=2",
        "--every_n_epochs=1",
        "--continue_epochs=1",
        "--rates=[0.5,0.9]",
        "--dataset=digits",
    ]
    recipe("pruning_plasticity", "grid", "--pretrained=[0.0,0.5]", *grid)
    with (tmp_path / "runs" / "pruning_plasticity" / "grid" / "records.csv").open() as file:
        records = list(csv.DictReader(file))
    assert (
        len(records) == 2 * 2 * 2 * 2
    )  # pre-trained sparsities, epochs, rates, without and with regeneration
    assert {record["sparsity"] for record in records} == {"0.0", "0.5"}


@pytest.mark.parametrize(
    "config", ["granet_cifar10_vgg19", "granet_cifar100_resnet50", "granet_imagenet_resnet50"]
)
def test_published_settings_parse(recipe, repository, config, capsys):
    """Their data are not here: the configuration is read whole, and printed."""
    path = repository / "recipes" / "paper" / f"{config}.yaml"
    with pytest.raises(SystemExit) as stop:
        recipe("sparse_training", "fit", f"--config={path}", "--print_config")
    assert stop.value.code in (None, 0)
    text = capsys.readouterr().out
    assert "GraNet" in text
    assert "regrow_ratio: 0.5" in text


def test_filters_are_trained_away_and_exported(recipe, repository, tmp_path, capsys):
    config = repository / "recipes" / "sparse_training_filters.yaml"
    recipe(
        "sparse_training",
        "fit",
        f"--config={config}",
        "--trainer.max_epochs=1",
        "--data.dataset=digits",
        *QUICK,
    )
    (checkpoint,) = (tmp_path / "runs").rglob("last.ckpt")
    capsys.readouterr()
    recipe("sparse_training", "export", f"--ckpt_path={checkpoint}", "--dataset=digits", "--batch_size=4")
    text = capsys.readouterr().out
    assert "FLOPs" in text
    assert "latency" in text
    assert "No filter is dead" not in text
    folder = tmp_path / "runs" / "sparse_training" / "export"
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.safetensors"}


def test_export_says_what_is_missing(recipe, tmp_path):
    with pytest.raises(SystemExit, match="no file"):
        recipe("sparse_training", "export", "--ckpt_path=nowhere.ckpt")
