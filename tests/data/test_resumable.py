import signal

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_plasticity.data import ClassIncrementalData, DriftData, ImageData, IntensityData
from lightning_plasticity.data.resumable import ResumableLoader
from tests.distributed.launch import results, run_two
from tests.identical import assert_identical

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def flat(batches):
    return [int(value) for batch in batches for value in batch]


def test_it_goes_on_where_it_stopped_once():
    loader = ResumableLoader(range(10), batch_size=3)
    batches = iter(loader)
    first = flat(next(batches) for _ in range(2))
    other = ResumableLoader(range(10), batch_size=3)
    other.load_state_dict(loader.state_dict())
    assert first + flat(other) == list(range(10))
    assert other.state_dict() == {"batches": 4, "epoch": 0}
    assert flat(other) == list(range(10))


def test_after_a_whole_epoch_it_begins_anew():
    loader = ResumableLoader(range(6), batch_size=2)
    assert flat(loader) == list(range(6))
    other = ResumableLoader(range(6), batch_size=2)
    other.load_state_dict(loader.state_dict())
    assert flat(other) == list(range(6))


def test_a_place_counts_in_its_own_epoch_alone():
    """A run may have stopped at an epoch's end after fewer batches than there are."""
    loaders = []
    for _ in range(2):
        data = IntensityData("bumps", batch_size=300)
        data.setup()
        loaders.append(data.train_dataloader())
    loaders[0].sampler.set_epoch(2)
    batches = iter(loaders[0])
    next(batches), next(batches)
    assert loaders[0].state_dict() == {"batches": 2, "epoch": 2}
    loaders[1].sampler.set_epoch(3)
    loaders[1].load_state_dict(loaders[0].state_dict())
    assert len(list(loaders[1])) == len(loaders[1])


@pytest.mark.parametrize("epoch", [0, 3])
def test_intensity_data_goes_on_in_the_order_of_the_epoch(epoch):
    loaders = []
    for _ in range(2):
        data = IntensityData("bumps", batch_size=300)
        data.setup()
        loaders.append(data.train_dataloader())
        loaders[-1].sampler.set_epoch(epoch)
    whole = [stimuli for stimuli, _ in loaders[0]]
    loaders[1].load_state_dict({"batches": 5, "epoch": epoch})
    rest = [stimuli for stimuli, _ in loaders[1]]
    assert len(rest) == len(whole) - 5
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], rest, strict=True))


