"""Published and promised numbers over seeds, in minutes: `pytest -m published tests/hippocampus`."""

import pytest
import torch

from lightning_plasticity.callbacks import Remap
from lightning_plasticity.data import LatentData, TrackData
from lightning_plasticity.hippocampus import HippocampalFormation, analysis, latents
from lightning_plasticity.metrics.ring_score import aligned_profile

pytestmark = [
    pytest.mark.published,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
]


def errors_in_the_dark(model, seconds):
    return (
        analysis.errors_at(analysis.walk_into_the_dark(model, seconds).error, 0.025, (1, 20, 60))
        .mean(0)
        .tolist()
    )


@pytest.mark.parametrize(("preset", "limit"), [("track", 0.12), ("remap", 0.10)])
def test_the_authors_track(make_trainer, preset, limit):
    model = HippocampalFormation(preset, models=3)
    make_trainer().fit(model, TrackData(minutes=30, models=3))
    assert 0.035 < float(model.error[:, 0].mean()) < 0.055
    assert 0.018 < float(model.error[:, 1].mean()) < 0.038
    assert int(analysis.live_cells(model).min()) > 50
    early, late = errors_in_the_dark(model, 20.0)
    assert early < limit
    assert late > 0.18  # chance: "20 s or more" is not reproduced with these settings
    for index in range(3):
        ring = analysis.sorted_ring(model, index)
        profile = aligned_profile(ring.recurrent)
        middle = len(profile) // 2
        assert abs(int(profile.argmax()) - middle) <= 2
        assert float(profile[middle + 10 : middle + 20].mean()) < 0
        offsets = torch.arange(len(profile)) - middle
        right, left = (aligned_profile(part).clamp_min(0) for part in (ring.right, ring.left))
        assert float((offsets * right).sum()) < 0 < float((offsets * left).sum())


def test_ours_tracks_for_a_minute(make_trainer):
    model = HippocampalFormation("track_tuned", models=10)
    make_trainer().fit(model, TrackData(minutes=60, models=10))
    early, at_20, at_60 = errors_in_the_dark(model, 60.0)
    assert early < 0.015
    assert at_20 < 0.05
    assert at_60 < 0.08


def test_ours_transfers(make_trainer):
    callback = Remap(60)
    make_trainer(callback).fit(
        HippocampalFormation("remap_anchored", models=10), TrackData(minutes=90, models=10)
    )
    assert int((callback.errors["after"] <= 1.2 * callback.errors["before"]).sum()) >= 9


def test_latents(make_trainer):
    model = HippocampalFormation("latents", models=10)
    make_trainer().fit(model, LatentData(minutes=30, models=10))
    assert 0.15 < float(model.error[:, 0].mean()) < 0.35
    assert 0.05 < float(model.error[:, 1].mean()) < 0.08
    found = latents.wake_and_sleep(model)
    assert float(found.r2_prediction.mean()) > 0.85
    assert float(found.r2_features.mean()) > 0.98
    assert float(found.autocorrelation_correlation.mean()) > 0.95
