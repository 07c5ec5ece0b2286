"""SparseTraining under a Trainer: every update against the NumPy restatement, and every way of stepping."""

from functools import partial

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_plasticity.callbacks.presets import GradualPruning, GraNet, RigL, StaticSparsity
from lightning_plasticity.callbacks.sparse_training import SparseTraining
from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.schedules import Cosine, Cubic
from lightning_plasticity.sparsity.sparsifier import Sparsifier
from tests.sparsity.reference import Family, cosine, cubic
from tests.trainer.modules import (
    ConvNet,
    Decorated,
    ManualNet,
    Noisy,
    Tape,
    TwoPlayers,
    adamw,
    loader,
    make_trainer,
    sgd,
)

STEPS, EVERY, UNTIL, SPARSITY = 63, 3, 31, 0.83
"""21 updates on the beat and one at step 31, where pruning ends off the beat."""


def granet(**options):
    """GraNet as in the tests against the restatement."""
    return GraNet(SPARSITY, update_every=EVERY, prune_until=UNTIL, **options)


def restated(masks, total=STEPS, **options):
    """The restatement with the same settings."""
    settings = {
        "sparsity": lambda t: cubic(t, 0.0, SPARSITY, 0, UNTIL),
        "arrival": UNTIL,
        "ratio": lambda t: cosine(t, total, 0.5, 0.005),
        "update_every": EVERY,
    }
    return Family(masks, **(settings | options))


def dense_masks(module, names):
    """All active."""
    shapes = dict(module.named_parameters())
    return [np.ones(tuple(shapes[name].shape), dtype=bool) for name in names]


def follow(tape, reference, names):
    """Hold every recorded step against the restatement: masks, weights and optimizer state, bit for bit."""
    for t, frame in enumerate(tape.frames, start=1):
        keep = reference.step(
            t, [frame.weights[n].numpy() for n in names], [frame.gradients[n].numpy() for n in names]
        )
        for index, name in enumerate(names):
            mask = frame.masks[name]
            assert np.array_equal(mask.numpy(), reference.masks[index]), f"mask of {name} after step {t}"
            assert not frame.weights_after[name][~mask].any()
            before = [frame.weights[name], *frame.state[name]]
            after = [frame.weights_after[name], *frame.state_after[name]]
            assert len(after) > 1
            for old, new in zip(before, after, strict=True):
                wanted = old.numpy() if keep is None else np.where(keep[index], old.numpy(), np.float32(0))
                assert np.array_equal(new.numpy(), wanted), f"{name} after step {t}"


def fit(module, callbacks, steps=STEPS, data=None, **options):
    """Train for some optimizer steps."""
    trainer = make_trainer(callbacks, max_steps=steps, max_epochs=-1, **options)
    trainer.fit(module, data if data is not None else loader())
    return trainer


def quantised(make, grid=40.0):
    """An optimizer whose weights are rounded after every step: ties everywhere, and active exact zeros."""

    def build(parameters):
        optimizer = make(parameters)

        @torch.no_grad()
        def round_weights(stepped, *_):
            for group in stepped.param_groups:
                for p in group["params"]:
                    p.copy_(torch.round(p * grid) / grid)

        optimizer.register_step_post_hook(round_weights)
        return optimizer

    return build


def round_gradients(module, grid=100.0):
    """Let gradients tie as well."""
    for parameter in module.parameters():
        parameter.register_hook(lambda gradient: torch.round(gradient * grid) / grid)
    return module


class Sanitised(ConvNet):
    """Infects one gradient entry at chosen steps, and repairs it only after every callback has seen it."""

    bad_steps = ()
    value = float("nan")

    def on_after_backward(self):
        if self.trainer.global_step + 1 in self.bad_steps:
            self.conv2.weight.grad.view(-1)[5] = self.value

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        for parameter in self.parameters():
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("ties", [False, True])
def test_granet_equals_the_restatement(make, ties):
    module = ConvNet(quantised(make) if ties else make)
    if ties:
        round_gradients(module)
    tape, callback = Tape(), granet()
    fit(module, [tape, callback])
    names = list(callback.masks)
    assert names == ["conv1.weight", "conv2.weight", "conv3.weight", "head.weight"]
    reference = restated(dense_masks(module, names))
    follow(tape, reference, names)
    assert reference.updates == 22
    total = sum(mask.numel() for mask in callback.masks.values())
    for t, counts in reference.history:
        assert sum(counts) == round(total * (1 - cubic(t, 0.0, SPARSITY, 0, UNTIL)))
    assert callback.density == round(total * (1 - SPARSITY)) / total
    if ties:
        active_zeros = sum(
            int((frame.masks[n] & (frame.weights_after[n] == 0)).sum()) for frame in tape.frames for n in names
        )
        assert active_zeros > 1000
        some = tape.frames[10].weights["conv3.weight"].abs()
        assert len(some.unique()) < some.numel() / 5


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"scope": "layer", "distribution": "uniform"}, "uniform"),
        ({"allow_readd": False}, {"readd": False}),
        ({"regrow_ratio": Cosine(0.3, 0.1, 0, 40)}, {"ratio": lambda t: cosine(t, 40, 0.3, 0.1)}),
    ],
    ids=["layer scope", "no readd", "own ratio"],
)
def test_options_equal_the_restatement(options, changes):
    module, tape, callback = ConvNet(), Tape(), granet(**options)
    fit(module, [tape, callback])
    names = list(callback.masks)
    masks = dense_masks(module, names)
    if changes == "uniform":

        def per_layer(t):
            wanted = [mask.size * (1 - cubic(t, 0.0, SPARSITY, 0, UNTIL)) for mask in masks]
            counts = [int(value) for value in wanted]
            total = round(sum(mask.size for mask in masks) * (1 - cubic(t, 0.0, SPARSITY, 0, UNTIL)))
            by_remainder = sorted(range(len(wanted)), key=lambda i: counts[i] - wanted[i])
            for index in by_remainder[: total - sum(counts)]:
                counts[index] += 1
            return counts

        changes = {"per_layer": per_layer}
    follow(tape, restated(masks, **changes), names)


