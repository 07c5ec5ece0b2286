from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_plasticity.data import IntensityData
from lightning_plasticity.intrinsic import IntrinsicPlasticityMixture
from lightning_plasticity.intrinsic.figures import (
    contrast_figure,
    evenly_spread,
    intensities_over_time,
    intensity_figure,
    weights_figure,
)
from lightning_plasticity.intrinsic.naming import label_posterior
from lightning_plasticity.intrinsic.robustness import (
    accuracy_over_contrast,
    naming_by,
    normalised,
    normalising_mixture,
)


def test_normalised_stimuli_have_one_energy_and_their_direction():
    found = normalised(torch.tensor([[1.0, 3.0], [30.0, 10.0], [0.0, 0.0]]), 8.0)
    assert found.tolist() == [[2.0, 6.0], [6.0, 2.0], [4.0, 4.0]]


def test_a_normalising_mixture_finds_the_places_but_not_the_intensities():
    data = IntensityData("bumps")
    data.setup()
    stimuli, labels = data.labelled_stimuli()
    flat = normalised(stimuli, 100.0)
    mixture = normalising_mixture(flat, IntrinsicPlasticityMixture(8, 144, warmup_epochs=2), 4, 50)
    counts = naming_by(mixture, flat, labels, 8)
    test, truth = data.stimuli("test")
    named = label_posterior(mixture.predict_proba(normalised(test, 100.0)), counts).argmax(1)
    assert float((named // 2 == truth // 2).double().mean()) > 0.97
    assert float((named == truth).double().mean()) < 0.6


def test_accuracy_is_taken_at_each_contrast():
    def draw(contrast):
        return torch.full((4, 1), contrast), torch.tensor([0, 1, 1, 1])

    methods = {
        "bright is 1": lambda y: torch.cat([1 - (y > 1).double(), (y > 1).double()], dim=1),
        "always 0": lambda y: torch.tensor([[1.0, 0.0]]).repeat(len(y), 1),
    }
    found = accuracy_over_contrast(methods, draw, [0.5, 2.0])
    assert found == {"bright is 1": [0.25, 0.75], "always 0": [0.25, 0.25]}


def test_the_contrast_figure_shows_the_numbers():
    figure = contrast_figure([0.5, 1.0], {"a": [0.2, 0.4], "b": [0.5, 0.5]}, chance=0.1)
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [20, 40])
    assert axes.get_ylabel() == "accuracy (%)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "chance"]


@pytest.mark.parametrize("named", [True, False])
def test_intensity_panels_hold_a_density_over_the_histogram(example, stimuli, named):
    labels = example.predict(stimuli)
    counts = torch.eye(4, dtype=torch.float64) * 9 if named else torch.zeros(4, 0)
    figure = intensity_figure(example.parameters, counts, stimuli.sum(1), labels)
    panels = figure.axes if named else figure.axes[:1]
    assert len(figure.axes) == (4 if named else 1)
    for axes in panels:
        x, y = axes.lines[0].get_data()
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.06)
        bars = sum(patch.get_width() * patch.get_height() for patch in axes.patches)
        assert bars == pytest.approx(1, abs=1e-6)


def test_weights_are_drawn_in_the_order_of_the_prior(example):
    figure = weights_figure(example.parameters, (4, 4), torch.zeros(4, 0))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["30", "60", "60", "150"]
    assert "label" not in figure.get_suptitle()


def test_weights_without_a_label_are_explained(example):
    counts = torch.eye(4, dtype=torch.float64) * 9
    assert "no label" not in weights_figure(example.parameters, (4, 4), counts).get_suptitle()
    counts[2] = 0
    figure = weights_figure(example.parameters, (4, 4), counts)
    assert sum(":" in axes.get_title() for axes in figure.axes) == 3
    assert "no label: answers for none" in figure.get_suptitle()


def test_classes_that_are_not_coloured_share_an_entry(example):
    trace = SimpleNamespace(seen=[0, 10], mean=[example.mean, example.mean])
    for chosen, others in (([0, 3], ["other classes"]), ([0, 1, 2, 3], [])):
        figure = intensities_over_time(trace, chosen)
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names == [*others, *(f"class {index}" for index in chosen)]


def test_classes_drawn_over_time_are_in_use_and_spread(example):
    assert evenly_spread(example.parameters)[0] == 0
    assert evenly_spread(example.parameters, classes=2) == [0, 3]
    unused = example.parameters._replace(prior=torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64))
    assert 3 not in evenly_spread(unused)
