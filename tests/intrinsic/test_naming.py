import numpy as np
import torch

from lightning_plasticity.intrinsic.distribution import Parameters
from lightning_plasticity.intrinsic.naming import (
    best_label,
    class_names,
    label_counts,
    label_intensity,
    label_posterior,
)


def test_counts_are_sums_of_activities_by_label():
    posterior = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    found = label_counts(posterior, torch.tensor([2, 0, -1]), 3)
    np.testing.assert_allclose(found.numpy(), [[0.2, 0, 0.9], [0.8, 0, 0.1]], rtol=1e-6)


def test_names_and_label_probabilities():
    counts = torch.tensor([[8.0, 2.0], [0.0, 4.0], [0.0, 0.0]])
    names = class_names(counts)
    torch.testing.assert_close(names.sum(1), torch.ones(3, dtype=torch.float64))
    np.testing.assert_allclose(names[2].numpy(), [8 / 14, 6 / 14], rtol=1e-6)
    found = label_posterior(torch.tensor([[0.5, 0.5, 0.0]]), counts)
    np.testing.assert_allclose(found.numpy(), [[0.4, 0.6]], rtol=1e-6)
    assert best_label(counts).tolist() == [0, 1, -1]


def test_intensity_of_a_label_is_that_of_its_mixture():
    counts = torch.tensor([[9.0, 1.0], [9.0, 0.0], [0.0, 9.0]])
    params = Parameters(*(torch.tensor(v, dtype=torch.float64) for v in
                          ([[1.0]] * 3, [10.0, 30.0, 70.0], [4.0, 9.0, 6.0], [0.3, 0.1, 0.6])))  # fmt: skip
    mean, shape = label_intensity(params, counts)
    rng = np.random.default_rng(0)
    first = rng.random(400_000) < 0.75
    gains = np.where(first, rng.gamma(4, 10 / 4, 400_000), rng.gamma(9, 30 / 9, 400_000))
    np.testing.assert_allclose(mean.numpy(), [gains.mean(), 70], rtol=0.01)
    np.testing.assert_allclose(shape.numpy(), [gains.mean() ** 2 / gains.var(), 6], rtol=0.02)


def test_a_label_without_a_class_has_no_intensity():
    params = Parameters(*(torch.ones(1, 1), torch.ones(1), torch.ones(1), torch.ones(1)))
    assert label_intensity(params, torch.tensor([[5.0, 0.0]]))[0].isnan().tolist() == [False, True]
