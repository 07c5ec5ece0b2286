"""Figures of what happens in the dark: the numbers that are drawn."""

import pytest
import torch

from lightning_plasticity.figures import GREY
from lightning_plasticity.hippocampus.figures import bump_speed_figure, dark_error_figure, darkness_figure


@pytest.mark.parametrize(
    ("tests", "most", "drawn"),
    [(1, 5, [1]), (2, 5, [1, 2]), (3, 5, [1, 2, 3]), (9, 5, [1, 3, 5, 7, 9]), (7, 3, [1, 4, 7]), (4, 1, [4])],
)
def test_the_last_test_of_a_run_is_always_drawn(tests, most, drawn):
    history = [(float(minute), torch.rand(2, 8)) for minute in range(1, tests + 1)]
    *lines, chance = dark_error_figure(history, 0.1, 1.0, most).axes[0].lines
    assert [line.get_label() for line in lines] == [f"after {minute} min" for minute in drawn]
    assert list(lines[-1].get_ydata()) == pytest.approx(history[-1][1].mean(0).tolist())
    assert chance.get_label() == "chance"


def test_chance_is_a_quarter_of_the_track_and_no_curve_is_cut():
    axes = darkness_figure({"lost": torch.full((2, 8), 1.7)}, 0.1, 4.0, "In the dark").axes[0]
    assert list(axes.lines[1].get_ydata()) == [1.0, 1.0]
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 1.7
    assert darkness_figure({"a": torch.zeros(1, 8)}, 0.1, 1.0, "").axes[0].get_ylim() == (0, 0.35)


def test_a_preset_has_one_colour_in_both_figures():
    names = ["track", "remap", "tuned"]
    dark = darkness_figure({name: torch.rand(2, 8) for name in names}, 0.1, 1.0, "").axes[0]
    bump = bump_speed_figure(torch.linspace(-1, 1, 5), {name: torch.rand(2, 5) for name in names}).axes[0]
    first, second = ({line.get_label(): line.get_color() for line in axes.lines} for axes in (dark, bump))
    assert [first[name] for name in names] == [second[name] for name in names]
    assert first["chance"] == second["equal"] == GREY
