import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_plasticity.intrinsic import PoissonGammaMixture, chunks
from lightning_plasticity.intrinsic.robustness import normalised

from .conftest import same_direction


def matched(found, truth):
    """Order of the found classes that fits the true ones best."""
    orders = itertools.permutations(range(truth.num_classes))
    return list(
        min(orders, key=lambda order: float((found.weights[list(order)] - truth.weights).abs().sum()))
    )


def accuracy(classes, truth):
    """Share of stimuli whose class is right, under the better of the two namings."""
    right = float((classes == truth).double().mean())
    return max(right, 1 - right)


@pytest.mark.parametrize("seed", range(4))
def test_the_example_is_recovered_and_the_likelihood_never_falls(example, stimuli, seed):
    mixture = PoissonGammaMixture(4, 16, seed).fit(stimuli)
    order = matched(mixture, example)
    torch.testing.assert_close(mixture.prior[order], example.prior, atol=0.02, rtol=0)
    torch.testing.assert_close(mixture.mean[order], example.mean, rtol=0.04, atol=0)
    torch.testing.assert_close(mixture.shape[order], example.shape, rtol=0.12, atol=0)
    torch.testing.assert_close(mixture.weights[order], example.weights, atol=0.005, rtol=0)
    assert min(np.diff(mixture.history)) >= 0
    assert mixture.converged
    assert mixture.score(stimuli) >= example.score(stimuli)
    assert mixture.score(stimuli) == pytest.approx(mixture.history[-1], rel=1e-9)


@pytest.mark.parametrize("intensity", ["nb", "poisson", "none"])
@pytest.mark.parametrize("classes", [2, 9])
def test_the_likelihood_never_falls_with_classes_to_spare(stimuli, intensity, classes):
    mixture = PoissonGammaMixture(classes, 16, intensity=intensity, restarts=2, max_iter=60, tol=0.0)
    history = np.array(mixture.fit(stimuli[:1000]).history)
    assert (np.diff(history) >= -1e-12 * abs(history[-1])).all()


def test_float32_gives_the_same_mixture(stimuli):
    exact, single = (PoissonGammaMixture(4, 16, restarts=1).fit(y) for y in (stimuli, stimuli.float()))
    torch.testing.assert_close(single.mean, exact.mean, rtol=1e-3, atol=0)
    torch.testing.assert_close(single.weights, exact.weights, rtol=0, atol=1e-4)
    assert single.weights.dtype == torch.float64


@pytest.mark.parametrize("seed", range(4))
def test_intensity_tells_apart_what_direction_cannot(seed):
    """The point of the paper: one direction, means 40 and 160."""
    _, stimuli, classes = same_direction(seed)
    by_intensity = PoissonGammaMixture(2, 16, seed).fit(stimuli)
    assert accuracy(by_intensity.predict(stimuli), classes) >= 0.97
    flat = normalised(stimuli, 100.0)
    told = PoissonGammaMixture(2, 16, seed, intensity="none", restarts=1).fit(flat[:3000], classes[:3000])
    assert 0.44 < float((told.predict(flat[3000:]) == classes[3000:]).double().mean()) < 0.56
    untold = PoissonGammaMixture(2, 16, seed, intensity="none").fit(flat)
    assert accuracy(untold.predict(flat), classes) < 0.65


