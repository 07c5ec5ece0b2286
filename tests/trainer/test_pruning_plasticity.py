"""PruningPlasticity: measures branches of a run that goes on as if nothing had happened."""

import copy
import itertools
import signal
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from torch import nn

from lightning_plasticity.callbacks import pruning_plasticity
from lightning_plasticity.callbacks.branches import Branch, branch_trainer
from lightning_plasticity.callbacks.presets import GraNet, RigL, StaticSparsity
from lightning_plasticity.callbacks.pruning_plasticity import PruningPlasticity
from tests.sparsity.reference import best, best_per_layer
from tests.trainer.modules import ScoredNet, adamw, clone_state, loader, make_trainer

SIZES = {"conv1.weight": 36, "conv2.weight": 288, "conv3.weight": 576, "head.weight": 80}


def shuffled(own_generator):
    """A shuffling dataloader, by the global random state or by a generator of its own."""
    return loader(64, 16, shuffle=True, generator=torch.Generator().manual_seed(3) if own_generator else None)


def run(callbacks, module=None, epochs=4, own_generator=False, **options):
    """Train and validate."""
    L.seed_everything(1, verbose=False)
    module = module or ScoredNet(norm=True, dropout=0.2, milestones=[2])
    trainer = make_trainer(callbacks, max_epochs=epochs, **options)
    trainer.fit(module, shuffled(own_generator), loader(32, 32, 64))
    return trainer, module


def state_of(trainer, module):
    """Everything that a disturbed run would have changed."""
    optimizer = trainer.optimizers[0]
    schedulers = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
    return {
        "module": {name: value.clone() for name, value in module.state_dict().items()},
        "optimizer": [clone_state([optimizer], p) for p in module.parameters()],
        "lr": [group["lr"] for group in optimizer.param_groups],
        "schedulers": schedulers,
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if "plasticity" not in k},
        "step": trainer.global_step,
        "training": module.training,
    }


def assert_same(one, other, path="state"):
    """Equal to the bit."""
    if torch.is_tensor(one):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{path}/{index}")
    else:
        assert one == other, path


def spy(monkeypatch):
    """Records every branch: its engine's masks around the cut, learning rates, and how it ended."""
    seen = []

    class Watched(Branch):
        def on_fit_start(self, trainer, pl_module):
            super().on_fit_start(trainer, pl_module)
            seen.append(
                {"rates": [], "module": pl_module, "branch": self, "optimizers": len(trainer.optimizers)}
            )
            seen[-1]["start"] = {n: p.detach().clone() for n, p in pl_module.named_parameters()}

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            first = "before" not in seen[-1]
            if first:
                named = [(n, p) for n, p in pl_module.named_parameters() if p.grad is not None]
                seen[-1]["gradients"] = {n: p.grad.clone() for n, p in named}
                seen[-1]["before"] = {name: mask.clone() for name, mask in self.masks.items()}
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            if first:
                seen[-1]["cut"] = {name: mask.clone() for name, mask in self.masks.items()}
                seen[-1]["weights"] = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
                seen[-1]["state"] = {n: clone_state([optimizer], p) for n, p in pl_module.named_parameters()}
            seen[-1]["rates"].append(optimizer.param_groups[0]["lr"])

        def on_fit_end(self, trainer, pl_module):
            seen[-1]["end"] = {name: mask.clone() for name, mask in self.masks.items()}
            super().on_fit_end(trainer, pl_module)

    monkeypatch.setattr(pruning_plasticity, "Branch", Watched)
    return seen


def measure(monkeypatch, others=(), module=None, epochs=1, **options):
    """One run with branches at the end of its first epoch, watched."""
    seen = spy(monkeypatch)
    callback = PruningPlasticity(**({"epochs": [0], "continue_epochs": 2, "rates": [0.3, 0.9]} | options))
    run([callback, *others], module, epochs)
    return callback, seen


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("others", [[], [lambda: GraNet(0.8, update_every=3, initial_sparsity=0.5)]])
@pytest.mark.parametrize("regrow", [False, True])
def test_the_run_ends_as_if_nothing_had_happened(own_generator, others, regrow):
    plain = run([build() for build in others], own_generator=own_generator)
    callback = PruningPlasticity(rates=[0.5, 0.9], epochs=[0, 1, 2], continue_epochs=2, regrow=regrow)
    sparse = [build() for build in others]
    measured = run([callback, *sparse], own_generator=own_generator)
    assert len(callback.records) == 6
    assert_same(state_of(*plain), state_of(*measured))
    if sparse:
        assert sparse[0]._engines[0][1].step == 16