def test_a_function_as_score_equals_the_restatement():
    def drop(weight, gradient, generator):
        return (weight * gradient).abs()

    module, tape = ConvNet(), Tape()
    named, own = granet(drop="sensitivity"), granet(drop=drop)
    fit(module, [tape, named])
    fit(ConvNet(), [own])
    for name, mask in named.masks.items():
        assert torch.equal(mask, own.masks[name])
    first = tape.frames[2]  # the first update ranks |w g|, both read before the step; seen from the net itself
    names = list(named.masks)
    earlier = tape.frames[1].weights_after
    scores = [(earlier[n] * first.gradients[n]).abs().numpy() for n in names]
    reference = restated(dense_masks(module, names))
    from tests.sparsity.reference import best, best_per_layer

    pruned = best(scores, reference.masks, reference.targets(3))
    survivors = best_per_layer(
        scores, pruned, [int(m.sum()) - int(np.ceil(reference.ratio(3) * m.sum())) for m in pruned]
    )
    gradients = [np.abs(first.gradients[n].numpy()) for n in names]
    lost = [int(a.sum() - b.sum()) for a, b in zip(pruned, survivors, strict=True)]
    grown = best_per_layer(gradients, [~mask for mask in survivors], lost)
    for name, mask, new in zip(names, survivors, grown, strict=True):
        assert np.array_equal(first.masks[name].numpy(), mask | new)


def test_a_plain_loop_gives_what_the_trainer_gives():
    steps = STEPS
    module, callback = ConvNet(), granet()
    fit(module, [callback])
    plain, tape = ConvNet(), Tape()
    config = SparsityConfig(Cubic(0.0, SPARSITY, 0, UNTIL), Cosine(0.5, 0.005), EVERY)
    optimizer = sgd(plain.parameters())
    sparsifier = Sparsifier(plain, config, steps)
    tape.watch(plain, optimizer)
    handles = sparsifier.attach(optimizer)
    batches = list(loader())
    for step in range(steps):
        optimizer.zero_grad()
        images, labels = batches[step % len(batches)]
        F.cross_entropy(plain(images), labels).backward()
        optimizer.step()
        tape.close(sparsifier.masks)
    for handle in handles:
        handle.remove()
    names = list(sparsifier.masks)
    follow(tape, restated(dense_masks(plain, names)), names)
    for (name, ours), theirs in zip(plain.named_parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    for name, mask in callback.masks.items():
        assert torch.equal(mask, sparsifier.masks[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_with_gradients_that_are_not_finite_is_skipped(value):
    module, tape, callback = Sanitised(), Tape(), granet(exclude=["head"])
    module.bad_steps, module.value = (9, 31, 32, 45), value
    with pytest.warns(UserWarning, match="gradients are not finite, masks stay as they are") as warned:
        fit(module, [tape, callback])
    assert len(warned) == 4
    names = list(callback.masks)
    reference = restated(dense_masks(module, names))
    follow(tape, reference, names)
    engine = callback._engines[0][1]
    assert (engine.skipped, engine.updates) == (reference.skipped, reference.updates) == (4, 19)
    assert torch.equal(tape.frames[8].masks["conv1.weight"], tape.frames[7].masks["conv1.weight"])
    total = sum(mask.numel() for mask in callback.masks.values())
    wanted = round(total * (1 - SPARSITY))
    active = [sum(int(m.sum()) for m in frame.masks.values()) for frame in tape.frames]
    assert active[31] > wanted, "steps 31 and 32 were skipped"
    assert active[32:] == [wanted] * (STEPS - 32), "step 33 reaches the target"


def test_a_gradient_that_is_not_finite_under_the_mask_does_no_harm():
    class Infected(ConvNet):
        def on_after_backward(self):
            gradient, mask = self.conv2.weight.grad, callback.masks["conv2.weight"]
            if self.trainer.global_step % 10 == 4:
                gradient[~mask] = float("nan")

    callback, module = GradualPruning(0.8, update_every=10, prune_until=20), Infected()
    fit(module, [callback], 45)
    assert all(p.isfinite().all() for p in module.parameters())
    assert callback.density == pytest.approx(0.2, abs=1e-3)


# ------------------------------------------------------------------------------------------------- ways of stepping


def equal_weights(one, other):
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


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
    fit(modules[0], [tapes[0], callbacks[0]], 24, loader(64, 32), **options)
    fit(modules[1], [tapes[1], callbacks[1]], 24, loader(64, 8), accumulate_grad_batches=4, **options)
    assert callbacks[1]._engines[0][1].updates == 8
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
    assert max(float(g.abs().max()) for g in clipped) <= limit * 1.001 < max(float(g.abs().max()) for g in unclipped)
    for frame, gradient in zip(tape.frames[1:], clipped[1:], strict=True):
        assert int((gradient != 0).sum()) <= int(frame.masks["conv3.weight"].numel())
    if algorithm == "value":
        ties = int((clipped[2].abs() == limit).sum())
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
        fit(module, [callback], 33)
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


# ----------------------------------------------------------------------------------------------- any torch optimizer

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
                assert not any(s[~mask].any() for s in frame.state_after[layer]), f"state of {layer}, step {t}"
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
