"""Learning-rate and batch-size finders leave masks, counters and schedule as if they had not run."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from lightning_plasticity.callbacks import GraNet, RigL
from tests.trainer.modules import ConvNet, digits, make_trainer
from tests.trainer.test_resume import alike, assert_identical, everything

pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch"
)

METHODS = {
    "granet": lambda: GraNet(0.8, update_every=2, prune_until=0.5),
    "rigl": lambda: RigL(0.6, update_every=2),
}


class Tunable(ConvNet):
    """Has the two attributes that tuners change."""

    def __init__(self, learning_rate=0.05, batch_size=8, seed=0):
        super().__init__(seed=seed)
        self.learning_rate, self.batch_size = learning_rate, batch_size

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def train_dataloader(self):
        return DataLoader(digits(128), self.batch_size)


class Inspect(L.Callback):
    """What a tuner must leave as it was: reads the masks when training starts."""

    def __init__(self, sparse):
        self.sparse = sparse

    def on_train_start(self, *_):
        self.start = {name: mask.clone() for name, mask in self.sparse.masks.items()}
        self.steps = [engine.step for _, engine in self.sparse._engines]


def fit(module, sparse, tuner=None, is_first=True, **options):
    """Train for three epochs, with a tuner before or after the callback (Lightning moves it to the front)."""
    inspect = Inspect(sparse)
    tuners = [tuner] if tuner else []
    callbacks = [*tuners, sparse, inspect] if is_first else [sparse, *tuners, inspect]
    trainer = make_trainer(callbacks, max_epochs=3, **options)
    trainer.fit(module)
    return trainer, inspect


def same(one, other, sparse, again):
    """Two runs that started and ended alike."""
    assert_identical(one[1].start, other[1].start)
    assert one[1].steps == other[1].steps == [0]
    assert_identical(everything(one[0], sparse), everything(other[0], again))


@pytest.mark.parametrize("is_first", [True, False], ids=["finder first", "finder last"])
@pytest.mark.parametrize("method", METHODS)
def test_learning_rate_finder(method, is_first):
    module, sparse = Tunable(), METHODS[method]()
    finder = LearningRateFinder(num_training_steps=30, early_stop_threshold=None, update_attr=True)
    found = fit(module, sparse, finder, is_first)
    assert len(finder.optimal_lr.results["lr"]) == 30
    assert module.learning_rate != 0.05
    again = METHODS[method]()
    same(found, fit(Tunable(module.learning_rate), again), sparse, again)


@pytest.mark.parametrize("is_first", [True, False], ids=["finder first", "finder last"])
@pytest.mark.parametrize("method", METHODS)
def test_batch_size_finder(method, is_first):
    module, sparse = Tunable(), METHODS[method]()
    finder = BatchSizeFinder(steps_per_trial=3, init_val=8, max_trials=3)
    found = fit(module, sparse, finder, is_first)
    assert module.batch_size == 32
    again = METHODS[method]()
    same(found, fit(Tunable(batch_size=32), again), sparse, again)
    assert again._engines[0][1].step == 12
    assert sparse._engines[0][1].plan.total_steps == 12, "a run of 48 steps when the callback first looked"


@pytest.mark.parametrize("method", METHODS)
def test_tuner_before_the_fit(method):
    """The same trainer, module and callback are used by the tuner first."""
    module, sparse = Tunable(), METHODS[method]()
    inspect = Inspect(sparse)
    trainer = make_trainer([sparse, inspect], max_epochs=3)
    tuner = Tuner(trainer)
    tuner.lr_find(module, num_training=30, early_stop_threshold=None)
    tuner.scale_batch_size(module, init_val=8, max_trials=3, steps_per_trial=3)
    assert module.batch_size == 32
    assert module.learning_rate != 0.05
    trainer.fit(module)
    again = METHODS[method]()
    other = fit(Tunable(module.learning_rate, module.batch_size), again)
    same((trainer, inspect), other, sparse, again)


@pytest.mark.parametrize("method", METHODS)
def test_learning_rate_finder_amid_the_run(method):
    """As in Lightning's documentation, again at some epochs: its steps count nowhere."""

    class AtEpochs(LearningRateFinder):
        def on_fit_start(self, *_):
            return

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch in (0, 1):
                seen.append([engine.step for _, engine in sparse._engines])
                before = [engine.state_dict() for _, engine in sparse._engines]
                self.lr_find(trainer, pl_module)
                assert_identical(before, [engine.state_dict() for _, engine in sparse._engines])

    seen, sparse = [], METHODS[method]()
    finder = AtEpochs(num_training_steps=30, early_stop_threshold=None, update_attr=True)
    trainer, _ = fit(Tunable(), sparse, finder)
    assert seen == [[0], [16]]
    assert sparse._engines[0][1].step == trainer.global_step == 48
    for name, mask in sparse.masks.items():
        assert not trainer.model.get_parameter(name)[~mask].any()


@pytest.mark.parametrize("is_first", [True, False], ids=["finder first", "finder last"])
def test_finder_in_a_resumed_run(tmp_path, is_first):
    """The finder stores and restores what the checkpoint has brought, not masks of its own time."""
    sparse = RigL(0.6, update_every=2, total_steps=20)
    trainer = make_trainer([sparse], max_steps=7, max_epochs=-1)
    trainer.fit(ConvNet(), alike(4))
    path = tmp_path / "7.ckpt"
    trainer.save_checkpoint(path)
    masks = {name: mask.clone() for name, mask in sparse.masks.items()}

    class Finder(LearningRateFinder):
        """Runs the test but keeps the learning rate."""

        def on_fit_start(self, trainer, pl_module):
            pl_module.lr = 0.1
            super().on_fit_start(trainer, pl_module)

    for again in (RigL(0.6, update_every=2, total_steps=20), sparse):
        inspect = Inspect(again)
        finder = Finder(num_training_steps=5, early_stop_threshold=None)
        callbacks = [finder, again, inspect] if is_first else [again, finder, inspect]
        trainer = make_trainer(callbacks, max_steps=20, max_epochs=-1)
        trainer.fit(ConvNet(seed=1), alike(4), ckpt_path=path)
        assert_identical(inspect.start, masks)
        assert inspect.steps == [7]