def test_the_run_is_not_disturbed_by_adam_and_accumulation_either():
    def adam(parameters):
        return torch.optim.AdamW(parameters, lr=0.01)

    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    plain = run([], ScoredNet(adam, norm=True, dropout=0.2), **options)
    callback = PruningPlasticity(rates=[0.5], every_n_epochs=2, continue_epochs=1)
    measured = run([callback], ScoredNet(adam, norm=True, dropout=0.2), **options)
    assert [record["epoch"] for record in callback.records] == [1, 3]
    assert_same(state_of(*plain), state_of(*measured))


def test_a_branch_may_come_before_the_first_validation():
    options = {"check_val_every_n_epoch": 4, "num_sanity_val_steps": 0}
    plain = run([], own_generator=True, **options)
    callback = PruningPlasticity(rates=[0.5], epochs=[0, 1], continue_epochs=1)
    measured = run([callback], own_generator=True, **options)
    assert [record["epoch"] for record in callback.records] == [0, 1]
    assert_same(state_of(*plain), state_of(*measured))


def test_a_run_whose_accumulation_changes_is_not_said_to_be_too_short():
    """Eight steps are two epochs at first sight, but five: four steps in the first, one in each later."""
    callback = PruningPlasticity(rates=[0.5], epochs=[3], continue_epochs=1)
    run([callback, GradientAccumulationScheduler({0: 1, 1: 4})], epochs=-1, max_steps=8)
    assert [record["step"] for record in callback.records] == [7]


def test_records_say_what_was_measured():
    callback = PruningPlasticity(rates=[0.5, 0.9], epochs=[0, 2], continue_epochs=1)
    trainer, _ = run([callback])
    assert [(r["epoch"], r["step"], r["rate"]) for r in callback.records] == [
        (0, 4, 0.5),
        (0, 4, 0.9),
        (2, 12, 0.5),
        (2, 12, 0.9),
    ]
    assert [r["learning_rate"] for r in callback.records] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    for record in callback.records:
        assert record["plasticity"] == record["after"] - record["before"]
        assert record["sparsity"] == 0.0
        assert record["regrow"] is False
        assert all(type(value) in (int, float, bool, list) for value in record.values())
    last = {r["rate"]: r["plasticity"] for r in callback.records[2:]}
    for rate, value in last.items():
        assert float(trainer.callback_metrics[f"pruning_plasticity/{rate:g}"]) == pytest.approx(value)


