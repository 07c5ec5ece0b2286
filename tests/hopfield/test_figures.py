import pytest
import torch

from lightning_plasticity.figures import GREY, VERMILLION
from lightning_plasticity.hopfield import FederationConfig, federate
from lightning_plasticity.hopfield.figures import (
    archetypes_figure,
    magnetisation_figure,
    plasticity_figure,
    spectrum_figure,
)


@pytest.fixture(scope="module")
def memory():
    generator = torch.Generator().manual_seed(0)
    truth = torch.where(torch.rand(3, 100, generator=generator) < 0.5, -1.0, 1.0)
    flips = torch.where(torch.rand(120, 100, generator=generator) < 0.1, -1.0, 1.0)
    return federate([truth.repeat(40, 1) * flips], config=FederationConfig(sketch_rank=20))


def test_the_spectrum_shows_what_stands_out(memory):
    figure = spectrum_figure(memory)
    outliers, bulk, edge = figure.axes[0].lines
    torch.testing.assert_close(torch.tensor(outliers.get_ydata()), memory.eigenvalues[:3] * 100)
    assert min(outliers.get_ydata()) > edge.get_ydata()[0] > max(bulk.get_ydata())
    assert edge.get_ydata()[0] == pytest.approx(100 * memory.edge)
    assert (outliers.get_color(), bulk.get_color()) == (VERMILLION, GREY)
    assert [len(outliers.get_xdata()), outliers.get_xdata()[0], bulk.get_xdata()[0]] == [3, 1, 4]


def test_archetypes_are_images_with_bright_strokes(memory):
    figure = archetypes_figure(memory, (10, 10))
    images = [axes.images[0].get_array() for axes in figure.axes]
    assert len(images) == 3
    for image, state in zip(images, memory.archetypes, strict=True):
        assert abs(int((image.reshape(-1) * state.numpy()).sum())) == 100
        assert image.sum() <= 0
    assert all(0.9 < float(axes.get_title()) <= 1 for axes in figure.axes)
    assert len(archetypes_figure(memory, (1, 100)).axes) == 3
    assert len(archetypes_figure(memory, (10, 10), most=2).axes) == 2


def test_magnetisation_begins_where_an_archetype_is_seen():
    overlaps = torch.tensor([[1.0, torch.nan], [0.9, 0.5], [0.9, 1.0]])
    upper, lower = magnetisation_figure([0, 1, 3], overlaps, [1, 1, 1, 2]).axes
    first, second = upper.lines
    assert list(first.get_ydata()) == pytest.approx([1.0, 0.9, 0.9])
    assert list(second.get_xdata()) == [0, 1, 3]
    assert str(second.get_ydata()[0]) == "nan"
    found, true = lower.lines
    assert list(found.get_ydata()) == [1, 1, 1, 2]
    assert list(true.get_ydata()) == [1, 2, 2]


def test_a_single_round_is_seen():
    for axes in magnetisation_figure([0], torch.tensor([[1.0, 0.5]]), [1]).axes:
        assert len(axes.lines) == 2
        assert all(line.get_marker() not in ("", "None") for line in axes.lines)


def test_the_legend_shows_dashes_whole():
    upper, _ = magnetisation_figure(range(4), torch.rand(4, 10), [10] * 4).axes
    assert {line.get_linewidth() for line in upper.get_legend().get_lines()} == {1.6}
    assert {line.get_linestyle() for line in upper.get_legend().get_lines()} == {"-", "--"}


def test_plasticity_is_drawn_for_those_who_took_part():
    w = torch.tensor([[1.0, torch.nan, 0.0], [0.5, torch.nan, 0.0]])
    upper, lower = plasticity_figure(torch.zeros_like(w), w, [0, 2]).axes
    assert [list(line.get_ydata()) for line in lower.lines] == [[1.0, 0.5], [0.0, 0.0]]
    assert [text.get_text() for text in lower.get_legend().get_texts()] == ["0", "2"]
    assert len(upper.lines) == 2


def test_many_lines_stay_apart():
    many = torch.rand(4, 30)
    upper, _ = magnetisation_figure(range(4), many, [30] * 4).axes
    styles = {(line.get_color(), line.get_linestyle()) for line in upper.lines}
    assert len(styles) == 30
    assert upper.get_legend() is None, "thirty entries would be as high as the figure"
