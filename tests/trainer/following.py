"""Runs to follow by the NumPy restatement, step by step and bit for bit."""

import numpy as np
import torch

from lightning_plasticity.callbacks.presets import GraNet
from tests.sparsity.reference import Family, cosine, cubic
from tests.trainer.modules import loader, make_trainer

STEPS, EVERY, UNTIL, SPARSITY = 100, 5, 29, 0.83
"""20 updates on the beat and one at step 29, where pruning ends off the beat."""


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


def equal_weights(one, other):
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