def test_before_is_the_accuracy_of_the_run_and_after_that_of_the_branch(monkeypatch):
    seen = spy(monkeypatch)
    callback = PruningPlasticity(rates=[0.9], epochs=[1], continue_epochs=2)
    accuracies = []

    class Listen(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            accuracies.append(float(trainer.callback_metrics["val/accuracy"]))

    _, module = run([callback, Listen()], epochs=2)
    (record,) = callback.records
    assert record["before"] == accuracies[-1]
    images, labels = next(iter(loader(32, 32, 64)))
    branch = seen[0]["module"].eval()
    assert record["after"] == pytest.approx(float((branch(images).argmax(1) == labels).float().mean()))
    assert not torch.equal(branch.conv3.weight, module.conv3.weight)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("regrow", [False, True])
@pytest.mark.parametrize("others", [[], [lambda: RigL(0.5, update_every=2)]])
def test_exactly_the_rate_of_the_active_weights_goes(monkeypatch, scope, regrow, others):
    _, seen = measure(monkeypatch, [build() for build in others], scope=scope, regrow=regrow)
    assert [entry["branch"].rate for entry in seen] == [0.3, 0.9]
    for entry in seen:
        names, rate = list(entry["before"]), entry["branch"].rate
        masks = [entry["before"][name].numpy() for name in names]
        counts = [int(mask.sum()) for mask in masks]
        assert counts == [SIZES[n] for n in names] or (others and sum(counts) == 490)
        magnitudes = [entry["start"][name].abs().numpy() for name in names]
        if scope == "global":
            survivors = best(magnitudes, masks, sum(counts) - round(rate * sum(counts)))
        else:
            survivors = best_per_layer(magnitudes, masks, [n - round(rate * n) for n in counts])
        wanted = survivors
        if regrow:
            gradients = [entry["gradients"][name].abs().numpy() for name in names]
            lost = [n - int(mask.sum()) for n, mask in zip(counts, survivors, strict=True)]
            grown = best_per_layer(gradients, [~mask for mask in survivors], lost)
            wanted = [a | b for a, b in zip(survivors, grown, strict=True)]
            assert [int(mask.sum()) for mask in wanted] == counts, "each layer is repaid its own loss"
        for name, mask, kept in zip(names, wanted, survivors, strict=True):
            assert np.array_equal(entry["cut"][name].numpy(), mask), name
            assert not entry["weights"][name][~torch.tensor(kept)].any(), (
                "cut and regrown weights start at zero"
            )
            assert not any(s[~torch.tensor(kept)].any() for s in entry["state"][name])
            assert torch.equal(entry["weights"][name][kept], entry["start"][name][kept])
            assert torch.equal(entry["end"][name], entry["cut"][name]), "masks stay fixed afterwards"
            end = entry["module"].get_parameter(name)
            assert not end[~entry["end"][name]].any()


@pytest.mark.parametrize("regrow", [False, True])
def test_whole_filters(monkeypatch, regrow):
    callback, seen = measure(monkeypatch, granularity="filter", rates=[0.5, 0.9], regrow=regrow)
    assert set(seen[0]["cut"]) == {"conv1.weight", "conv2.weight", "conv3.weight"}
    for entry in seen:
        for name, mask in entry["cut"].items():
            filters = len(mask)
            sums = entry["start"][name].abs().flatten(1).sum(1)
            keep = max(1, filters - round(entry["branch"].rate * filters))
            survivors = torch.zeros(filters, dtype=torch.bool)
            survivors[sums.argsort(descending=True)[:keep]] = True
            alive = mask.flatten(1).any(1)
            assert torch.equal(alive, mask.flatten(1).all(1))
            if regrow:
                assert alive.all(), "all that were alive before are alive again"
            else:
                assert torch.equal(alive, survivors)
            assert not entry["weights"][name][~survivors].any()
    assert [record["regrow"] for record in callback.records] == [regrow, regrow]


@pytest.mark.parametrize("regrow", [False, True])
def test_coupled_filters_are_cut_together(monkeypatch, regrow):
    """The last two layers have eight filters each, and the run masks them as one."""
    sparse = RigL(0.5, update_every=2, granularity="filter", coupled=[["conv2.weight", "conv3.weight"]])
    assert sparse.filter_groups == []
    _, seen = measure(monkeypatch, [sparse], granularity="filter", rates=[0.5], regrow=regrow)
    (entry,) = seen
    assert sparse.filter_groups == entry["branch"].filter_groups == [["conv2.weight", "conv3.weight"]]
    before, cut = ({n: m.flatten(1).any(1) for n, m in entry[k].items()} for k in ("before", "cut"))
    sums = sum(
        entry["start"][name].abs().flatten(1).sum(1) for name in ("conv2.weight", "conv3.weight")
    ).masked_fill(~before["conv2.weight"], -1.0)
    survivors = torch.zeros(8, dtype=torch.bool)
    survivors[sums.argsort(descending=True)[:2]] = True
    for name in ("conv2.weight", "conv3.weight"):
        assert before[name].sum() == 4
        assert torch.equal(cut[name], cut["conv2.weight"])
        assert cut[name].sum() == (4 if regrow else 2)
        assert cut[name][survivors].all()
        assert not entry["weights"][name][~survivors].any()


def test_a_branch_trains_on_the_runs_device():
    """A Trainer of devices=1 would take the first GPU, wherever the run is."""
    seen = {}

    class Recorder(SimpleNamespace):
        def __init__(self, **options):
            super().__init__()
            seen.update(options)

    run_of = make_trainer()
    for device, wanted in ((("cuda", 3), [3]), (("cuda",), 1), (("cpu",), 1), (("mps", 0), 1)):
        trainer = Recorder()
        for name in ("accelerator", "precision", "limit_train_batches", "limit_val_batches"):
            setattr(trainer, name, getattr(run_of, name))
        for name in ("gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches"):
            setattr(trainer, name, getattr(run_of, name))
        trainer.strategy = SimpleNamespace(root_device=torch.device(*device))
        branch_trainer(trainer, 2, L.Callback())
        assert seen["devices"] == wanted


def test_the_learning_rate_is_frozen_at_its_value_at_the_cut(monkeypatch):
    seen = spy(monkeypatch)
    callback = PruningPlasticity(rates=[0.5], epochs=[0, 2], continue_epochs=3)
    run([callback])
    assert [set(entry["rates"]) for entry in seen] == [{0.1}, {0.1 * 0.1}]
    assert [len(entry["rates"]) for entry in seen] == [12, 12]
    drops = [record["learning_rate_drops"] for record in callback.records]
    assert drops == [[], [2]]


def test_a_branch_starts_from_the_run_with_its_optimizer_state(monkeypatch):
    seen = spy(monkeypatch)
    states = {}

    class Keep(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            states["weights"] = copy.deepcopy(pl_module.state_dict())
            states["optimizer"] = [clone_state(trainer.optimizers, p) for p in pl_module.parameters()]

    run([Keep(), PruningPlasticity(rates=[0.0], epochs=[0], continue_epochs=1)], epochs=1)
    (entry,) = seen
    for name, weight in entry["start"].items():
        assert torch.equal(weight, states["weights"][name])
    for (name, after), before in zip(entry["state"].items(), states["optimizer"], strict=True):
        assert_same(before, after, name)


def test_a_sparse_run_is_cut_where_it_is_active(monkeypatch):
    sparse = StaticSparsity(0.8, exclude=["head"])
    callback, seen = measure(monkeypatch, [sparse], rates=[0.5])
    assert callback.records[0]["sparsity"] == pytest.approx(0.8)
    (entry,) = seen
    assert list(entry["cut"]) == ["conv1.weight", "conv2.weight", "conv3.weight"]
    for name, mask in entry["cut"].items():
        assert not mask[~sparse.masks[name]].any()
    assert sum(int(m.sum()) for m in entry["cut"].values()) == 180 - 90
    assert torch.equal(entry["before"]["conv2.weight"], sparse.masks["conv2.weight"])


def test_include_and_exclude_choose_what_is_cut(monkeypatch):
    _, seen = measure(monkeypatch, include=["conv*"], exclude=["conv1"], rates=[0.5])
    assert list(seen[0]["cut"]) == ["conv2.weight", "conv3.weight"]


def test_a_net_that_keeps_nothing_forgets_and_one_that_keeps_all_does_not():
    """The measure itself: a cut of 98 % hurts a trained net far more than one of 20 %."""
    L.seed_everything(0, verbose=False)
    module = ScoredNet(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), norm=True)
    callback = PruningPlasticity(rates=[0.2, 0.98], epochs=[9], continue_epochs=1)
    trainer = make_trainer([callback], max_epochs=10)
    trainer.fit(module, loader(512, 32), loader(256, 256, 512))
    low, high = callback.records
    assert low["before"] == high["before"] > 0.5
    assert low["plasticity"] > -0.1
    assert high["plasticity"] < low["plasticity"] - 0.2


def test_records_survive_a_checkpoint(tmp_path):
    callback = PruningPlasticity(rates=[0.5], every_n_epochs=1, continue_epochs=1)
    trainer, _ = run([callback], epochs=3)
    trainer.save_checkpoint(tmp_path / "plasticity.ckpt")
    other = PruningPlasticity(rates=[0.5], every_n_epochs=1, continue_epochs=1)
    resumed = make_trainer([other], max_epochs=5)
    resumed.fit(
        ScoredNet(norm=True, dropout=0.2, milestones=[2]), shuffled(False), loader(32, 32, 64),
        ckpt_path=tmp_path / "plasticity.ckpt",
    )  # fmt: skip
    assert other.records[:3] == callback.records
    assert [record["epoch"] for record in other.records] == [0, 1, 2, 3, 4]
    assert other.records[-1]["learning_rate_drops"] == [2]


def test_figures_draw_a_line_for_each_rate():
    callback = PruningPlasticity(rates=[0.5, 0.9], every_n_epochs=1, continue_epochs=1, regrow=True)
    assert callback.figures() == {}
    run([callback])
    (name,), (figure,) = zip(*callback.figures().items(), strict=True)
    assert name == "pruning_plasticity_regrown"
    assert isinstance(figure, Figure)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["0.5", "0.9"]


def test_two_kinds_of_cut_side_by_side():
    callbacks = [
        PruningPlasticity(rates=[0.5], epochs=[1], continue_epochs=1, regrow=regrow)
        for regrow in (False, True)
    ]
    trainer, _ = run(callbacks, epochs=2)
    assert {key for key in trainer.callback_metrics if "plasticity" in key} == {
        "pruning_plasticity/0.5",
        "pruning_plasticity/0.5_regrown",
    }
    assert callbacks[0].records[0]["before"] == callbacks[1].records[0]["before"]


def test_tied_weights_stay_tied_in_a_branch(monkeypatch):
    class Tied(ScoredNet):
        def __init__(self):
            super().__init__()
            self.twin = nn.Conv2d(8, 8, 3, padding=1)
            self.twin.weight = self.conv3.weight

    _, seen = measure(monkeypatch, module=Tied(), rates=[0.5])
    assert seen[0]["module"].twin.weight is seen[0]["module"].conv3.weight


class Interrupted(L.Callback):
    """Saves where a run is interrupted, as ModelCheckpoint does with ``save_on_exception``."""

    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.path)


