"""Averages over time: the averaged weights are as sparse as the newest masks, at every point of the run."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch.optim.swa_utils import AveragedModel

from lightning_plasticity.callbacks import GraNet, RigL
from tests.trainer.modules import ConvNet, ScoredNet, adamw, loader, make_trainer

METHODS = {
    "granet": lambda: GraNet(0.8, update_every=3, prune_until=10),
    "rigl": lambda: RigL(0.6, update_every=3, update_until=1.0),
    "filters": lambda: GraNet(0.5, update_every=3, prune_until=10, granularity="filter"),
}
AVERAGES = {
    "ema": lambda: EMAWeightAveraging(decay=0.8),
    "ema every other step": lambda: EMAWeightAveraging(decay=0.8, update_every_n_steps=2),
    "equal": WeightAveraging,
    "swa": lambda: StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=1),
    "swa with BatchNorm": lambda: StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=1),
}


class Net(ScoredNet):
    """Its submodule has the name under which torch wraps an averaged model; validates only what is sparse."""

    def __init__(self, norm):
        super().__init__(adamw, norm)
        self.module = self.conv3
        self.validated = []

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        sparse = next(c for c in self.trainer.callbacks if isinstance(c, GraNet | RigL))
        self.validated += [bool(self.get_parameter(n)[~mask].any()) for n, mask in sparse.masks.items()]


def averaged(callback):
    """The averaged parameters by name."""
    model = callback._average_model
    return dict((model.module if isinstance(model, AveragedModel) else model).named_parameters())


class Check(L.Callback):
    """After every batch: the average is zero outside the masks. Saves a checkpoint after each epoch."""

    def __init__(self, sparse, average, folder):
        self.sparse, self.average, self.folder = sparse, average, folder
        self.batches, self.differ = 0, False

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.batches += 1
        average = averaged(self.average)
        for name, mask in self.sparse.masks.items():
            assert not average[name][~mask].any(), f"{name} after batch {self.batches}"
            self.differ |= not torch.equal(average[name], pl_module.get_parameter(name))

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


@pytest.mark.parametrize("is_first", [True, False], ids=["average first", "average last"])
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("method", METHODS)
def test_averages_are_as_sparse_as_the_masks(tmp_path, method, average, is_first):
    sparse, averaging, module = METHODS[method](), AVERAGES[average](), Net("BatchNorm" in average)
    check = Check(sparse, averaging, tmp_path)
    callbacks = [averaging, sparse, check] if is_first else [sparse, averaging, check]
    trainer = make_trainer(callbacks, max_epochs=5, num_sanity_val_steps=0)
    trainer.fit(module, loader(), loader(32, start=500))
    assert check.differ, "an average that equals the weights shows nothing"
    assert check.batches >= 20
    # an epoch that only renews the statistics of BatchNorm ends in one optimizer step without gradients
    assert sparse._engines[0][1].step == 20 + ("BatchNorm" in average)
    for name, mask in sparse.masks.items():
        assert not module.get_parameter(name)[~mask].any(), "what averaging left in the model"
        assert module.get_parameter(name)[mask].any()
    assert len(module.validated) >= 10
    assert not any(module.validated)
    checkpoint = torch.load(tmp_path / "4.ckpt", weights_only=True)
    stored = [checkpoint["state_dict"], checkpoint.get("current_model_state", {})]
    stored += [
        value["average_model_state"] for value in checkpoint["callbacks"].values() if "n_averaged" in value
    ]
    assert sum(bool(state) for state in stored) == 2
    for state in filter(None, stored):
        assert not any(state[name][~mask].any() for name, mask in sparse.masks.items())


@pytest.mark.parametrize("average", ["swa", "swa with BatchNorm"])
def test_the_order_of_callbacks_does_not_matter(average):
    """Also where averaging makes the run one epoch longer, and times are fractions of the run."""
    runs = []
    for is_first in (True, False):
        sparse, averaging = GraNet(0.8, update_every=3, prune_until=0.5), AVERAGES[average]()
        callbacks = [averaging, sparse] if is_first else [sparse, averaging]
        trainer = make_trainer(callbacks, max_epochs=5)
        trainer.fit(ConvNet(adamw, "BatchNorm" in average), loader())
        runs.append((sparse._engines[0][1].history, {n: mask.tolist() for n, mask in sparse.masks.items()}))
    assert runs[0] == runs[1]


def test_an_average_of_the_users_own_is_masked_when_it_is_put_into_the_model():
    """By a callback that stands before ours in the list."""

    class Own(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.shadow = AveragedModel(pl_module)

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.shadow.update_parameters(pl_module)

        def on_train_end(self, trainer, pl_module):
            pl_module.load_state_dict(self.shadow.module.state_dict())

    module, sparse, own = ConvNet(adamw), METHODS["rigl"](), Own()
    make_trainer([own, sparse], max_epochs=5).fit(module, loader())
    dense = dict(own.shadow.module.named_parameters())
    assert any(dense[name][~mask].any() for name, mask in sparse.masks.items())
    for name, mask in sparse.masks.items():
        assert not module.get_parameter(name)[~mask].any()
        assert torch.equal(module.get_parameter(name)[mask], dense[name][mask])


def test_a_new_connection_starts_at_zero_in_the_average():
    """Not at what its last life left there."""
    sparse, averaging = RigL(0.6, update_every=3, update_until=1.0), EMAWeightAveraging(decay=0.9)
    seen = []

    class Grown(L.Callback):
        before = None

        def on_train_batch_end(self, trainer, *_):
            masks = {name: mask.clone() for name, mask in sparse.masks.items()}
            if self.before is not None:
                for name, mask in masks.items():
                    new = mask & ~self.before[name]
                    seen.append(int(new.sum()))
                    assert not averaged(averaging)[name][new].any()
            self.before = masks

    trainer = make_trainer([averaging, sparse, Grown()], max_epochs=5)
    trainer.fit(ConvNet(adamw), loader())
    assert sum(seen) > 20
