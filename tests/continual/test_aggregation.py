"""The mixture of logits, and its limits."""

import numpy as np
import pytest
import torch

from lightning_plasticity.continual import aggregate


def logits(seed=0):
    return list(3 * torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(seed)))


def entropy(z):
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return -(p * np.log(p)).sum(1)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 100.0])
def test_formula(gamma):
    pair = logits()
    mixed, weights = aggregate(pair, gamma)
    h = np.stack([entropy(z.double().numpy()) for z in pair])
    w = np.exp(-gamma * (h - h.min(0)))
    w /= w.sum(0)
    np.testing.assert_allclose(weights.numpy(), w, atol=2e-4)
    expected = sum(part[:, None] * z.numpy() for part, z in zip(w, pair, strict=True))
    np.testing.assert_allclose(mixed.numpy(), expected, atol=2e-3)


def test_gamma_zero_is_the_plain_average():
    pair = logits()
    torch.testing.assert_close(aggregate(pair, 0.0)[0], (pair[0] + pair[1]) / 2)


def test_a_large_gamma_takes_the_surer_learner():
    pair = logits()
    surer = entropy(pair[0].numpy()) < entropy(pair[1].numpy())
    expected = torch.where(torch.from_numpy(surer)[:, None], *pair)
    torch.testing.assert_close(aggregate(pair, 1e6)[0], expected)


def test_half_precision_is_widened():
    assert aggregate([z.half() for z in logits()], 100.0)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("pair", "message"), [([], "give one"), ([torch.ones(2, 3), torch.ones(2, 4)], "shapes")]
)
def test_bad_input(pair, message):
    with pytest.raises(ValueError, match=message):
        aggregate(pair)