def interrupt_at(monkeypatch, number, step=2):
    """Lets one branch, counted from 0, be interrupted in one of its steps."""
    branches = []

    class Stopped(Branch):
        def on_fit_start(self, trainer, pl_module):
            branches.append(self)
            super().on_fit_start(trainer, pl_module)

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            if len(branches) == number + 1 and trainer.global_step == step:
                raise KeyboardInterrupt

    monkeypatch.setattr(pruning_plasticity, "Branch", Stopped)


def probes(epochs=(1, 2), others=()):
    """Two kinds of cut, two rates each: four branches to an epoch; and other callbacks."""
    two = [
        PruningPlasticity(rates=[0.5, 0.9], epochs=epochs, continue_epochs=2, regrow=r) for r in (False, True)
    ]
    return two, [*two, *(build() for build in others)]


def fit_until_interrupted(callbacks, path, random, ckpt_path=None, **options):
    """Three epochs, with dropout and shuffling from the global random state if wanted."""
    handler = signal.getsignal(signal.SIGINT)
    L.seed_everything(1 if ckpt_path is None else 77, verbose=False)
    module = Graded(adamw, norm=True, dropout=0.2 * random, milestones=[2])
    trainer = make_trainer([*callbacks, Interrupted(path)], **({"max_epochs": 3} | options))
    data = shuffled(False) if random else loader(64, 16)
    try:
        trainer.fit(module, data, loader(32, 32, 64), ckpt_path=ckpt_path, weights_only=True)
    except SystemExit:
        assert path.exists()
    finally:
        signal.signal(signal.SIGINT, handler)
    return trainer, module


