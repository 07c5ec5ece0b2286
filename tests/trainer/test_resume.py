"""Resume: a run stopped after any step and resumed equals the run that was never stopped, bit for bit."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, TensorDataset

from lightning_plasticity.callbacks import SET, GraNet, RigL, StaticSparsity
from lightning_plasticity.callbacks.interrupts import FinishBatch
from tests.identical import assert_identical
from tests.trainer.modules import ConvNet, ScoredNet, TwoPlayers, adamw, digits, loader, make_trainer, sgd

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),  # to bring all callbacks along
]

STEPS = 20
METHODS = {
    "granet": partial(GraNet, 0.8, update_every=3, prune_until=8),
    "rigl": partial(RigL, 0.6, update_every=3),
    "set": partial(SET, 0.6, update_every=4),
    "static": partial(StaticSparsity, 0.6),
    "filters": partial(GraNet, 0.5, 0.25, update_every=3, prune_until=8, granularity="filter"),
    "2:4": partial(GraNet, 0.5, update_every=3, prune_until=8, granularity="2:4", include=["conv2", "conv3"]),
    "explored": partial(RigL, 0.6, update_every=3, track_exploration=True),
    "magnitude": partial(RigL, 0.6, update_every=3, initial="magnitude"),
}


def alike(batches, size=16):
    """So many batches of the same digits: data start anew in a run that resumes inside an epoch."""
    images, labels = digits(size).tensors
    return DataLoader(TensorDataset(images.repeat(batches, 1, 1, 1), labels.repeat(batches)), size)


class SaveEach(L.Callback):
    """Saves a checkpoint after every optimizer step."""

    def __init__(self, folder):
        self.folder = folder

    def path(self, step):
        return self.folder / f"{step}.ckpt"

    def on_train_batch_end(self, trainer, pl_module, *_):
        path = self.path(trainer.global_step)
        if trainer.global_step and not path.exists():
            trainer.save_checkpoint(path)


def fit(module, callbacks, ckpt_path=None, batches=4, steps=STEPS, **options):
    """Train to the end; dead on the spot if anything differs from a stored run."""
    trainer = make_trainer(callbacks, max_steps=steps, max_epochs=-1, **options)
    trainer.fit(module, alike(batches), ckpt_path=ckpt_path)
    return trainer


def everything(trainer, sparse):
    """All that a run leaves: weights, optimizer state, masks, counters, generators, in comparable form."""
    return {
        "weights": dict(trainer.model.named_parameters()),
        "buffers": dict(trainer.model.named_buffers()),
        "optimizers": [optimizer.state_dict()["state"] for optimizer in trainer.optimizers],
        "callback": sparse.state_dict(),
        "step": trainer.global_step,
        "logged": trainer.callback_metrics["sparsity/density"],
    }


def resume_everywhere(tmp_path, make_module, make_sparse, stops, **options):
    """Compare runs resumed after the given steps with one that was not stopped, which saves after each."""
    sparse, save = make_sparse(), SaveEach(tmp_path)
    whole = everything(fit(make_module(0), [sparse, save], **options), sparse)
    for step in stops:
        again = make_sparse()
        trainer = fit(make_module(1), [again], ckpt_path=save.path(step), **options)
        assert_identical(whole, everything(trainer, again), f"resumed after step {step}")
    return sparse, save


def test_stop_after_any_step(tmp_path):
    """Also after steps that updated the masks, one before them, and at the end of pruning."""
    sparse, _ = resume_everywhere(
        tmp_path, lambda seed: ConvNet(adamw, seed=seed), METHODS["granet"], range(1, STEPS)
    )
    assert [step for step, _ in sparse._engines[0][1].history] == [0, 3, 6, 8, 9, 12, 15, 18]


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("method", METHODS)
def test_every_method(tmp_path, method, make):
    resume_everywhere(tmp_path, lambda seed: ConvNet(make, True, seed=seed), METHODS[method], (5, 9, 14))


def test_inside_an_epoch_of_accumulation_windows(tmp_path):
    """7 batches in threes: windows end after batches 3, 6 and 7."""
    resume_everywhere(
        tmp_path,
        lambda seed: ConvNet(adamw, seed=seed),
        METHODS["rigl"],
        range(1, 12),
        batches=7,
        steps=12,
        accumulate_grad_batches=3,
    )


def test_with_a_learning_rate_schedule_and_clipping(tmp_path):
    resume_everywhere(
        tmp_path,
        lambda seed: ConvNet(sgd, seed=seed, milestones=[2, 4]),
        METHODS["granet"],
        (4, 7, 8, 13),
        gradient_clip_val=0.5,
    )


def test_with_a_gradient_scaler(tmp_path):
    def plugin():
        return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", growth_interval=2))]

    sparse, save = METHODS["granet"](), SaveEach(tmp_path)
    whole = everything(fit(ConvNet(adamw), [sparse, save], plugins=plugin()), sparse)
    again = METHODS["granet"]()
    trainer = fit(ConvNet(adamw, seed=1), [again], save.path(7), plugins=plugin())
    assert_identical(whole, everything(trainer, again))


def test_with_weight_averaging(tmp_path):
    runs = []
    for ckpt_path in (None, tmp_path / "7.ckpt"):
        sparse, average = METHODS["rigl"](), EMAWeightAveraging(decay=0.8)
        trainer = fit(ConvNet(adamw, True), [average, sparse, SaveEach(tmp_path)], ckpt_path)
        runs.append((everything(trainer, sparse), dict(average._average_model.named_parameters())))
    assert_identical(*runs)


def test_two_optimizers(tmp_path):
    """Each has an engine of its own, with its own count of steps; the second steps every other batch."""

    def make_sparse():
        return GraNet(0.7, 0.3, update_every=2, prune_until=6, total_steps=STEPS)

    sparse, save = make_sparse(), SaveEach(tmp_path)
    trainer = make_trainer([sparse, save], max_epochs=5)
    trainer.fit(TwoPlayers(adamw), alike(4))
    for step in (4, 10, 11):
        again = make_sparse()
        resumed = make_trainer([again], max_epochs=5)
        if save.path(step).exists():
            resumed.fit(TwoPlayers(adamw), alike(4), ckpt_path=save.path(step))
            assert_identical(everything(trainer, sparse), everything(resumed, again))
    assert [engine.step for _, engine in sparse._engines] == [20, 10]


def test_one_callback_used_again_keeps_nothing_of_the_last_run(tmp_path):
    sparse = METHODS["rigl"]()
    first = everything(fit(ConvNet(adamw), [sparse, SaveEach(tmp_path)]), sparse)
    trainer = make_trainer([sparse])
    trainer.validate(ScoredNet(adamw), alike(2), ckpt_path=tmp_path / "9.ckpt", verbose=False)
    assert_identical(first, everything(fit(ConvNet(adamw), [sparse]), sparse), "fitted again")
    resumed = everything(fit(ConvNet(adamw), [sparse], tmp_path / "7.ckpt"), sparse)
    assert_identical(first, resumed, "resumed")


class Evaluated(ScoredNet):
    """Validates, tests and predicts, and remembers how sparse it was then."""

    def validation_step(self, batch, batch_idx):
        self.zeros = [float((p == 0).float().mean()) for p in self.parameters() if p.dim() > 1]
        super().validation_step(batch, batch_idx)

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


@pytest.mark.parametrize("with_callback", [True, False])
def test_evaluation_alone_from_a_checkpoint(tmp_path, with_callback):
    """The stored weights are sparse by themselves; the callback neither needs to be there nor disturbs."""
    sparse, module = METHODS["granet"](), Evaluated(adamw)
    trainer = make_trainer([sparse], max_steps=STEPS, max_epochs=-1)
    trainer.fit(module, alike(4), loader(32, start=500))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    accuracy, masks = trainer.callback_metrics["val/accuracy"], sparse.masks
    data, path = loader(32, start=500), tmp_path / "end.ckpt"
    curve = sparse.state_dict()["curve"]
    trainer.validate(module, data, verbose=False)
    assert sparse.state_dict()["curve"] == curve, "of the training only"
    again = METHODS["granet"]()
    other, callbacks = Evaluated(adamw, seed=1), [again] if with_callback else []
    for name in ("validate", "test"):
        other.zeros = []
        metrics = getattr(make_trainer(callbacks), name)(other, data, ckpt_path=path, verbose=False)
        assert metrics[0]["val/accuracy"] == pytest.approx(float(accuracy))
        assert other.zeros == [pytest.approx(1 - float(mask.float().mean())) for mask in masks.values()]
    logits = torch.cat(make_trainer(callbacks).predict(other, data, ckpt_path=path))
    module.eval()
    with torch.no_grad():
        wanted = torch.cat([module(images) for images, _ in data])
    assert torch.equal(logits, wanted)
    assert again.masks.keys() == (masks.keys() if with_callback else set())
    assert all(torch.equal(mask, masks[name]) for name, mask in again.masks.items())


def test_a_checkpoint_written_after_evaluation_keeps_the_masks(tmp_path):
    fit(ConvNet(adamw), [METHODS["rigl"](), SaveEach(tmp_path)])
    trainer = make_trainer([METHODS["rigl"]()])
    trainer.validate(ScoredNet(adamw, seed=1), alike(2), ckpt_path=tmp_path / "9.ckpt", verbose=False)
    trainer.save_checkpoint(tmp_path / "copy.ckpt")
    states = [torch.load(tmp_path / name, weights_only=True)["callbacks"] for name in ("9.ckpt", "copy.ckpt")]
    assert_identical(*(next(v for k, v in state.items() if k.startswith("RigL")) for state in states))


SCRIPT = """
import sys, time
from pathlib import Path
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_plasticity.callbacks import RigL
from tests.trainer.modules import ConvNet, adamw, make_trainer
from tests.trainer.test_resume import METHODS, STEPS, alike

