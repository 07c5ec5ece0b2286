"""Trained models that several tests look at; training one takes a second."""

import warnings
from functools import partial

import lightning.pytorch as L
import pytest

from lightning_plasticity.data import TrackData
from lightning_plasticity.hippocampus import HippocampalFormation, analysis


def trainer(*callbacks, **options):
    """A Trainer that prints and writes nothing unless it is asked to."""
    quiet = {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
    }  # fmt: skip
    return L.Trainer(callbacks=list(callbacks), **(quiet | options))


@pytest.fixture(scope="session")
def make_trainer():
    """Makes quiet Trainers."""
    return trainer


@pytest.fixture(scope="session")
def tracker(make_trainer):
    """Two models of the tuned preset after a quarter of an hour on the track."""
    model = HippocampalFormation("track_tuned", models=2, seed=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer().fit(model, TrackData(minutes=15, models=2, seed=50))
    return model


@pytest.fixture
def quick_decoder(monkeypatch):
    """Decoders are fitted on twelve seconds, where it is of no matter how good they are."""
    monkeypatch.setattr(analysis, "fit_decoder", partial(analysis.fit_decoder, minutes=0.2))