class Graded(ScoredNet):
    """A score that any other weight changes, where an accuracy on few images would not."""

    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", -nn.functional.cross_entropy(self(batch[0]), batch[1]))


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("others", [(), (lambda: GraNet(0.8, update_every=3, initial_sparsity=0.5),)])
def test_a_run_interrupted_in_any_branch_completes_its_records(monkeypatch, tmp_path, number, others):
    """Four branches after each of two epochs, the last among them; the run itself ends as it would have."""
    whole, callbacks = probes(others=others)
    finished = state_of(*fit_until_interrupted(callbacks, tmp_path / "none", False))
    assert [len(probe.records) for probe in whole] == [4, 4]
    with monkeypatch.context() as patch:
        interrupt_at(patch, number)
        stopped, callbacks = probes(others=others)
        path = tmp_path / "stopped.ckpt"
        fit_until_interrupted(callbacks, path, False)
    assert sum(len(probe.records) for probe in stopped) == number
    again, callbacks = probes(others=others)
    resumed = state_of(*fit_until_interrupted(callbacks, tmp_path / "none", False, path))
    assert [probe.records for probe in again] == [probe.records for probe in whole]
    for key in ("module", "optimizer", "lr", "schedulers", "step"):
        assert_same(finished[key], resumed[key], key)


