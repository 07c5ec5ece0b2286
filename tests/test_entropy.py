"""The entropies, against SciPy and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from lightning_plasticity.entropy import binary_entropy, entropy_weights, predictive_entropy, sign_agreement


@given(st.floats(0, 1))
def test_binary_entropy_is_scipys(p):
    mine = float(binary_entropy(torch.tensor(p, dtype=torch.float64)))
    assert mine == pytest.approx(scipy_entropy([p, 1 - p], base=2), abs=1e-12)


def test_binary_entropy_at_the_ends_and_beyond():
    assert binary_entropy(torch.tensor([0.0, 1.0, -1e-7, 1 + 1e-7])).tolist() == [0, 0, 0, 0]
    assert binary_entropy(torch.tensor(math.nan)).isnan()


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8))
def test_predictive_entropy_is_scipys(values):
    p = np.exp(np.array(values) - max(values))
    mine = float(predictive_entropy(torch.tensor(values, dtype=torch.float64)))
    assert mine == pytest.approx(scipy_entropy(p / p.sum()), abs=1e-10)


def test_predictive_entropy_normalized():
    logits = torch.zeros(3, 7)
    torch.testing.assert_close(predictive_entropy(logits, normalize=True), torch.ones(3))
    assert predictive_entropy(torch.zeros(2, 1), normalize=True).tolist() == [0, 0]
    impossible = torch.tensor([0.0, 0.0, -math.inf])
    assert float(predictive_entropy(impossible)) == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="no class"):
        predictive_entropy(torch.zeros(3, 0))


def test_predictive_entropy_has_a_finite_gradient():
    logits = torch.tensor([[200.0, 0.0, -200.0], [0.0, 0.0, 0.0]], requires_grad=True)
    predictive_entropy(logits).sum().backward()
    assert logits.grad.isfinite().all()


def test_sign_agreement_leaves_zeros_out():
    first = torch.tensor([1.0, 1.0, 0.0, -1.0, -3.0])
    second = torch.tensor([2.0, -2.0, 5.0, 0.0, -1.0])
    assert float(sign_agreement(first, second)) == pytest.approx(2 / 3)
    assert sign_agreement(torch.zeros(3), torch.ones(3)).isnan()
    tiny = torch.full((2,), 1e-30)
    assert float(sign_agreement(tiny, tiny)) == 1, "products that underflow still agree"
    with pytest.raises(ValueError, match="differ"):
        sign_agreement(torch.zeros(3), torch.zeros(4))


@given(st.integers(1, 4), st.integers(1, 5), st.floats(0, 100))
def test_entropy_weights_sum_to_one_and_follow_the_order_of_entropies(learners, classes, gamma):
    logits = torch.randn(learners, 6, classes, generator=torch.Generator().manual_seed(classes))
    weights, entropies = entropy_weights(logits, gamma), predictive_entropy(logits)
    torch.testing.assert_close(weights.sum(0), torch.ones(6))
    surest = weights.gather(0, entropies.argmin(0, keepdim=True))[0]
    assert bool((surest >= weights.max(0).values - 1e-6).all())


def test_entropy_weights_at_the_limits():
    logits = torch.tensor([[[4.0, 0.0]], [[0.5, 0.0]]])
    assert entropy_weights(logits, 0.0).flatten().tolist() == [0.5, 0.5]
    assert entropy_weights(logits, 1e4).flatten().tolist() == [1, 0]
    for gamma in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="gamma"):
            entropy_weights(logits, gamma)
