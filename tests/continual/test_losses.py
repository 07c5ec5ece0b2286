"""The losses against slow NumPy versions that form every matrix, and by what a step on them does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.continual import (
    CosineHead,
    alignment_loss,
    cross_classification_loss,
    transfer_loss,
)
from lightning_plasticity.continual.losses import transfer_terms


def pair(batch, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, width, generator=generator, dtype=torch.float64)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def slow_terms(s, p, standardize=False, mean=False):
    """The d x d matrix, entry by entry."""
    if standardize:
        s, p = ((x - x.mean(0)) / x.std(0) for x in (s, p))
    else:
        s, p = unit(s), unit(p)
    width = s.shape[1]
    matrix = np.zeros((width, width))
    for a, b in zip(s, p, strict=True):
        matrix += np.outer(a, b) / len(s)
    on = off = 0.0
    for j in range(width):
        for k in range(width):
            if j == k:
                on += (matrix[j, k] - 1) ** 2
            else:
                off += matrix[j, k] ** 2
    return (on / width, off / (width * (width - 1))) if mean else (on, off)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(2, 9), width=st.integers(2, 9), seed=st.integers(0, 99), standardize=st.booleans())
def test_transfer_terms_equal_the_matrix(batch, width, seed, standardize):
    """On both sides of batch = width, where the way of computing changes."""
    s, p = pair(batch, width, seed)
    for reduction in ("sum", "mean"):
        got = transfer_terms(s, p, reduction, standardize)
        expected = slow_terms(s.numpy(), p.numpy(), standardize, reduction == "mean")
        np.testing.assert_allclose([float(term) for term in got], expected, rtol=1e-9, atol=1e-12)


def test_transfer_loss_of_wide_features_makes_no_large_matrix():
    """d x d would be 10 GB here."""
    s, p = torch.randn(2, 4, 50_000)
    assert transfer_loss(s, p, 1.0, 1.0).isfinite()


@pytest.mark.parametrize("batch", [48, 256])
def test_the_published_sizes_of_the_terms(batch):
    """Of identical random unit features of width 768: L_diag is about d - 2, nothing like Barlow Twins'."""
    f = torch.randn(batch, 768, generator=torch.Generator().manual_seed(0))
    on, off = transfer_terms(f, f)
    assert float(on) == pytest.approx(766.0, abs=0.1)
    assert float(off) == pytest.approx(1 / batch, rel=0.05)


def test_a_step_on_the_diagonal_raises_the_cosine_and_one_on_the_redundancy_lowers_it_off_the_diagonal():
    s, p = pair(6, 8)
    for weights, sign in (((1.0, 0.0), 1), ((0.0, 1.0), -1)):
        x = s.clone().requires_grad_()
        transfer_loss(x, p, *weights).backward()
        before, after = x.detach(), (x - 0.1 * x.grad / x.grad.norm()).detach()
        if sign > 0:
            cosine = [torch.cosine_similarity(y, p).mean() for y in (before, after)]
            assert cosine[1] > cosine[0]
        else:
            assert transfer_terms(after, p)[1] < transfer_terms(before, p)[1]


def test_no_gradient_reaches_the_guides():
    s, p = (x.requires_grad_() for x in pair(4, 3))
    (transfer_loss(s, p, 1.0, 1.0) + alignment_loss(s, p)).backward()
    assert p.grad is None
    assert s.grad.abs().sum() > 0


def test_alignment():
    s, p = pair(5, 7)
    cosine = (unit(s.numpy()) * unit(p.numpy())).sum(1)
    assert float(alignment_loss(s, p)) == pytest.approx((1 - cosine).mean())
    assert float(alignment_loss(s, p, "sum")) == pytest.approx((1 - cosine).sum())


def slow_cross(head_rows, scale, rows, features, targets):
    """Mean cross-entropy of a cosine head over pseudo-samples and samples."""
    total = 0.0
    samples = unit(np.concatenate([rows, features]))
    for x, y in zip(samples, targets, strict=True):
        z = scale * unit(head_rows) @ x
        total += np.log(np.exp(z).sum()) - z[y]
    return total / len(samples)


def heads(width, classes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    made = CosineHead(width, classes, 4.0), CosineHead(width, classes, 6.0, trainable=False)
    for head in made:
        head.set_rows(0, torch.randn(classes, width, generator=generator))
    return made


def test_cross_classification():
    fast_head, slow_head = heads(5, 6)
    fast, slow = (x.float() for x in pair(3, 5))
    labels = torch.tensor([3, 2, 3])  # of 4 classes seen, 2 of them old; rows 4 and 5 are of later sessions
    got = cross_classification_loss(fast, slow, labels, fast_head, slow_head, 2, 4)
    targets = [0, 1, 3, 2, 3]
    w_f, w_s = fast_head.weight.detach().numpy()[:4], slow_head.weight.numpy()[:4]
    expected = (
        slow_cross(w_f, 4.0, w_s[:2], slow.numpy(), targets),
        slow_cross(w_s, 6.0, w_f[:2], fast.numpy(), targets),
    )
    np.testing.assert_allclose([float(term.detach()) for term in got], expected, rtol=1e-5)


def test_what_cross_classification_teaches():
    """One term the fast head alone; the other the features and the fast head's old rows."""
    fast_head, slow_head = heads(5, 6)
    fast, slow = (x.float().requires_grad_() for x in pair(3, 5))
    one, other = cross_classification_loss(fast, slow, torch.tensor([3, 2, 3]), fast_head, slow_head, 2, 4)
    one.backward(retain_graph=True)
    assert fast.grad is slow.grad is None
    assert fast_head.scale.grad.abs() > 0
    fast_head.zero_grad()
    other.backward()
    assert fast.grad.abs().sum() > 0
    assert slow.grad is None
    changed = fast_head.weight.grad.abs().sum(1) > 0
    assert changed.tolist() == [True, True, False, False, False, False]


def test_shares_of_two_processes_make_one():
    """The mean of both processes' losses is that of one process with the whole batch."""
    fast_head, slow_head = heads(5, 6)
    fast, slow = (x.float() for x in pair(4, 5))
    labels = torch.tensor([3, 2, 3, 2])
    whole = cross_classification_loss(fast, slow, labels, fast_head, slow_head, 2, 4)
    parts = [
        cross_classification_loss(fast[r::2], slow[r::2], labels[r::2], fast_head, slow_head, 2, 4, 0.5)
        for r in range(2)
    ]
    for term in range(2):
        torch.testing.assert_close((parts[0][term] + parts[1][term]) / 2, whole[term])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transfer_loss(torch.ones(2, 3), torch.ones(2, 4)), r"\(2, 3\) and pretrained \(2, 4\)"),
        (lambda: transfer_loss(torch.ones(2, 3), torch.ones(2, 3), reduction="max"), "reduction='max'"),
        (lambda: alignment_loss(torch.ones(2, 3), torch.ones(3, 3)), r"fast \(2, 3\)"),
        (lambda: alignment_loss(torch.ones(2, 3), torch.ones(2, 3), "none"), "reduction='none'"),
        (lambda: CosineHead(3, 0), "num_classes=0"),
        (lambda: CosineHead(3, 2, scale=0.0), "scale=0.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