@pytest.mark.parametrize("number", range(4))
def test_what_is_made_up_for_has_the_random_numbers_it_would_have_had(monkeypatch, tmp_path, number):
    whole, callbacks = probes([1])
    fit_until_interrupted(callbacks, tmp_path / "none", True)
    with monkeypatch.context() as patch:
        interrupt_at(patch, number)
        fit_until_interrupted(probes([1])[1], tmp_path / "stopped.ckpt", True)
    again, callbacks = probes([1])
    fit_until_interrupted(callbacks, tmp_path / "none", True, tmp_path / "stopped.ckpt")
    assert [probe.records for probe in again] == [probe.records for probe in whole]


def test_the_checkpoint_of_an_interrupted_branch_is_that_of_the_epochs_end(monkeypatch, tmp_path):
    class SaveFirst(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    interrupt_at(monkeypatch, 1)
    fit_until_interrupted([SaveFirst(), *probes()[1]], tmp_path / "stopped.ckpt", True)
    before, stopped = (torch.load(tmp_path / name, weights_only=True) for name in ("1.ckpt", "stopped.ckpt"))
    states = [
        next(v for k, v in checkpoint["callbacks"].items() if "'regrow': True" in k)
        for checkpoint in (before, stopped)
    ]
    assert_same(*states, "callback not begun, and the random state")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_same(before[key], stopped[key], key)


def test_a_run_interrupted_again_in_what_it_makes_up_for(monkeypatch, tmp_path):
    whole, callbacks = probes()
    fit_until_interrupted(callbacks, tmp_path / "none", False)
    paths = [None, *(tmp_path / f"{number}.ckpt" for number in range(3))]
    for number, (before, path) in enumerate(itertools.pairwise(paths)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, 1)
            stopped, callbacks = probes()
            fit_until_interrupted(callbacks, path, False, before)
        assert sum(len(probe.records) for probe in stopped) == number + 1
    again, callbacks = probes()
    fit_until_interrupted(callbacks, tmp_path / "none", False, paths[-1])
    assert [probe.records for probe in again] == [probe.records for probe in whole]


@pytest.mark.parametrize("options", [{}, {"max_epochs": -1, "max_steps": 12}])
def test_no_branch_is_taken_twice_after_a_checkpoint_of_another_moment(tmp_path, options):
    """In every hook around an epoch's end, before and after the callback."""

    class SaveAround(L.Callback):
        def __init__(self, name):
            self.name = name

        def save(self, trainer, hook):
            if trainer.current_epoch == 1 and (hook != "batch_end" or trainer.global_step == 8):
                trainer.save_checkpoint(tmp_path / f"{self.name}.{hook}.ckpt")

        def on_train_batch_end(self, trainer, *_):
            self.save(trainer, "batch_end")

        def on_validation_end(self, trainer, *_):
            self.save(trainer, "validation_end")

        def on_train_epoch_end(self, trainer, *_):
            self.save(trainer, "epoch_end")

    whole, callbacks = probes()
    around = [SaveAround("before"), *callbacks, SaveAround("after")]
    fit_until_interrupted(around, tmp_path / "none", False, **options)
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == 6
    for path in paths:
        again, callbacks = probes()
        fit_until_interrupted(callbacks, tmp_path / "none", False, path, **options)
        assert [probe.records for probe in again] == [probe.records for probe in whole], path.name


def test_what_is_made_up_for_is_logged(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        fit_until_interrupted(probes([1])[1], tmp_path / "stopped.ckpt", False)
    again, callbacks = probes([1])
    logger = CSVLogger(tmp_path, name="again", version=0)
    fit_until_interrupted(callbacks, tmp_path / "none", False, tmp_path / "stopped.ckpt", logger=logger)
    header, *rows = (tmp_path / "again" / "version_0" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    logged = {k: float(v) for row in rows for k, v in row.items() if k.startswith("pruning") and v}
    wanted = [(f"{r['rate']:g}{'_regrown' * r['regrow']}", r["plasticity"]) for p in again for r in p.records]
    assert logged == {f"pruning_plasticity/{name}": pytest.approx(value) for name, value in wanted}
    assert {(row["epoch"], row["step"]) for row in rows if row["pruning_plasticity/0.5"]} == {("1", "7")}
