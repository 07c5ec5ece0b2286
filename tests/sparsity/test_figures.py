"""Figures of sparse training: the numbers that are drawn."""

import numpy as np
import pytest

from lightning_plasticity.sparsity.figures import learning_rate_drops, plasticity_grid, plasticity_over_time


def records(regrow=False, pretrained=0.0):
    """Two seeds, two rates, cuts at the ends of epochs 1 and 5; the rate drops before epoch 4."""
    return [
        {"epoch": epoch, "rate": rate, "regrow": regrow, "pretrained": pretrained,
         "plasticity": 0.01 * seed - rate * (epoch == 5), "learning_rate_drops": [4] if epoch == 5 else []}
        for seed in (-1, 1) for rate in (0.5, 0.9) for epoch in (1, 5)
    ]  # fmt: skip


def test_plasticity_is_drawn_in_points_against_the_epochs_before_the_cut():
    figure = plasticity_over_time(records(), "without regeneration")
    assert figure.get_suptitle() == "without regeneration"
    (axes,) = figure.axes
    zero, half, most, drop = axes.lines
    assert list(zero.get_ydata()) == [0.0, 0.0]
    for line, rate in ((half, 0.5), (most, 0.9)):
        assert line.get_label() == f"{rate:g}"
        assert list(line.get_xdata()) == [2, 6]
        np.testing.assert_allclose(line.get_ydata(), [0.0, -100 * rate], atol=1e-9)
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(1.0), "a point above the mean of -1 and 1 points"
    assert list(drop.get_xdata()) == [4, 4]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert axes.get_legend() is None, "it would hide a line"
    assert labels == ["0.5", "0.9", "learning rate drops"]


def test_a_grid_has_a_row_for_each_sparsity_and_a_column_for_regeneration():
    shown = [r for sparsity in (0.0, 0.9) for regrow in (False, True) for r in records(regrow, sparsity)]
    figure = plasticity_grid(shown)
    assert [axes.get_title() for axes in figure.axes] == [
        f"pre-trained sparsity {sparsity}, {how} regeneration"
        for sparsity in ("0", "0.9")
        for how in ("without", "with")
    ]
    assert learning_rate_drops(shown) == [4]
    assert len(figure.legends) == 1
    figure.draw_without_rendering()
    assert all(tick == round(tick) for axes in figure.axes for tick in axes.get_xticks()), "epochs are whole"
