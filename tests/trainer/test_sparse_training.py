"""SparseTraining under a Trainer and in a plain loop: every update against the NumPy restatement."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_plasticity.callbacks.presets import GradualPruning
from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.schedules import Cosine, Cubic
from lightning_plasticity.sparsity.sparsifier import Sparsifier
from tests.sparsity.reference import best, best_per_layer, cosine, cubic
from tests.trainer.following import EVERY, SPARSITY, STEPS, UNTIL, dense_masks, fit, follow, granet, restated
from tests.trainer.modules import (
    ConvNet,
    Tape,
    adamw,
    loader,
    sgd,
)


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
    assert reference.updates == 21
    total = sum(mask.numel() for mask in callback.masks.values())
    for t, counts in reference.history:
        assert sum(counts) == round(total * (1 - cubic(t, 0.0, SPARSITY, 0, UNTIL)))
    assert callback.density == round(total * (1 - SPARSITY)) / total
    if ties:
        active_zeros = sum(
            int((frame.masks[n] & (frame.weights_after[n] == 0)).sum())
            for frame in tape.frames
            for n in names
        )
        assert active_zeros > 1000
        some = tape.frames[12].weights["conv3.weight"].abs()
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
    first = tape.frames[
        4
    ]  # the first update ranks |w g|, both read before the step; seen from the net itself
    names = list(named.masks)
    earlier = tape.frames[3].weights_after
    scores = [(earlier[n] * first.gradients[n]).abs().numpy() for n in names]
    reference = restated(dense_masks(module, names))
    pruned = best(scores, reference.masks, reference.targets(5))
    survivors = best_per_layer(
        scores, pruned, [int(m.sum()) - int(np.ceil(reference.ratio(5) * m.sum())) for m in pruned]
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
    module.bad_steps, module.value = (15, 29, 30, 45), value
    with pytest.warns(UserWarning, match="gradients are not finite, masks stay as they are") as warned:
        fit(module, [tape, callback])
    assert sum("masks stay as they are" in str(warning.message) for warning in warned) == 4
    names = list(callback.masks)
    reference = restated(dense_masks(module, names))
    follow(tape, reference, names)
    engine = callback._engines[0][1]
    assert (engine.skipped, engine.updates) == (reference.skipped, reference.updates) == (4, 18)
    assert torch.equal(tape.frames[14].masks["conv1.weight"], tape.frames[13].masks["conv1.weight"])
    total = sum(mask.numel() for mask in callback.masks.values())
    wanted = round(total * (1 - SPARSITY))
    active = [sum(int(m.sum()) for m in frame.masks.values()) for frame in tape.frames]
    assert active[29] > wanted, "steps 29 and 30 were skipped"
    assert active[30:] == [wanted] * (STEPS - 30), "step 31 reaches the target"


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
