"""What a module does with what it has learned: activities, predictions, scores and figures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_plasticity.intrinsic import distribution, em, naming
from lightning_plasticity.intrinsic.distribution import Parameters
from lightning_plasticity.intrinsic.mixture import PoissonGammaMixture
from lightning_plasticity.intrinsic.padding import padding_weight
from lightning_plasticity.intrinsic.scores import Scores
from lightning_plasticity.intrinsic.stimuli import check_stimuli
from lightning_plasticity.intrinsic.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = Tensor | tuple[Tensor, Tensor] | list[Tensor]


class MixtureInference(LightningModule):
    """The half of `IntrinsicPlasticityMixture` that does not learn; what it reads is declared below."""

    weights: nn.Parameter
    mean: nn.Parameter
    shape: nn.Parameter
    prior: nn.Parameter
    label_counts: Tensor
    learning: em.Learning
    input_scale: float
    image_shape: tuple[int, int] | None
    scores: Scores
    trace: Trace

    @property
    def learned(self) -> Parameters:
        """The mixture's four parameter tensors."""
        shape = self.shape if self.learning.intensity != "poisson" else torch.full_like(self.shape, torch.inf)
        return Parameters(self.weights.detach(), self.mean.detach(), shape.detach(), self.prior.detach())

    def mixture(self) -> PoissonGammaMixture:
        """The learned mixture as an estimator, with its inference methods; scale inputs yourself then."""
        num_classes, num_features = self.weights.shape
        estimator = PoissonGammaMixture(
            num_classes,
            num_features,
            self.hparams["seed"],
            intensity=self.learning.intensity,
            learn_prior=self.learning.learn_prior,
        )
        estimator.parameters = Parameters(*(part.clone() for part in self.learned))
        return estimator

    @torch.no_grad()
    def forward(self, stimuli: Tensor) -> Tensor:
        """Activities `s = p(c | y) [B, C]`, float64."""
        return self._joint(self._scaled(stimuli)).softmax(1)

    def _joint(self, y: Tensor) -> Tensor:
        return distribution.evidence(y, self.learned, self.learning.intensity).double()

    def _scaled(self, stimuli: Tensor) -> Tensor:
        y = stimuli.flatten(1)
        if y.shape[1] != self.weights.shape[1]:
            raise ValueError(
                f"stimuli have {y.shape[1]} inputs, the model num_features={self.weights.shape[1]}"
            )
        check_stimuli(y)
        return y.to(self.weights.dtype) * self.input_scale

    def _batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Stimuli `[B, D]` and labels `[B]`."""
        stimuli, labels = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1])
        y = self._scaled(stimuli)
        return y, y.new_full((len(y),), -1, dtype=torch.int64) if labels is None else labels

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores a batch."""
        self._score(batch, batch_idx, self.trainer.val_dataloaders)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores a batch."""
        self._score(batch, batch_idx, self.trainer.test_dataloaders)

    def on_validation_epoch_end(self) -> None:
        """Logs log-likelihood, and accuracy if classes have names."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs log-likelihood, and accuracy if classes have names."""
        self._log_scores("test")

    def on_validation_epoch_start(self) -> None:
        """Begins new scores."""
        self.scores = Scores()

    on_test_epoch_start = on_validation_epoch_start

    def _score(self, batch: Batch, batch_idx: int, loader: Any) -> None:
        y, labels = self._batch(batch)
        weight = padding_weight(loader, len(y), batch_idx, self.device)
        joint = distribution.log_joint(y, self.learned, self.learning.intensity)
        named = (
            naming.label_posterior(joint.softmax(1), self.label_counts) if self.label_counts.any() else None
        )
        self.scores.add(joint.logsumexp(1), named, labels, y.double().sum(1), weight)

    def _log_scores(self, stage: str) -> None:
        for name, value in self.scores.compute(self._sum).items():
            self.log(f"intrinsic/{stage}_{name}", value.float())

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Class, intensity (posterior mean and MAP), and label if classes have names, of each stimulus."""
        y, _ = self._batch(batch)
        posterior = self._joint(y).softmax(1)
        intensity = distribution.marginal_intensity(y.double().sum(1), posterior, self.learned)
        found = {"class": posterior.argmax(1), "intensity": intensity.mean, "intensity_map": intensity.map}
        if self.label_counts.any():
            found["label"] = naming.label_posterior(posterior, self.label_counts).argmax(1)
        return found

    def tables(self) -> dict[str, list[dict[str, float]]]:
        """What each class has learned, for FigureLogger: mean intensity, shape and prior."""
        learned = zip(self.mean.tolist(), self.shape.tolist(), self.prior.tolist(), strict=True)
        return {
            "classes": [
                {"class": c, "mean": m, "shape": a, "prior": p} for c, (m, a, p) in enumerate(learned)
            ]
        }

    def figures(self) -> Mapping[str, "Figure"]:
        """Weights as images, intensities over the data's histogram, and both over learning time."""
        from lightning_plasticity.intrinsic import figures

        return figures.of_module(self)

    def _sum(self, tensor: Tensor) -> Tensor:
        """Sums over processes."""
        total: Any = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        return total  # type: ignore[no-any-return]
