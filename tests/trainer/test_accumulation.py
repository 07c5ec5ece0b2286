"""Gradient accumulation: growth is chosen as from one large batch, one update for each optimizer step."""

import pytest
import torch

from lightning_plasticity.callbacks import GraNet, RigL
from tests.trainer.modules import ConvNet, Tape, adamw, loader, make_trainer, sgd

LARGE = 48


class Double(ConvNet):
    """In double precision only rounding of the last bits tells one large batch from its parts."""

    def __init__(self, **options):
        super().__init__(**options)
        self.double()

    def forward(self, images):
        return super().forward(images.double())


def fit(sparse, parts, make=sgd, epochs=6, count=4 * LARGE, **options):
    """Train on batches of 48, each in so many parts."""
    module, tape = Double(optimizer=make), Tape()
    trainer = make_trainer([tape, sparse], max_epochs=epochs, accumulate_grad_batches=parts, **options)
    trainer.fit(module, loader(count, LARGE // parts))
    return module, tape, trainer


METHODS = {
    "granet": lambda: GraNet(0.8, update_every=3, prune_until=10),
    "filters": lambda: GraNet(0.5, update_every=3, prune_until=10, granularity="filter"),
    "rigl": lambda: RigL(0.6, update_every=2),
    "2:4": lambda: GraNet(
        0.5, update_every=3, prune_until=10, granularity="2:4", include=["conv2", "conv3", "head"]
    ),
}


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_parts_grow_like_one_large_batch(method, parts):
    large, small = METHODS[method](), METHODS[method]()
    reference, wanted, _ = fit(large, 1)
    module, tape, trainer = fit(small, parts)
    assert len(tape.frames) == len(wanted.frames) == trainer.global_step == 24
    for step, (one, other) in enumerate(zip(wanted.frames, tape.frames, strict=True), 1):
        for name, mask in one.masks.items():
            assert torch.equal(mask, other.masks[name]), f"{name} after step {step}"
    for name, weight in reference.named_parameters():
        torch.testing.assert_close(module.get_parameter(name), weight, rtol=0, atol=1e-10)
    assert small._engines[0][1].history == large._engines[0][1].history


def test_growth_reads_the_whole_sum_and_not_the_last_part():
    """The last part of each batch alone would have chosen otherwise, so the tests above can fail."""
    sparse, last = RigL(0.6, update_every=2), RigL(0.6, update_every=2)
    fit(sparse, 3)

    class OnlyLast(Double):
        def on_before_backward(self, loss):
            for parameter in self.parameters():
                parameter.grad = None

    trainer = make_trainer([last], max_epochs=6, accumulate_grad_batches=3)
    trainer.fit(OnlyLast(), loader(4 * LARGE, LARGE // 3))
    assert any(not torch.equal(mask, last.masks[name]) for name, mask in sparse.masks.items())


def test_updates_count_optimizer_steps_also_of_an_incomplete_window():
    """14 batches in threes are 5 optimizer steps an epoch, the last one from 2 batches."""
    sparse = GraNet(0.8, update_every=4, prune_until=9)
    _, tape, trainer = fit(sparse, 3, adamw, epochs=3, count=14 * 16)
    assert trainer.global_step == len(tape.frames) == sparse._engines[0][1].step == 15
    assert [step for step, _ in sparse._engines[0][1].history] == [0, 4, 8, 9, 12]
    changed = [
        step
        for step, (a, b) in enumerate(zip(tape.frames, tape.frames[1:], strict=False), 2)
        if any(not torch.equal(a.masks[name], b.masks[name]) for name in a.masks)
    ]
    assert set(changed) <= {4, 8, 9, 12}
    assert 8 in changed


def test_the_schedule_lies_over_optimizer_steps():
    """Fractions of the run count steps, not batches: pruning until half of it ends at step 12 of 24."""
    sparse = GraNet(0.8, update_every=4, prune_until=0.5)
    _, tape, trainer = fit(sparse, 3)
    assert trainer.global_step == 24
    density = [sum(int(m.sum()) for m in f.masks.values()) for f in tape.frames]
    total = sum(mask.numel() for mask in sparse.masks.values())
    assert density[10] > round(0.2 * total) == density[11] == density[-1]
