"""What the figures of SAFE show, read back from their axes."""

import pytest
import torch

from lightning_plasticity.continual.figures import comparison_figure, of_record
from lightning_plasticity.continual.learners import Answers
from lightning_plasticity.continual.report import Record


def record():
    """Two sessions of two samples; the slow learner forgets one, the others none."""
    made = Record(2)
    right, wrong = torch.tensor([[5.0, 0.0], [5.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    weight = torch.tensor([0.25, 0.75])
    for session, part, slow in ((0, 0, right), (1, 0, wrong), (1, 1, right)):
        made.add(Answers(slow, right, right, weight), torch.zeros(2, dtype=torch.long), part, session)
    return made


def test_accuracies_the_matrix_and_the_weights_of_a_run():
    drawn = of_record(record(), joint=0.9)
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn["accuracy"].axes[0].lines}
    assert lines["slow"] == [100.0, 75.0]
    assert lines["aggregate"] == [100.0, 100.0]
    assert lines["all classes at once"] == pytest.approx([90.0, 90.0])
    assert "all classes at once" not in {
        line.get_label() for line in of_record(record())["accuracy"].axes[0].lines
    }
    assert [text.get_text() for text in drawn["matrix"].axes[0].texts] == ["100.0"] * 3
    weights = {line.get_label(): list(line.get_ydata()) for line in drawn["fast_weight"].axes[0].lines}
    assert weights["classes of earlier sessions"] == pytest.approx([0.5])


def test_a_comparison_shows_every_order_and_the_best_on_top():
    finals = {"good": [90.0, 92.0], "bad": [20.0, 40.0], "joint": [95.0, 97.0]}
    upper, lower = comparison_figure({"good": [[98, 90], [99, 92]]}, finals, joint=96.0).axes
    assert [list(line.get_ydata()) for line in upper.lines] == [[98.5, 91.0], [96.0, 96.0]]
    assert [label.get_text() for label in lower.get_yticklabels()] == ["bad", "good", "joint"]
    dots = [list(line.get_xdata()) for line in lower.lines]
    assert dots == [[20.0, 40.0], [30.0], [90.0, 92.0], [91.0], [95.0, 97.0], [96.0], [96.0, 96.0]]
