"""The latent task: wake predicts, sleep generates; and the autoencoders beside it."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from lightning_plasticity.data import LatentData
from lightning_plasticity.data.latents import Signals
from lightning_plasticity.hippocampus import HippocampalFormation, latents
from lightning_plasticity.hippocampus.baselines import Autoencoder, hand_set_ring
from lightning_plasticity.hippocampus.figures import wake_and_sleep_figure
from lightning_plasticity.hippocampus.report import latent_summary

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")


@pytest.fixture(scope="module")
def learned(make_trainer):
    """Two models after half an hour."""
    model = HippocampalFormation("latents", models=2, seed=70)
    make_trainer().fit(model, LatentData(minutes=30, models=2, seed=70))
    return model


def test_learns_what_the_paper_shows(learned):
    before = HippocampalFormation("latents", models=2, seed=70)
    untrained = latents.wake_and_sleep(before)
    found = latents.wake_and_sleep(learned)
    assert float(untrained.r2_prediction.max()) < 0.3
    assert float(found.r2_prediction.min()) > 0.8
    assert float(found.r2_features.min()) > 0.98
    assert 0.1 < float(learned.error[:, 0].mean()) < 0.4
    assert 0.04 < float(learned.error[:, 1].mean()) < 0.09
    assert float(found.std[:, 0].min()) > 0.4  # asleep it does not fall silent
    minutes = [latents.wake_and_sleep(learned, seed=seed).autocorrelation_correlation for seed in range(3)]
    assert float(torch.stack(minutes).mean()) > 0.95


def test_scores_are_what_they_say(learned):
    found = latents.wake_and_sleep(learned, seconds=20.0)
    assert found.wake_apical.shape == (800, 2, 50)
    assert found.sleep_mec.shape == (400, 2, 5)
    for model in range(2):
        apical, basal = found.wake_apical[:, model].numpy(), found.wake_basal[:, model].numpy()
        slow = 1 - ((basal - apical) ** 2).sum() / ((basal - basal.mean(0)) ** 2).sum()
        assert float(found.r2_prediction[model]) == pytest.approx(slow, rel=1e-4)
    generated, data = latents.lagged(found, 0.025)
    assert generated.shape == data.shape == (160,)
    assert float(generated[0]) == pytest.approx(1.0)
    assert "R2 of the features" in latent_summary(found)
    assert len(wake_and_sleep_figure(found, 0.025).axes) == 3


def test_bad_input(learned):
    with pytest.raises(ValueError, match="must be latents"):
        latents.wake_and_sleep(HippocampalFormation("track"))
    with pytest.raises(ValueError, match="seconds=10"):
        latents.wake_and_sleep(learned, seconds=10)


def test_autoencoders_approach_principal_components():
    """Five latents fill five dimensions: a linear autoencoder of five units can explain all, as PCA does."""
    model = HippocampalFormation("latents")
    chunk = Signals([0], 1, 5, 72_000, 0.025, 1.0).take(72_000)
    features = model.features(chunk)[0][:, 0, :, 0]
    explained = PCA(5).fit(features.numpy()).explained_variance_ratio_.sum()
    assert explained > 0.999
    plain, variational = (Autoencoder(variational=kind).fit(features[:24_000]) for kind in (False, True))
    assert plain.r2(features) > 0.85
    assert variational.r2(features) > 0.85
    again = Autoencoder(variational=True).fit(features[:24_000])
    assert torch.equal(again.encoder.weight, variational.encoder.weight)


def test_a_ring_set_by_hand():
    model = HippocampalFormation("track_tuned")
    hand_set_ring(model)
    recurrent = model.weights["mec_recurrent"][0].detach().numpy()
    np.testing.assert_allclose(
        recurrent, np.roll(recurrent, (1, 1), (0, 1)), atol=1e-6
    )  # the same around each cell
    np.testing.assert_allclose(recurrent, recurrent.T, atol=1e-6)
    right, left = (model.weights[name][0].detach().numpy() for name in ("mec_right", "mec_left"))
    np.testing.assert_allclose(right, -left, atol=1e-6)
    assert right[10, 5] > 0  # a cell pushes those ahead of it
    assert right[5, 10] < 0
    assert model.eta["mec_recurrent"] == model.eta["mec_right"] == 0
