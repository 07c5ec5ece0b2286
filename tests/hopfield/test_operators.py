"""Sketches against dense operators."""

import numpy as np
import pytest
import torch

from lightning_plasticity.hopfield import operators
from lightning_plasticity.hopfield.operators import (
    energy,
    gram,
    hebbian_product,
    local_spectrum,
    nystrom,
    residual_eigenvalues,
    shared_basis,
)

CPU = torch.device("cpu")


def dense(x):
    x = np.asarray(x, dtype=float)
    return x.T @ x / x.size


def basis(neurons, width, seed=0):
    return shared_basis(neurons, width, seed, torch.float64, CPU)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float32, torch.float64])
def test_products_and_energies_by_tiles_equal_dense_ones(world, monkeypatch, dtype):
    monkeypatch.setattr(operators, "TILE", 300)
    x = world(3, 50).examples(37)
    q = basis(50, 8)
    if dtype == torch.bool:
        with pytest.raises(AssertionError):  # 0/1 is not +-1: the check of examples is elsewhere
            torch.testing.assert_close(hebbian_product(x > 0, q), torch.as_tensor(dense(x)) @ q)
        return
    torch.testing.assert_close(hebbian_product(x.to(dtype), q), torch.as_tensor(dense(x)) @ q)
    assert energy(x.to(dtype), q) == pytest.approx(np.trace(q.T.numpy() @ dense(x) @ q.numpy()))
    torch.testing.assert_close(gram(x.to(dtype)), x @ x.T / x.numel())


def test_the_basis_is_orthonormal_and_shared():
    first = basis(60, 12, seed=3).clone()
    torch.testing.assert_close(first.T @ first, torch.eye(12, dtype=torch.float64))
    operators._basis.cache_clear()
    assert torch.equal(first, basis(60, 12, seed=3))
    assert not torch.equal(first, basis(60, 12, seed=4))


@pytest.mark.parametrize(("neurons", "archetypes", "examples"), [(784, 9, 1000), (1000, 20, 2000)])
def test_two_passes_give_the_dense_spectrum_and_one_does_not(world, neurons, archetypes, examples):
    x = world(archetypes, neurons).examples(examples)
    truth = np.linalg.eigvalsh(dense(x))[::-1][: archetypes + 1]
    q = basis(neurons, 64)
    vectors, once = nystrom(hebbian_product(x, q), q)
    twice = nystrom(hebbian_product(x, vectors), vectors)[1]
    assert twice[:archetypes].numpy() == pytest.approx(truth[:archetypes], rel=0.02)
    if archetypes == 20:
        assert once[archetypes - 1] < 0.8 * truth[archetypes - 1]


def test_nystrom_of_a_low_rank_operator_is_exact(world):
    x = world(2, 80).examples(5)
    q = basis(80, 16)
    vectors, values = nystrom(hebbian_product(x, q), q)
    truth = np.linalg.eigvalsh(dense(x))[::-1][:5]
    assert values[:5].numpy() == pytest.approx(truth, rel=1e-6)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(vectors.shape[1], dtype=torch.float64))
    rebuilt = (vectors * values) @ vectors.T
    torch.testing.assert_close(rebuilt, torch.as_tensor(dense(x)), atol=1e-8, rtol=0)


@pytest.mark.parametrize("examples", [30, 90])
def test_a_client_s_spectrum_is_exact(world, examples):
    x = world(3, 60).examples(examples)
    found = local_spectrum(x, basis(60, 16))
    values, vectors = np.linalg.eigh(dense(x))
    assert found.bulk.outliers == 3
    few = min(examples, 60)
    assert found.eigenvalues[:few].numpy() == pytest.approx(values[::-1][:few], abs=1e-12)
    projector = vectors[:, -3:] @ vectors[:, -3:].T
    np.testing.assert_allclose(found.vectors @ found.vectors.T, projector, atol=1e-8)


@pytest.mark.parametrize("examples", [30, 90])
def test_a_large_client_is_sketched_to_the_same_outliers(world, monkeypatch, examples):
    x = world(3, 60, seed=2).examples(examples)
    known = torch.linalg.qr(torch.as_tensor(world(3, 60, seed=2).archetypes[:2].T))[0]
    exact = local_spectrum(x, basis(60, 30))
    left = residual_eigenvalues(x, exact, known)
    outside = np.eye(60) - known.numpy() @ known.numpy().T
    truth = np.linalg.eigvalsh(outside @ dense(x) @ outside)[::-1]
    assert left[:10].numpy() == pytest.approx(truth[:10], abs=1e-10)
    monkeypatch.setattr(operators, "GRAM_LIMIT", 8)
    sketched = local_spectrum(x, basis(60, 30))
    assert sketched.bulk.outliers == exact.bulk.outliers == 3
    assert sketched.eigenvalues[:3].numpy() == pytest.approx(exact.eigenvalues[:3].numpy(), rel=0.02)
    approximate = residual_eigenvalues(x, sketched, known)
    assert float(approximate[0]) == pytest.approx(float(left[0]), rel=0.05)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
def test_float32_sketches_see_the_same_outliers(world, dtype, tolerance):
    x = world(5, 300).examples(400)
    q = shared_basis(300, 64, 0, dtype, CPU)
    values = None
    for _ in range(2):
        q, values = nystrom(hebbian_product(x, q), q)
    truth = np.linalg.eigvalsh(dense(x))[::-1][:5]
    assert values[:5].numpy() == pytest.approx(truth, rel=max(tolerance, 1e-3))