folder = Path(sys.argv[1])

class Wait(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 7:
            (folder / "ready").touch()
            while not trainer.received_sigterm:
                time.sleep(0.02)

checkpoint = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
options = {"max_steps": STEPS * 1000, "max_epochs": -1, "enable_checkpointing": True}
trainer = make_trainer([METHODS["rigl"](total_steps=STEPS), Wait(), checkpoint], **options)
trainer.fit(ConvNet(adamw), alike(4))
"""


@pytest.mark.slow
def test_killed_runs_go_on(tmp_path, repository):
    """SIGTERM and SIGKILL hit a process that saves after every step; then a fresh one goes on."""
    threads = str(torch.get_num_threads())  # sums in another order would differ in the last bit
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(repository)}
    start = partial(subprocess.Popen, env=environment, cwd=repository, stderr=subprocess.PIPE)
    children = {}
    for name in ("SIGTERM", "SIGKILL"):
        (tmp_path / name).mkdir()
        children[name] = start([sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / name)])
    try:
        for name, child in children.items():
            deadline = time.monotonic() + 120
            while not (tmp_path / name / "ready").exists():
                assert child.poll() is None, child.stderr.read().decode()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            child.send_signal(getattr(signal, name))
        codes = {name: child.wait(60) for name, child in children.items()}
    finally:
        for child in children.values():
            child.kill()
            child.communicate()
    assert codes == {"SIGTERM": 0, "SIGKILL": -signal.SIGKILL}, "the trainer ends in order if it can"
    sparse = METHODS["rigl"](total_steps=STEPS)
    whole = everything(fit(ConvNet(adamw), [sparse]), sparse)
    for name in children:
        steps = [int(path.stem.removeprefix("step=")) for path in (tmp_path / name).glob("step=*.ckpt")]
        assert 6 <= max(steps) < STEPS
        again = METHODS["rigl"](total_steps=STEPS)
        path = tmp_path / name / f"step={max(steps)}.ckpt"
        trainer = fit(ConvNet(adamw, seed=1), [again], ckpt_path=path)
        assert_identical(whole, everything(trainer, again), f"after {name}")


OPEN = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lightning_plasticity", "lightning"):
            raise ImportError(name)

sys.meta_path.insert(0, Block())
import torch

state = torch.load(sys.argv[1], weights_only=True)
engine = next(value for key, value in state["callbacks"].items() if "RigL" in key)["engines"][0]
active = size = 0
for name, shape in engine["shapes"].items():
    packed = engine["masks"][name]
    bits = (packed[:, None] >> torch.arange(8)) & 1
    mask = bits.flatten()[: torch.Size(shape).numel()].reshape(shape).bool()
    assert packed.numel() == -(-mask.numel() // 8)
    assert not state["state_dict"][name][~mask].any()
    active, size = active + int(mask.sum()), size + mask.numel()
assert active == round(0.4 * size)
"""


@pytest.mark.slow
def test_a_checkpoint_opens_without_this_package(tmp_path):
    """In a process that can import neither it nor Lightning; masks take one bit a weight."""
    fit(ConvNet(adamw), [METHODS["rigl"](), SaveEach(tmp_path)])
    command = [sys.executable, "-c", OPEN, str(tmp_path / f"{STEPS}.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


class InterruptIn(L.Callback):
    """Ctrl-C in one hook of a batch; a second time, if wanted."""

    def __init__(self, hook, step=5, times=1):
        setattr(self, hook, lambda trainer, *_: self._interrupt(trainer, step, times))

    def _interrupt(self, trainer, step, times):
        if trainer.global_step == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    def on_exception(self, trainer, *_):
        trainer.save_checkpoint(Path(trainer.default_root_dir, "stopped.ckpt"))


def interrupted(callbacks, folder, batches=4):
    """A run with BatchNorm that ends by Ctrl-C; how far it got, and its checkpoint."""
    trainer = make_trainer(callbacks, max_steps=STEPS, max_epochs=-1, default_root_dir=folder)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            trainer.fit(ConvNet(adamw, True), alike(batches))
    finally:
        signal.signal(signal.SIGINT, handler)
    return trainer.global_step, folder / "stopped.ckpt"


@pytest.mark.usefixtures("_hears_interrupts")
@pytest.mark.parametrize("step", [5, 7])
@pytest.mark.parametrize("hook", ["on_before_backward", "on_before_optimizer_step", "on_before_zero_grad"])
def test_ctrl_c_in_a_batch_waits_for_its_end(tmp_path, hook, step):
    """BatchNorm has seen the batch by then, and the weights have not; step 7 is the last of its epoch."""
    whole_sparse, sparse, again = (METHODS["rigl"]() for _ in range(3))
    whole = everything(fit(ConvNet(adamw, True), [whole_sparse]), whole_sparse)
    reached, path = interrupted([FinishBatch(), sparse, InterruptIn(hook, step)], tmp_path)
    assert reached == step + 1
    trainer = fit(ConvNet(adamw, True, seed=1), [FinishBatch(), again], ckpt_path=path)
    assert_identical(whole, everything(trainer, again))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("_hears_interrupts")
def test_a_second_ctrl_c_stops_at_once(tmp_path):
    reached, _ = interrupted([FinishBatch(), InterruptIn("on_before_optimizer_step", times=2)], tmp_path)
    assert reached == 5


class SwallowedIn(InterruptIn):
    """Ctrl-C where a library catches everything, as fsspec does while it looks for a checkpoint."""

    def _interrupt(self, *arguments):
        with contextlib.suppress(BaseException):
            super()._interrupt(*arguments)


@pytest.mark.usefixtures("_hears_interrupts")
@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_epoch_start"])
def test_a_ctrl_c_that_is_swallowed_between_batches_is_not_lost(tmp_path, hook):
    reached, path = interrupted([FinishBatch(), SwallowedIn(hook, step=8)], tmp_path)
    assert reached == 8
    assert torch.load(path, weights_only=True)["global_step"] == 8


class Listens(L.Callback):
    """Notes who hears Ctrl-C in a batch; then fails, or has an interrupt come."""

    def __init__(self, then=None):
        self.then, self.heard = then, set()

    def on_train_batch_end(self, trainer, *_):
        self.heard.add(signal.getsignal(signal.SIGINT))
        if self.then == "fails":
            raise RuntimeError("its own mistake")
        if self.then is not None:
            signal.raise_signal(self.then)


@pytest.mark.usefixtures("_hears_interrupts")
@pytest.mark.parametrize("then", [None, "fails", signal.SIGINT, signal.SIGTERM])
def test_the_signals_are_given_back_whatever_ends_a_fit(then):
    """And a second fit with the same callbacks hears them again."""
    first, terminates = FinishBatch(), signal.getsignal(signal.SIGTERM)
    for _ in range(2):
        listens = Listens(then)
        with contextlib.suppress(RuntimeError, SystemExit):
            fit(ConvNet(adamw, True), [first, listens])
        assert listens.heard == {first._ask}
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is terminates


@pytest.mark.usefixtures("_hears_interrupts")
def test_an_interrupted_fit_can_be_validated(tmp_path):
    first = FinishBatch()
    interrupted([first, InterruptIn("on_before_backward")], tmp_path)
    assert first.asked
    make_trainer([first]).validate(ScoredNet(adamw, True), alike(1), verbose=False)
