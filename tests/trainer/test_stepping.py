"""Every way of stepping and choosing: manual, accumulated, clipped, tied, frozen, several optimizers."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_plasticity.callbacks.presets import GraNet, RigL, StaticSparsity
from lightning_plasticity.callbacks.sparse_training import SparseTraining
from lightning_plasticity.sparsity.schedules import Cosine, Cubic
from tests.sparsity.reference import cubic
from tests.trainer.following import dense_masks, equal_weights, fit, follow, granet, restated
from tests.trainer.modules import (
    ConvNet,
    ManualNet,
    Tape,
    TwoPlayers,
    loader,
    make_trainer,
)


def test_manual_optimization_gives_what_automatic_gives():
    automatic, manual = ConvNet(), ManualNet()
    first, second = granet(), granet()
    fit(automatic, [first])
    fit(manual, [second])
    assert equal_weights(automatic, manual)
    assert all(torch.equal(mask, second.masks[name]) for name, mask in first.masks.items())


def test_accumulation_grows_like_one_large_batch():
    callbacks = [granet(), granet()]
    modules = [ConvNet().double(), ConvNet().double()]
    tapes = [Tape(), Tape()]
    options = {"precision": "64-true"}
    fit(modules[0], [tapes[0], callbacks[0]], 40, loader(64, 32), **options)
    fit(modules[1], [tapes[1], callbacks[1]], 40, loader(64, 8), accumulate_grad_batches=4, **options)
    assert callbacks[1]._engines[0][1].updates == 9
    for large, small in zip(tapes[0].frames, tapes[1].frames, strict=True):
        for name, mask in large.masks.items():
            assert torch.equal(mask, small.masks[name])
    for a, b in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_growth_reads_gradients_before_they_are_clipped(algorithm):
    module, tape, callback = ConvNet(), Tape(), granet()
    clipped = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            clipped.append(pl_module.conv3.weight.grad.clone())

    limit = 1e-3
    fit(module, [tape, callback, Watch()], gradient_clip_val=limit, gradient_clip_algorithm=algorithm)
    names = list(callback.masks)
    follow(tape, restated(dense_masks(module, names)), names)
    unclipped = [frame.gradients["conv3.weight"] for frame in tape.frames]
    assert (
        max(float(g.abs().max()) for g in clipped)
        <= limit * 1.001
        < max(float(g.abs().max()) for g in unclipped)
    )
    for frame, gradient in zip(tape.frames[1:], clipped[1:], strict=True):
        assert int((gradient != 0).sum()) <= int(frame.masks["conv3.weight"].numel())
    if algorithm == "value":
        ties = int((clipped[4].abs() == limit).sum())
        assert ties > 20, "clipped gradients tie, so growth by them would differ"


def test_clipping_counts_only_the_gradients_of_active_weights():
    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.norm = torch.stack([p.grad.norm() for p in pl_module.parameters()]).norm()

    watch, module = Watch(), ConvNet()
    fit(module, [StaticSparsity(0.9), watch], 1, gradient_clip_val=1e-2)
    assert float(watch.norm) == pytest.approx(1e-2, rel=1e-3)


def test_tied_weights_are_masked_once():
    class Tied(ConvNet):
        def __init__(self):
            super().__init__()
            self.twin = nn.Conv2d(8, 8, 3, padding=1)
            self.twin.weight = self.conv3.weight

        def forward(self, images):
            x = F.relu(self.conv2(F.max_pool2d(F.relu(self.conv1(images)), 2)))
            return self.head(F.relu(self.twin(F.relu(self.conv3(x)))).mean((2, 3)))

    module, tape, callback = Tied(), Tape(), granet()
    fit(module, [tape, callback])
    assert list(callback.masks) == ["conv1.weight", "conv2.weight", "conv3.weight", "head.weight"]
    assert not module.twin.weight[~callback.masks["conv3.weight"]].any()
    follow(tape, restated(dense_masks(module, callback.masks)), list(callback.masks))


def test_frozen_parameters_stay_dense():
    module, callback = ConvNet(), granet()
    module.conv1.requires_grad_(False)
    before = module.conv1.weight.clone()
    fit(module, [callback])
    assert list(callback.masks) == ["conv2.weight", "conv3.weight", "head.weight"]
    assert torch.equal(module.conv1.weight, before)


def test_include_and_exclude_choose_layers():
    chosen = {
        (("conv*",), ("conv1",)): ["conv2.weight", "conv3.weight"],
        ((), ("head", "conv3.weight")): ["conv1.weight", "conv2.weight"],
        (("head",), ()): ["head.weight"],
    }
    for (include, exclude), names in chosen.items():
        module, callback = ConvNet(), granet(include=include, exclude=exclude)
        fit(module, [callback], 30)
        assert list(callback.masks) == names
        others = [p for name, p in module.named_parameters() if name not in names and p.dim() > 1]
        assert all((p != 0).all() for p in others)


def test_a_sparsity_for_each_layer_and_schedules():
    sparsity = {"conv2": 0.75, "conv3": Cubic(0.25, 0.5, 10, 20), "head.weight": 0.5}
    module, tape = ConvNet(), Tape()
    callback = SparseTraining(sparsity, regrow_ratio=Cosine(0.4, 0.1), update_every=5)
    fit(module, [tape, callback], 30)
    assert list(callback.masks) == ["conv2.weight", "conv3.weight", "head.weight"]
    for t, frame in enumerate(tape.frames, start=1):
        active = {name: int(mask.sum()) for name, mask in frame.masks.items()}
        done = 5 * (t // 5)
        assert active == {
            "conv2.weight": 72,
            "conv3.weight": round(576 * (1 - cubic(done, 0.25, 0.5, 10, 20))),
            "head.weight": 40,
        }


def test_two_callbacks_on_layers_of_their_own():
    module = ConvNet()
    convolutions = GraNet(0.8, update_every=4, prune_until=30, include=["conv*"])
    head = RigL(0.5, update_every=6, include=["head"])
    tape = Tape()
    fit(module, [tape, convolutions, head], 40)
    assert not convolutions.masks.keys() & head.masks.keys()
    assert convolutions.density == pytest.approx(0.2, abs=1e-3)
    assert head.density == 0.5
    changed = [
        t
        for t, (a, b) in enumerate(zip(tape.frames, tape.frames[1:], strict=False), start=2)
        if not torch.equal(a.masks["head.weight"], b.masks["head.weight"])
    ]
    assert changed
    assert all(t % 6 == 0 for t in changed)
    for name, mask in (convolutions.masks | head.masks).items():
        assert not module.get_parameter(name)[~mask].any()


def test_several_optimizers_count_their_own_steps():
    module, callback = TwoPlayers(), GraNet(0.75, update_every=2, prune_until=6, total_steps=24)
    trainer = make_trainer([callback], max_epochs=6)
    trainer.fit(module, loader())
    assert [engine.step for _, engine in callback._engines] == [24, 12]
    assert [engine.density for _, engine in callback._engines] == [0.25, 0.25]
    assert len(callback.masks) == 4
    for name, mask in callback.masks.items():
        assert not module.get_parameter(name)[~mask].any()


def test_a_sparsity_for_each_layer_of_several_optimizers():
    module, callback = TwoPlayers(), SparseTraining({"first": 0.5, "second.0": 0.75}, 0.2, update_every=2)
    make_trainer([callback], max_epochs=2).fit(module, loader())
    density = {name: float(mask.float().mean()) for name, mask in callback.masks.items()}
    assert density == {"first.0.weight": 0.5, "first.2.weight": 0.5, "second.0.weight": 0.25}


def test_an_optimizer_without_masked_layers_is_left_alone():
    module, callback = TwoPlayers(), GraNet(0.75, update_every=2, prune_until=6, include=["second"])
    make_trainer([callback], max_epochs=6).fit(module, loader())
    assert list(callback.masks) == ["second.0.weight", "second.2.weight"]
    assert callback.density == 0.25
