import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from lightning_plasticity.intrinsic.distribution import log_joint
from lightning_plasticity.intrinsic.em import Learning, e_step, m_step, responsibilities
from lightning_plasticity.intrinsic.starts import dead_classes, place, revive, start, worst_explained


def reference_sums(stimuli, params):
    """The sums of an E step, one stimulus and one class after another, with SciPy."""
    weights, mean, shape, prior = (part.numpy() for part in params)
    joint = np.array(
        [
            [
                np.log(prior[c])
                + scipy.stats.nbinom.logpmf(y.sum(), shape[c], shape[c] / (shape[c] + mean[c]))
                + y @ np.log(weights[c])
                for c in range(len(mean))
            ]
            for y in stimuli.numpy()
        ]
    )
    log_likelihood = scipy.special.logsumexp(joint, axis=1)
    posterior = np.exp(joint - log_likelihood[:, None])
    energy = stimuli.numpy().sum(1)
    rise = scipy.special.digamma(energy[:, None] + shape) - scipy.special.digamma(shape)
    slope = scipy.special.polygamma(1, energy[:, None] + shape) - scipy.special.polygamma(1, shape)
    return {
        "stimuli": posterior.T @ stimuli.numpy(),
        "number": posterior.sum(0),
        "energy": energy @ posterior,
        "energy_square": energy**2 @ posterior,
        "rise": (posterior * rise).sum(0),
        "rise_slope": (posterior * slope).sum(0),
        "log_likelihood": log_likelihood.sum(),
        "weight": len(stimuli),
    }


def test_sums_equal_a_slow_reference(example, stimuli):
    sums = e_step(stimuli[:200], example.parameters)
    for name, expected in reference_sums(stimuli[:200], example.parameters).items():
        np.testing.assert_allclose(getattr(sums, name).numpy(), expected, rtol=1e-9, err_msg=name)


def test_sums_add_up_over_batches(example, stimuli):
    whole = e_step(stimuli[:300], example.parameters)
    parts = e_step(stimuli[:100], example.parameters).plus(e_step(stimuli[100:300], example.parameters))
    for one, two in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_a_weight_of_two_is_showing_twice_and_of_zero_not_at_all(example, stimuli):
    weight = torch.tensor([2.0, 1.0, 0.0])
    found = e_step(stimuli[:3], example.parameters, sample_weight=weight)
    expected = e_step(stimuli[[0, 0, 1]], example.parameters)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_labels_fix_the_class():
    posterior, log_likelihood = responsibilities(
        torch.tensor([[0.0, 1.0], [0.0, 1.0]]).double(), torch.tensor([0, -1])
    )
    torch.testing.assert_close(posterior[0], torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(log_likelihood, torch.tensor([0.0, np.logaddexp(0, 1)], dtype=torch.float64))


def test_closed_forms_of_an_m_step(example, stimuli):
    sums = e_step(stimuli, example.parameters)
    after = m_step(sums, example.parameters, Learning(smoothing=0.0))
    torch.testing.assert_close(after.weights, sums.stimuli / sums.stimuli.sum(1, keepdim=True))
    torch.testing.assert_close(after.mean, sums.energy / sums.number)
    torch.testing.assert_close(after.prior, sums.number / 4000)


def test_what_is_not_to_be_learned_stays(example, stimuli):
    sums = e_step(stimuli, example.parameters, "poisson")
    after = m_step(sums, example.parameters, Learning("poisson", learn_prior=False))
    assert torch.equal(after.prior, example.prior)
    assert torch.equal(after.shape, example.shape)


def test_a_class_without_stimuli_stays_as_it_is(example, stimuli):
    sums = e_step(stimuli, example.parameters)
    gone = sums._replace(**{
        name: getattr(sums, name).clone().index_fill_(0, torch.tensor([2]), 0.0)
        for name in ("stimuli", "number", "energy", "energy_square", "rise", "rise_slope")
    })  # fmt: skip
    after = m_step(gone, example.parameters, Learning(smoothing=0.0))
    assert torch.equal(after.weights[2], example.weights[2])
    assert after.mean[2] == example.mean[2]
    assert after.shape[2] == example.shape[2]
    assert all(bool(part.isfinite().all()) for part in after)


def test_a_start_is_near_the_mean_spread_over_the_quantiles_and_repeatable(stimuli):
    first, again = (start(stimuli, 4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.testing.assert_close(first.weights.sum(1), torch.ones(4, dtype=torch.float64))
    average = stimuli.mean(0) / stimuli.mean(0).sum()
    assert float((first.weights / average).max()) < 2.5
    quantiles = stimuli.sum(1).quantile(torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64))
    torch.testing.assert_close(first.mean.sort().values, quantiles)
    assert not torch.equal(first.weights, start(stimuli, 4, torch.Generator().manual_seed(4)).weights)


def test_labelled_stimuli_place_their_class(stimuli):
    first = start(stimuli, 4, torch.Generator().manual_seed(0))
    labels = torch.full((4000,), -1)
    labels[:3] = 2
    placed = place(first, stimuli, labels)
    few = stimuli[:3].sum(0) / stimuli[:3].sum()
    torch.testing.assert_close(placed.weights[2], (first.weights[2] + few) / 2)
    torch.testing.assert_close(placed.mean[2], stimuli[:3].sum() / 3)
    assert torch.equal(placed.weights[[0, 1, 3]], first.weights[[0, 1, 3]])
    assert torch.equal(placed.mean[[0, 1, 3]], first.mean[[0, 1, 3]])


def test_a_dead_class_is_revived_where_the_model_explains_worst(example, stimuli):
    odd = torch.zeros(1, 16, dtype=torch.float64)
    odd[0, 3] = 400
    data = torch.cat([stimuli[:500], odd])
    params = example.parameters._replace(prior=torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64))
    worst = worst_explained(data, params, "nb")
    assert torch.equal(worst[1], odd[0])
    dead = dead_classes(torch.tensor([300.0, 200.0, 0.4, 0.0]))
    assert dead.tolist() == [False, False, True, True]
    revived = revive(params, dead, worst, torch.tensor(501.0), Learning())
    assert float(revived.mean[2]) == 400
    assert float(revived.weights[2, 3]) > 0.5
    before, after = (log_joint(data, p).logsumexp(1).sum() for p in (params, revived))
    assert float(after) > float(before)
    assert float(revived.prior.sum()) == pytest.approx(1)


def test_a_revival_that_gains_nothing_is_left_out(example, stimuli):
    params = example.parameters
    dead = torch.tensor([False, False, False, True])
    well = (log_joint(stimuli[:1], params).logsumexp(1)[0], stimuli[0])
    assert revive(params, dead, well, torch.tensor(4000.0)) is params


def test_padding_is_never_the_worst_explained(example, stimuli):
    scores = log_joint(stimuli[:50], example.parameters).logsumexp(1)
    weight = torch.ones(50)
    weight[scores.argmin()] = 0
    found = worst_explained(stimuli[:50], example.parameters, "nb", weight)
    assert float(found[0]) == pytest.approx(float(scores.sort().values[1]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"intensity": "gauss"}, "intensity='gauss'"),
        ({"smoothing": -1.0}, "smoothing=-1.0"),
        ({"max_shape": 0.0}, "max_shape=0.0"),
        ({"max_shape": float("inf")}, "max_shape=inf"),
        ({"shape_update": "gradient"}, "shape_update='gradient'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    values = {"intensity": "nb", "learn_prior": True, "smoothing": 0.0, "max_shape": 1e4} | setting
    with pytest.raises(ValueError, match=message):
        Learning.checked(**values)
