"""Masked weights stay zero under any torch optimizer, also under one that moves them by itself."""

from functools import partial

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_plasticity.callbacks.presets import GraNet, StaticSparsity
from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.schedules import Cosine, Cubic
from lightning_plasticity.sparsity.sparsifier import Sparsifier
from tests.trainer.following import (
    EVERY,
    SPARSITY,
    STEPS,
    UNTIL,
    equal_weights,
    fit,
    granet,
)
from tests.trainer.modules import (
    ConvNet,
    Decorated,
    Noisy,
    Tape,
    loader,
    sgd,
)

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.1),
    "SGD Nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "SGD one by one": partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=False),
    "Adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.01),
    "Adam AMSGrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "Adam fused": partial(torch.optim.Adam, lr=0.01, fused=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
    "Adamax": partial(torch.optim.Adamax, lr=0.01),
    "NAdam": partial(torch.optim.NAdam, lr=0.01),
    "RAdam": partial(torch.optim.RAdam, lr=0.01),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.01, initial_accumulator_value=0.1),
    "Adadelta": torch.optim.Adadelta,
    "Adafactor": torch.optim.Adafactor,
    "RMSprop": partial(torch.optim.RMSprop, lr=0.001, centered=True, momentum=0.9),
    "ASGD": partial(torch.optim.ASGD, lr=0.1, t0=5),
    "Rprop": torch.optim.Rprop,
    "noisy": Noisy,
    "noisy now and then": partial(Noisy, every=3),
}
WITHOUT_SHAPED_STATE = {"SGD", "noisy", "noisy now and then", "Adafactor"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_stay_zero_under_any_optimizer(name):
    module, tape = ConvNet(OPTIMIZERS[name]), Tape()
    callback = GraNet(0.8, update_every=4, prune_until=9)
    fit(module, [tape, callback], 24)
    updates = [step for step, _ in callback._engines[0][1].history]
    assert updates == [0, 4, 8, 9, 12, 16, 20, 24]
    for t, frame in enumerate(tape.frames, start=1):
        for layer, mask in frame.masks.items():
            assert not frame.weights_after[layer][~mask].any(), f"{layer} after step {t}"
            if t in updates:
                assert not any(s[~mask].any() for s in frame.state_after[layer]), (
                    f"state of {layer}, step {t}"
                )
    assert bool(tape.frames[-1].state["conv2.weight"]) == (name not in WITHOUT_SHAPED_STATE)
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("make", [partial(torch.optim.Muon, lr=0.01), Noisy])
def test_an_optimizer_that_starts_to_move_masked_weights_late_is_held(make):
    class Warm(L.LightningModule):
        """A learning rate that warms up from zero, so that the first step moves nothing."""

        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.one, self.two = nn.Linear(64, 16, bias=False), nn.Linear(16, 10, bias=False)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.two(F.relu(self.one(batch[0].flatten(1)))), batch[1])

        def configure_optimizers(self):
            optimizer = make(self.parameters())
            if isinstance(optimizer, Noisy):
                optimizer.every = 5
                return optimizer
            warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm, "interval": "step"}}

    module, tape, callback = Warm(), Tape(), StaticSparsity(0.8)
    fit(module, [tape, callback], 20)
    moved = sum(bool(frame.weights["one.weight"][~frame.masks["one.weight"]].any()) for frame in tape.frames)
    assert moved >= 4, "the optimizer does move masked weights"
    for t, frame in enumerate(tape.frames, start=1):
        for layer, mask in frame.masks.items():
            assert not frame.weights_after[layer][~mask].any(), f"{layer} after step {t}"


def test_hooks_that_run_twice_count_a_step_once():
    make = partial(Decorated, lr=0.1, momentum=0.9, weight_decay=1e-3)
    runs = []
    for optimizer in (sgd, make):
        module, callback = ConvNet(optimizer), granet()
        fit(module, [callback])
        runs.append((module, callback))
    assert runs[1][1]._engines[0][1].step == STEPS
    assert equal_weights(runs[0][0], runs[1][0])
    plain = ConvNet(make)
    optimizer = make(plain.parameters())
    sparsifier = Sparsifier(
        plain, SparsityConfig(Cubic(0.0, SPARSITY, 0, UNTIL), Cosine(0.5, 0.005), EVERY), STEPS
    )
    sparsifier.attach(optimizer)
    batches = list(loader())
    for step in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(plain(batches[step % 4][0]), batches[step % 4][1]).backward()
        optimizer.step()
    assert equal_weights(runs[0][0], plain)