class Linear(LightningModule):
    """Learns, and remembers which batches it has learned; may be interrupted in one that it has not."""

    asks_for_length = False  # as for a schedule: Lightning then makes the loader before it restores

    def __init__(self, features, interrupt=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(features, 10)
        self.interrupt = interrupt
        self.register_buffer("learned", torch.zeros(0, 2))

    def training_step(self, batch, batch_idx):
        inputs = batch[0].flatten(1)
        if (self.trainer.current_epoch, batch_idx) == self.interrupt:
            raise KeyboardInterrupt
        loss = torch.nn.functional.cross_entropy(self.layer(inputs), batch[1].clamp(min=0))
        self.learned = torch.cat([self.learned, torch.tensor([[batch_idx, inputs.double().sum()]])])
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def on_load_checkpoint(self, checkpoint):
        self.learned = checkpoint["state_dict"]["learned"].clone()

    def configure_optimizers(self):
        if self.asks_for_length:
            assert self.trainer.estimated_stepping_batches > 0
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class StopAfter(Callback):
    """Interrupts in the hooks of a batch that is learned."""

    def __init__(self, epoch, batch):
        self.at = (epoch, batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            raise KeyboardInterrupt


class SaveOnException(Callback):
    """As ModelCheckpoint does with ``save_on_exception``."""

    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.path)


DATA = {
    "drift": (64, lambda: DriftData(phases=3, steps_per_phase=3, batch_size=8, dataset="digits")),
    "images": (64, lambda: ImageData("digits", augment=True, batch_size=150)),
    "workers": (64, lambda: ImageData("digits", augment=True, batch_size=150, num_workers=2)),
    "intensity": (64, lambda: IntensityData("digits8x8", batch_size=150)),
    "sessions": (768, lambda: ClassIncrementalData(
        "digits", sessions=[5, 5], epochs_per_session=[1, 2], batch_size=75, image_size=16
    )),
}  # fmt: skip


def fit(name, path, interrupt=None, callbacks=(), ckpt_path=None, **options):
    """Trains three epochs; gives everything that a run leaves, or where an interrupted one goes on."""
    features, make = DATA[name]
    trainer = Trainer(
        accelerator="cpu", callbacks=[*callbacks, SaveOnException(path)], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        **({"max_epochs": 3} | options),
        limit_val_batches=0 if name == "drift" else None,  # which has no validation batch
        reload_dataloaders_every_n_epochs=int(name == "sessions"),
    )  # fmt: skip
    module, handler = Linear(features, interrupt), signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, make(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    except SystemExit:  # Lightning's end after an interrupt
        return path
    finally:
        signal.signal(signal.SIGINT, handler)
    state = {"module": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
    return state | {"step": trainer.global_step, "epoch": trainer.current_epoch}


@pytest.mark.parametrize("at", [(0, 0), (0, 4), (1, 0), (1, 3), (2, 2)])
@pytest.mark.parametrize("name", DATA)
def test_an_interrupt_before_a_batch_is_learned_loses_nothing(tmp_path, name, at):
    """Also on the first batch of an epoch, and in an epoch whose order is another one."""
    whole = fit(name, tmp_path / "whole")
    resumed = fit(name, tmp_path / "resumed", ckpt_path=fit(name, tmp_path / "stopped", at))
    assert_identical(whole, resumed)


@pytest.mark.parametrize("at", [(0, 2), (1, 8), (1, 5), (2, 1)])
@pytest.mark.parametrize("name", ["drift", "images", "workers", "intensity"])
def test_an_interrupt_after_a_batch_is_learned_learns_none_twice(tmp_path, name, at):
    """Also in the last batch of an epoch, which has 9."""
    whole = fit(name, tmp_path / "whole")
    resumed = fit(
        name, tmp_path / "resumed", ckpt_path=fit(name, tmp_path / "stopped", callbacks=[StopAfter(*at)])
    )
    assert_identical(whole, resumed)


@pytest.mark.parametrize("at", [(0, 4), (1, 3)])
@pytest.mark.parametrize("name", DATA)
def test_also_if_the_loader_is_older_than_what_is_restored(tmp_path, monkeypatch, name, at):
    monkeypatch.setattr(Linear, "asks_for_length", True)
    whole = fit(name, tmp_path / "whole")
    resumed = fit(name, tmp_path / "resumed", ckpt_path=fit(name, tmp_path / "stopped", at))
    assert_identical(whole, resumed)


@pytest.mark.parametrize("name", ["drift", "images", "intensity"])
@pytest.mark.parametrize("options", [{"limit_train_batches": 4}, {"max_steps": 20}])
def test_a_run_that_sees_a_part_of_its_epochs_goes_on(tmp_path, name, options):
    whole = fit(name, tmp_path / "whole", **options)
    for number, at in enumerate([(0, 3), (1, 2), (2, 0)]):
        path = fit(name, tmp_path / f"stopped{number}", at, **options)
        assert_identical(whole, fit(name, tmp_path / "resumed", ckpt_path=path, **options))


def test_a_run_may_be_interrupted_again(tmp_path):
    whole = fit("images", tmp_path / "whole")
    path = fit("images", tmp_path / "first", (1, 3))
    path = fit("images", tmp_path / "second", (1, 3), ckpt_path=path)
    path = fit("images", tmp_path / "third", (1, 6), ckpt_path=path)
    assert_identical(whole, fit("images", tmp_path / "resumed", ckpt_path=path))


@pytest.mark.parametrize("name", ["drift", "images", "intensity"])
def test_what_others_draw_from_a_loader_does_not_move_its_place(tmp_path, name):
    class Draw(Callback):
        def on_train_batch_end(self, trainer, *_):
            next(iter(trainer.train_dataloader))

    whole = fit(name, tmp_path / "whole")
    path = fit(name, tmp_path / "stopped", (1, 3), [Draw()])
    assert_identical(whole, fit(name, tmp_path / "resumed", ckpt_path=path))


def test_two_processes_go_on_with_their_own_batches(tmp_path):
    run_two("tests.data.ddp_worker", tmp_path)
    for name, batches in {"images": 9, "drift": 6}.items():
        ranks = results(tmp_path, name)
        for runs in ranks:
            assert len(runs["whole"]["batches"]) == 3 * batches
            assert runs["whole"]["batches"] == runs["stopped"]["batches"] + runs["resumed"]["batches"], name
            assert torch.equal(runs["whole"]["weight"], runs["resumed"]["weight"]), name
        assert ranks[0]["whole"]["batches"] != ranks[1]["whole"]["batches"]
