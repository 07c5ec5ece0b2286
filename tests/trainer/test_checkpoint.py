"""Resuming, logging, monitoring: all that is needed to go on is in the file, all numbers in the loggers."""

import csv
import re
import subprocess
import sys
import textwrap
from itertools import pairwise

import lightning.pytorch as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure

from lightning_plasticity.callbacks.presets import SET, GradualPruning, GraNet, RigL, StaticSparsity
from lightning_plasticity.callbacks.sparse_training import SparseTraining
from tests.trainer.modules import ConvNet, ScoredNet, TwoPlayers, adamw, loader, make_trainer, sgd

EPOCHS, SPLIT = 12, 5
"""Epochs of 4 steps; the checkpoint is of the end of the fifth."""


def granet(**options):
    """GraNet that prunes beyond the split and off the beat."""
    return GraNet(0.85, **({"update_every": 3, "prune_until": 31} | options))


def run(module, callbacks, epochs=EPOCHS, ckpt_path=None, **options):
    """Train for some epochs."""
    trainer = make_trainer(callbacks, max_epochs=epochs, **options)
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return trainer


class SaveAt(L.Callback):
    """Saves a checkpoint at the end of the epoch in which the run will be split; has no state of its own."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == SPLIT - 1:
            trainer.save_checkpoint(self.path)


def saved(tmp_path, module, callback, epochs=EPOCHS):
    """Train to the end, and keep the checkpoint of the end of an epoch."""
    path = tmp_path / "split.ckpt"
    return run(module, [callback, SaveAt(path)], epochs), path


def same(one, other):
    """Equal to the bit, through any nesting."""
    if torch.is_tensor(one):
        return torch.is_tensor(other) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize(
    "build",
    [
        granet,
        lambda: granet(initial_sparsity=0.5, track_exploration=True),
        lambda: granet(granularity="filter"),
        lambda: granet(granularity="2:4", exclude=["conv1"]),
        lambda: SET(0.8, update_every=3),
        lambda: RigL({"conv*": 0.7, "head": 0.5}, update_every=3),
        lambda: StaticSparsity(0.8),
        lambda: GradualPruning(0.8, update_every=3, drop="sensitivity"),
    ],
    ids=["GraNet", "GraNet from half", "filters", "2:4", "SET", "RigL", "static", "GMP"],
)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, make, build):
    whole, callback = ConvNet(make, norm=True), build()
    trainer, path = saved(tmp_path, whole, callback)
    resumed, other = ConvNet(make, norm=True, seed=9), build()
    again = run(resumed, [other], ckpt_path=path)
    assert same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert same(trainer.optimizers[0].state_dict(), again.optimizers[0].state_dict())
    assert same(callback.state_dict(), other.state_dict())
    assert callback._engines[0][1].step == again.global_step == 4 * EPOCHS
    assert same(callback.masks, other.masks)
    assert callback.density == other.density
    assert callback.summary() == other.summary()


def test_several_optimizers_resume_each_with_its_own_masks(tmp_path):
    whole, callback = TwoPlayers(), granet(total_steps=48)
    _, path = saved(tmp_path, whole, callback)
    resumed, other = TwoPlayers(), granet(total_steps=48)
    run(resumed, [other], ckpt_path=path)
    assert same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert same(callback.state_dict(), other.state_dict())
    assert [engine.step for _, engine in other._engines] == [48, 24]


def walk(value, path="state"):
    """Every leaf of a nested state, with its path; containers must be plain."""
    if type(value) in (dict, list, tuple):
        entries = value.items() if type(value) is dict else enumerate(value)
        for key, entry in entries:
            assert type(key) in (str, int), f"{path}: key {key!r}"
            yield from walk(entry, f"{path}/{key}")
    else:
        yield path, value


def test_the_state_is_tensors_and_plain_types_with_masks_at_one_bit(tmp_path):
    module, callback = ScoredNet(), granet(track_exploration=True)
    keep = ModelCheckpoint(tmp_path, filename="last")
    trainer = make_trainer([callback, keep], max_epochs=4, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="before its sparsity is reached"):
        trainer.fit(module, loader(), loader(32, 32, 64))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (key,) = [key for key in checkpoint["callbacks"] if key.startswith("GraNet")]
    assert key == callback.state_key
    for path, leaf in walk(checkpoint["callbacks"][key]):
        assert type(leaf) in (torch.Tensor, int, float, str, bool, type(None)), f"{path} is {type(leaf)}"
    stored = checkpoint["callbacks"][key]["engines"][0]
    for kind in ("masks", "ever_active"):
        for name, packed in stored[kind].items():
            assert packed.dtype == torch.uint8
            assert packed.numel() == -(-module.get_parameter(name).numel() // 8)
            assert packed.untyped_storage().nbytes() == packed.numel()
    assert len(checkpoint["callbacks"][key]["curve"]) == 4


def test_the_file_can_be_read_without_the_package(tmp_path):
    _, path = saved(tmp_path, ConvNet(), granet(), 9)
    code = f"""
        import sys
        sys.modules["lightning_plasticity"] = None
        sys.modules["lightning"] = None
        import torch
        state = torch.load({str(path)!r}, weights_only=True)
        (granet,) = [value for key, value in state["callbacks"].items() if key.startswith("GraNet")]
        print(sorted(granet["engines"][0]["masks"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "['conv1.weight', 'conv2.weight', 'conv3.weight', 'head.weight']"


def test_a_checkpoint_without_masks_fails_loudly(tmp_path):
    path = tmp_path / "dense.ckpt"
    dense = run(ConvNet(), [], 1)
    dense.save_checkpoint(path)
    with pytest.raises(
        MisconfigurationException, match=r"dense.ckpt holds no masks for state_key 'GraNet.*load_from_ch"
    ):
        run(ConvNet(), [granet()], ckpt_path=path)


def test_a_checkpoint_of_other_layers_fails_loudly(tmp_path):
    _, path = saved(tmp_path, ConvNet(), granet())
    with (
        pytest.warns(UserWarning, match="Please add the following callbacks.*GraNet"),
        pytest.raises(MisconfigurationException, match="holds no masks for state_key"),
    ):
        run(ConvNet(), [granet(exclude=["head"])], ckpt_path=path)
    with pytest.raises(
        ValueError, match=r"the stored masks do not fit.*they differ in .*granularity of the stored run"
    ):
        run(ConvNet(), [granet(granularity="filter")], ckpt_path=path)


def test_a_changed_setting_can_resume(tmp_path):
    _, path = saved(tmp_path, ConvNet(), granet())
    stored = torch.load(path, weights_only=True)["callbacks"][granet().state_key]["engines"][0]
    module = ConvNet()
    changed = GraNet(0.95, update_every=4, prune_until=40, regrow_ratio=0.2, drop="sensitivity", seed=3)
    run(module, [changed], ckpt_path=path)
    assert changed.density == round(980 * 0.05) / 980
    history = changed._engines[0][1].history
    assert [list(entry) for entry in stored["history"]] == [
        [step, *counts] for step, counts in history[: len(stored["history"])]
    ]
    assert [step for step, _ in history if step > 4 * SPLIT] == [24, 28, 32, 36, 40, 44, 48]


def test_two_instances_have_states_of_their_own(tmp_path):
    callbacks = [granet(include=["conv*"]), granet(include=["head"], seed=1)]
    keys = [callback.state_key for callback in callbacks]
    assert len(set(keys)) == 2
    keep = ModelCheckpoint(tmp_path, filename="last")
    run(ConvNet(), [*callbacks, keep], 9, enable_checkpointing=True)
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert list(stored[keys[0]]["engines"][0]["masks"]) == ["conv1.weight", "conv2.weight", "conv3.weight"]
    assert list(stored[keys[1]]["engines"][0]["masks"]) == ["head.weight"]


# --------------------------------------------------------------------------------- what a run tells outside


class Progress(TQDMProgressBar):
    """Keeps what the progress bar shows."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def get_metrics(self, trainer, pl_module):
        metrics = super().get_metrics(trainer, pl_module)
        self.shown.append(metrics)
        return metrics


def test_metrics_reach_the_trainer_the_logger_and_the_progress_bar(tmp_path):
    bar, callback = Progress(), granet(track_exploration=True)
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(
        [callback, bar], max_epochs=9, logger=logger, enable_progress_bar=True, log_every_n_steps=1
    )
    trainer.fit(ConvNet(), loader())
    assert float(trainer.callback_metrics["sparsity/density"]) == pytest.approx(callback.density)
    assert callback.density == 147 / 980
    engine = callback._engines[0][1]
    with (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {name for name in rows[0] if name.startswith("sparsity/")} == {
        "sparsity/density",
        "sparsity/dropped",
        "sparsity/exploration",
        "sparsity/grown",
        "sparsity/pruned",
        "sparsity/skipped_updates",
    }
    assert engine.pruned == 833
    assert engine.grown == engine.dropped > 0
    by_step = {int(row["step"]) + 1: row for row in rows}
    for (_, before), (step, after) in pairwise(engine.history):
        assert float(by_step[step]["sparsity/pruned"]) == sum(before) - sum(after)
        assert float(by_step[step]["sparsity/density"]) == pytest.approx(sum(after) / 980)
        assert by_step[step]["sparsity/grown"] == by_step[step]["sparsity/dropped"]
    assert float(by_step[36]["sparsity/exploration"]) == pytest.approx(engine.exploration)
    assert float(bar.shown[-1]["sparsity/density"]) == pytest.approx(0.15, abs=1e-3)


def test_checkpoints_and_early_stopping_can_monitor_the_density(tmp_path):
    keep = ModelCheckpoint(
        tmp_path, filename="sparsest", monitor="sparsity/density", mode="min", save_top_k=1
    )
    stop = EarlyStopping(
        "sparsity/density", stopping_threshold=0.3, patience=100, mode="min", check_on_train_epoch_end=True
    )
    trainer = make_trainer([granet(), keep, stop], max_epochs=EPOCHS, enable_checkpointing=True)
    trainer.fit(ConvNet(), loader())
    assert float(keep.best_model_score) < 0.3
    assert trainer.current_epoch < EPOCHS - 1, "stopped as soon as the density was reached"
    assert stop.stopped_epoch == trainer.current_epoch - 1 or stop.stopped_epoch == trainer.current_epoch


def test_the_summary_and_the_figures_are_of_the_run(caplog):
    callback = granet()
    trainer = make_trainer([callback], max_epochs=9)
    with caplog.at_level("INFO"):
        trainer.fit(ScoredNet(), loader(), loader(32, 32, 64))
    text = callback.summary()
    assert text in caplog.text
    assert text.startswith("GraNet: density 0.1500 (147 of 980 weights active)")
    accuracy = float(trainer.callback_metrics["val/accuracy"])
    assert f"val/accuracy {accuracy:.4f}" in text
    assert re.search(r"FLOPs: forward [\d.e+]+ dense, x0\.\d+ now; training x0\.\d+ of dense", text)
    for name, mask in callback.masks.items():
        assert re.search(
            rf"{name} +{mask.numel()} +{int(mask.sum())} +{float(mask.float().mean()):.4f}", text
        )
    figures = callback.figures()
    assert list(figures) == ["density_over_run", "density_per_layer"]
    assert all(isinstance(figure, Figure) for figure in figures.values())
    assert len(figures["density_over_run"].axes) == 2, "density and accuracy"
    flops = callback.flops()
    dense = 2 * (64 * 36 + 16 * 288 + 16 * 576 + 80)
    assert flops["dense"] == dense
    active = {name: int(mask.sum()) for name, mask in callback.masks.items()}
    sites = {"conv1.weight": 64, "conv2.weight": 16, "conv3.weight": 16, "head.weight": 1}
    assert flops["forward"] == pytest.approx(2 * sum(sites[n] * k for n, k in active.items()) / dense)


def test_before_a_run_there_is_nothing():
    callback = SparseTraining(0.5)
    assert callback.masks == {}
    assert callback.density == 1.0
    assert callback.figures() == {}
    assert callback.state_dict()["engines"] == []


def test_granet_runs_under_the_other_namespace(tmp_path):
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            net = ConvNet()
            self.conv1, self.conv2, self.conv3, self.head = net.conv1, net.conv2, net.conv3, net.head
            self.norm, self.dropout = net.norm, net.dropout

        forward = ConvNet.forward
        training_step = ConvNet.training_step

        def configure_optimizers(self):
            return sgd(self.parameters())

    assert not issubclass(Module, L.LightningModule)

    def fit(callback, ckpt_path=None):
        module, save = Module(), SaveAt(tmp_path / "split.ckpt")
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=9, callbacks=[callback, save], logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(module, loader(), ckpt_path=ckpt_path)
        return module, trainer

    callback, native = granet(), ConvNet()
    module, trainer = fit(callback)
    run(native, [granet()], 9)
    for name, parameter in native.named_parameters():
        assert torch.equal(parameter, module.get_parameter(name))
    assert float(trainer.callback_metrics["sparsity/density"]) == pytest.approx(0.15)
    again, _ = fit(granet(), tmp_path / "split.ckpt")
    assert same(dict(module.state_dict()), dict(again.state_dict()))