@pytest.mark.parametrize(
    ("shapes", "nb", "poisson"), [((10, 10), 0.98, 0.97), ((2, 2), 0.81, 0.81), ((2, 50), 0.98, 0.96)]
)
def test_spread_helps_where_it_differs(shapes, nb, poisson):
    truth, _, _ = same_direction()
    truth.shape = torch.tensor(shapes, dtype=torch.float64)
    stimuli, classes = truth.sample(20_000)
    poor = PoissonGammaMixture(2, 16, intensity="poisson")
    poor.parameters = truth.parameters
    assert float((truth.predict(stimuli) == classes).double().mean()) == pytest.approx(nb, abs=0.01)
    assert float((poor.predict(stimuli) == classes).double().mean()) == pytest.approx(poisson, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_online_reaches_the_likelihood_of_em(stimuli, seed):
    em = PoissonGammaMixture(4, 16, seed).fit(stimuli).score(stimuli)
    online, generator = PoissonGammaMixture(4, 16, seed), torch.Generator().manual_seed(seed)
    for _ in range(12):
        for rows in torch.randperm(4000, generator=generator).split(50):
            online.partial_fit(stimuli[rows])
    assert online.score(stimuli) > em - 0.001 * abs(em)
    assert float(online.prior.min()) > 0.05
    torch.testing.assert_close(online.weights.sum(1), torch.ones(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_partial_fit_goes_on_from_fit(stimuli):
    mixture = PoissonGammaMixture(4, 16).fit(stimuli)
    before = mixture.score(stimuli)
    mixture.partial_fit(stimuli[:100], rate=1e-3)
    assert mixture.seen == 100
    assert mixture.score(stimuli) == pytest.approx(before, abs=0.01)


def test_few_labels_fix_the_order_of_classes(example, stimuli):
    _, classes = example.sample(4000)
    labels = torch.where(torch.arange(4000) < 40, classes, -1)
    mixture = PoissonGammaMixture(4, 16, restarts=1).fit(stimuli, labels)
    assert float((mixture.predict(stimuli) == classes).double().mean()) > 0.99


def test_a_weight_of_two_is_showing_twice(stimuli):
    weight = np.where(np.arange(300) < 100, 2, 1)
    settings = {"restarts": 2, "max_iter": 100, "tol": 0.0}
    weighted = PoissonGammaMixture(2, 16, **settings).fit(stimuli[:300], sample_weight=weight)
    twice = PoissonGammaMixture(2, 16, **settings).fit(torch.cat([stimuli[:300], stimuli[:100]]))
    assert weighted.history[-1] == pytest.approx(twice.history[-1], rel=1e-6)
    torch.testing.assert_close(weighted.mean.sort().values, twice.mean.sort().values, rtol=1e-3, atol=0)


def test_bic_finds_the_number_of_classes(stimuli):
    scores = {c: PoissonGammaMixture(c, 16).fit(stimuli).bic(stimuli) for c in (3, 4, 5)}
    assert min(scores, key=scores.get) == 4


def test_arrays_and_counts_are_taken(stimuli):
    mixture = PoissonGammaMixture(2, 16, restarts=1, max_iter=3)
    expected = mixture.fit(stimuli).history
    assert mixture.fit(stimuli.numpy()).history == expected
    assert mixture.fit(stimuli.numpy().astype(np.int64)).history == expected
    small = stimuli.clamp_max(255)
    eight_bits = mixture.fit(small.to(torch.uint8)).history
    np.testing.assert_allclose(eight_bits, mixture.fit(small.float()).history, rtol=1e-12)


def test_inference_on_the_fitted_mixture(example, stimuli):
    posterior = example.predict_proba(stimuli)
    torch.testing.assert_close(posterior.sum(1), torch.ones(4000, dtype=torch.float64))
    assert torch.equal(example.predict(stimuli), posterior.argmax(1))
    given = example.class_intensity(stimuli)
    mean, mode = example.intensity(stimuli)
    torch.testing.assert_close(mean, (posterior * given.mean).sum(1))
    sure = posterior.max(1).values > 1 - 1e-12
    at = posterior.argmax(1, keepdim=True)
    torch.testing.assert_close(mode[sure], given.map.gather(1, at).squeeze(1)[sure], rtol=1e-6, atol=1e-6)
    strength = example.relative_intensity(stimuli)
    assert abs(float(strength.mean())) < 0.05
    assert float(strength.std()) == pytest.approx(1, abs=0.05)


def test_samples_follow_the_seed(example):
    assert torch.equal(example.sample(5)[0], example.sample(5)[0])
    other = example.sample(5, torch.Generator().manual_seed(9))[0]
    assert not torch.equal(example.sample(5)[0], other)


def test_dead_classes_come_back():
    generator = torch.Generator().manual_seed(0)
    plenty = torch.poisson(torch.full((500, 6), 8.0), generator=generator)
    rare = torch.poisson(torch.tensor([[0.0, 0, 0, 0, 0, 90.0]]).repeat(12, 1), generator=generator)
    data = torch.cat([plenty, rare])
    mixture = PoissonGammaMixture(3, 6, restarts=1, max_iter=100, tol=0.0).fit(data)
    assert len(mixture.predict(rare).unique()) == 1
    assert not set(mixture.predict(rare).tolist()) & set(mixture.predict(plenty).tolist())
    assert min(np.diff(mixture.history)) > -1e-6


@pytest.mark.parametrize(
    ("stimuli", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), "nan"),
        (torch.tensor([[1.0, -2.0]]), "-2.0"),
        (torch.tensor([[1.0, float("inf")]]), "inf"),
        (torch.tensor([[1e31, 0.0]]), "1e\\+31|overflow"),
        (torch.zeros(3, 2), "all zero"),
        (torch.ones(3, 5), r"\(3, 5\) must be \[n, 2\]"),
        (torch.ones(2), "stimuli\\[None\\]"),
        (torch.ones(0, 2), "n >= 1"),
    ],
)
def test_wrong_stimuli_are_refused(stimuli, message):
    with pytest.raises(ValueError, match=message):
        PoissonGammaMixture(2, 2).fit(stimuli)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_and_empty_stimuli_have_defined_results(dtype):
    stimuli = torch.tensor([[1e28, 3e28], [4e28, 1e27], [0.0, 0.0], [2.0, 5.0]], dtype=dtype)
    mixture = PoissonGammaMixture(2, 2, restarts=1, max_iter=20).fit(stimuli)
    for found in (*mixture.parameters, mixture.predict_proba(stimuli), mixture.score_samples(stimuli)):
        assert bool(found.isfinite().all())
    assert bool(mixture.intensity(stimuli).mean.isfinite().all())
    assert bool(mixture.intensity(stimuli).map.isfinite().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.tensor([0, 5])}, "-1 .. 1"),
        ({"labels": torch.tensor([0])}, "must be 2 integers"),
        ({"labels": torch.tensor([0.0, 1.0])}, "must be 2 integers"),
        ({"sample_weight": torch.tensor([1.0, -1.0])}, "non-negative"),
        ({"sample_weight": torch.tensor([0.0, 0.0])}, "positive weight"),
        ({"sample_weight": torch.tensor([1.0])}, r"must be \[2\]"),
    ],
)
def test_wrong_labels_and_weights_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PoissonGammaMixture(2, 2).fit(torch.ones(2, 2), **arguments)


@pytest.mark.parametrize("setting", [{"restarts": 0}, {"max_iter": 0}, {"tol": -1.0}, {"intensity": "gauss"}])
def test_wrong_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        PoissonGammaMixture(2, 2, **setting)
    with pytest.raises(ValueError, match="num_classes=0"):
        PoissonGammaMixture(0, 2)


class LargestStorage(TorchDispatchMode):
    """Notes the largest storage that an operation makes, in bytes."""

    def __init__(self, known):
        super().__init__()
        self.known, self.bytes = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, torch.Tensor) and part.untyped_storage().data_ptr() != self.known:
                self.bytes = max(self.bytes, part.untyped_storage().nbytes())
        return result


def test_no_temporary_is_as_large_as_the_data(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 256)
    stimuli = torch.poisson(torch.full((8192, 64), 3.0)).to(torch.uint8)
    data = chunks.Chunks.of(stimuli, 64, 8)
    params = PoissonGammaMixture(8, 64).parameters
    with LargestStorage(stimuli) as largest:
        data.e_step(params, "nb")
    assert 0 < largest.bytes <= 256 * 64 * 4
