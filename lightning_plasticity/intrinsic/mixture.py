"""`PoissonGammaMixture`: the mixture as an estimator, in the manner of scikit-learn and without a Trainer."""

import math
from typing import Any, Self

import torch
from torch import Tensor

from lightning_plasticity.intrinsic import circuit, distribution, em, shapes, starts
from lightning_plasticity.intrinsic.chunks import Chunks
from lightning_plasticity.intrinsic.distribution import Intensity, IntensityPosterior, Parameters


class PoissonGammaMixture:
    """Mixture of classes that differ in direction and in intensity (Monk, Savin and Luecke, NIPS 2016).

    `fit` is exact batch EM, `partial_fit` one mini-batch of the neural circuit's online rules. Stimuli are
    non-negative `[n, D]` tensors or arrays, counts or (quasi-Poisson) reals; their unit matters, as evidence
    grows in proportion to energy. float64 and 32- or 64-bit integer stimuli are computed in float64, all
    others in float32.

    Args:
        num_classes: `C`.
        num_features: `D`.
        seed: of starts and samples.
        intensity: `"nb"` (mean and spread of each class), `"poisson"` (mean alone) or `"none"` (a normalising
            mixture, which knows direction alone).
        restarts: random starts of `fit`; the best log-likelihood is kept.
        max_iter: most EM passes of one start.
        tol: a start ends when a pass raises the log-likelihood by less than this fraction of it.
        smoothing: pseudo-count of the weights; 1e-6 is maximum likelihood to rounding, more guards small
            data.
        learn_prior: False holds the prior uniform.
        max_shape: the shape that means Poisson.
        shape_update: how `fit` learns shapes: `"newton"`, or `"minka"`, EM with the gain as hidden variable,
            which goes to the same optimum in more passes.

    Attributes:
        weights: `W [C, D]`, rows sum to 1.
        mean: `mu [C]`, in units of total energy.
        shape: `a [C]`.
        prior: `pi [C]`.
        second_moment: `q [C]` of the circuit, once `partial_fit` has run.
        seen: stimuli that `partial_fit` has seen.
        history: mean log-likelihood of a stimulus before each pass of the start that `fit` kept.
        converged: whether that start met `tol`.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> dim, bright = torch.poisson(torch.full((2, 200, 4), 5.0), generator=torch.manual_seed(0))
        >>> stimuli = torch.cat([dim, 6 * bright])                      # one direction, two intensities
        >>> mixture = PoissonGammaMixture(num_classes=2, num_features=4).fit(stimuli)
        >>> (mixture.mean.sort().values / 10).round().tolist()
        [2.0, 12.0]
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        seed: int = 0,
        *,
        intensity: Intensity = "nb",
        restarts: int = 5,
        max_iter: int = 200,
        tol: float = 1e-6,
        smoothing: float = 1e-6,
        learn_prior: bool = True,
        max_shape: float = shapes.MAX_SHAPE,
        shape_update: shapes.BatchRule = "newton",
    ) -> None:
        counts = {"num_classes": num_classes, "num_features": num_features, "restarts": restarts}
        for name, value in (counts | {"max_iter": max_iter}).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not tol >= 0:
            raise ValueError(f"tol={tol} must not be negative")
        self.num_classes, self.num_features, self.seed = num_classes, num_features, seed
        self.restarts, self.max_iter, self.tol = restarts, max_iter, tol
        self.learning = em.Learning.checked(intensity, learn_prior, smoothing, max_shape, shape_update)
        self.history: list[float] = []
        self.converged, self.seen = False, 0
        self.second_moment: Tensor | None = None
        self.parameters = starts.start(torch.ones(2, num_features), num_classes, self._generator())

    @property
    def parameters(self) -> Parameters:
        """The four parameter tensors together."""
        return Parameters(self.weights, self.mean, self.shape, self.prior)

    @parameters.setter
    def parameters(self, params: Parameters) -> None:
        self.weights, self.mean, self.shape, self.prior = params

    def fit(self, stimuli: Any, labels: Any = None, sample_weight: Any = None) -> Self:
        """Learns from all stimuli by EM, from `restarts` random starts.

        Args:
            stimuli: `y [n, D]`, finite and non-negative.
            labels: `[n]` known classes in `0 .. C - 1`, -1 for unknown: they place the start, and stay fixed.
            sample_weight: `[n]` non-negative weights; a weight of 2 is the same as showing a stimulus twice.

        Raises:
            ValueError: on NaN, infinite or negative stimuli, stimuli that are all zero, or a wrong shape.
        """
        data = self._chunks(stimuli, labels, sample_weight)
        if not bool(data.stimuli.any()):
            raise ValueError("stimuli are all zero: there is no direction to learn from")
        generator = self._generator()
        runs = (self._climb(data, generator) for _ in range(self.restarts))
        self.parameters, history, self.converged = max(runs, key=lambda run: run[1][-1])
        base = data.mean_base()
        self.history = [value + base for value in history]
        self.second_moment, self.seen = None, 0
        return self

    def _climb(self, data: Chunks, generator: torch.Generator) -> tuple[Parameters, list[float], bool]:
        """EM from one start: parameters, mean log-likelihood before each pass, and whether it converged."""
        params, history = self.learning.limit(data.start(self.num_classes, generator)), list[float]()
        dead = torch.zeros_like(params.prior, dtype=torch.bool)
        for _ in range(self.max_iter):
            worst = data.worst_explained(params, self.learning.intensity) if bool(dead.any()) else None
            sums = data.e_step(params, self.learning.intensity)
            history.append(float(sums.log_likelihood / sums.weight))
            if len(history) > 1 and history[-1] - history[-2] < self.tol * abs(history[-1]):
                return params, history, True
            params, dead = em.m_step(sums, params, self.learning), starts.dead_classes(sums.number)
            if worst is not None:
                params = starts.revive(params, dead, worst, sums.weight, self.learning)
        return params, history, False

    def partial_fit(
        self,
        stimuli: Any,
        labels: Any = None,
        rate: float | None = None,
        shape_update: shapes.OnlineRule = "moments",
    ) -> Self:
        """Learns from one mini-batch by the online rules of the circuit; the first call also starts from it.

        For the first `circuit.WARMUP` stimuli classes learn directions and means alone (see `circuit.stage`).

        Args:
            stimuli: `y [n, D]`.
            labels: `[n]` known classes, -1 for unknown.
            rate: `eps`; by default `0.02 / (1 + t / (1000 C))` after `t` stimuli.
            shape_update: shapes follow the second moments (`"moments"`) or climb the likelihood
                (`"gradient"`).

        Raises:
            ValueError: as `fit`, or if a setting is out of range.
        """
        shapes.check_online(shape_update)
        if rate is not None and not 0 < rate < 1:
            raise ValueError(f"rate={rate} must lie between 0 and 1: it is the share that is replaced")
        data = self._chunks(stimuli, labels)
        if self.second_moment is None:
            params = self.parameters if self.history else data.start(self.num_classes, self._generator())
            self.parameters, self.second_moment = params, circuit.Circuit.of(params).second_moment
        for y, known, _ in data.parts():
            decayed = circuit.learning_rate(
                self.seen, circuit.RATE, circuit.DECAY_PER_CLASS * self.num_classes
            )
            self._present(y, known, self.second_moment, decayed if rate is None else rate, shape_update)
            self.seen += len(y)
        return self

    def _present(
        self,
        y: Tensor,
        labels: Tensor | None,
        second_moment: Tensor,
        rate: float,
        shape_update: shapes.OnlineRule,
    ) -> None:
        state = circuit.Circuit(self.weights, self.mean, second_moment, self.prior)
        warm = self.seen >= circuit.WARMUP
        intensity = circuit.stage(self.learning.intensity, warm)
        drive = circuit.drive(y, state, rate, intensity, labels, shape_update=shape_update)
        learn_prior = self.learning.learn_prior and warm
        state = circuit.apply_drive(state, drive, rate, learn_prior, shape_update)
        self.parameters = self.learning.limit(state.parameters(self.learning.max_shape))
        self.second_moment = state.second_moment

    def predict(self, stimuli: Any) -> Tensor:
        """Likeliest class of each stimulus, `[n]`."""
        return self.predict_proba(stimuli).argmax(1)

    def predict_proba(self, stimuli: Any) -> Tensor:
        """Posterior `p(c | y)`, `[n, C]`, float64."""
        return self._chunks(stimuli).map(self._posterior)

    def log_joint(self, stimuli: Any) -> Tensor:
        """`log p(y, c)` with all constants, `[n, C]` in nats, evaluated in float64."""
        intensity = self.learning.intensity
        return self._chunks(stimuli).map(lambda y: distribution.log_joint(y, self.parameters, intensity))

    def score_samples(self, stimuli: Any) -> Tensor:
        """`log p(y)` with all constants, `[n]` in nats, evaluated in float64."""
        return self.log_joint(stimuli).logsumexp(1)

    def score(self, stimuli: Any) -> float:
        """Mean log-likelihood of a stimulus, in nats."""
        return float(self.score_samples(stimuli).mean())

    def bic(self, stimuli: Any) -> float:
        """Bayesian information criterion on these stimuli; lower is better."""
        of_intensity = {"nb": 2, "poisson": 1, "none": 0}[self.learning.intensity]
        of_prior = self.num_classes - 1 if self.learning.learn_prior else 0
        free = self.num_classes * (self.num_features - 1 + of_intensity) + of_prior
        scores = self.score_samples(stimuli)
        return float(free * math.log(len(scores)) - 2 * scores.sum())

    def intensity(self, stimuli: Any) -> IntensityPosterior:
        """Posterior mean and MAP of the gain behind each stimulus, averaged over classes, each `[n]`."""
        y = self._chunks(stimuli)
        posterior = y.map(self._posterior)
        return distribution.marginal_intensity(y.energy(), posterior, self.parameters)

    def class_intensity(self, stimuli: Any) -> IntensityPosterior:
        """Posterior mean and MAP of the gain given each class, each `[n, C]`."""
        return distribution.class_intensity(self._chunks(stimuli).energy(), self.parameters)

    def relative_intensity(self, stimuli: Any) -> Tensor:
        """How strong each stimulus is for its likeliest class, in standard deviations, `[n]`."""
        scores = distribution.relative_intensity(self._chunks(stimuli).energy(), self.parameters)
        return scores.gather(1, self.predict(stimuli).unsqueeze(1)).squeeze(1)

    def sample(self, size: int = 1, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws stimuli `[size, D]` (counts, float64) and classes `[size]`; by default the seed's own."""
        stimuli, classes, _ = distribution.sample(self.parameters, size, generator or self._generator())
        return stimuli, classes

    def _posterior(self, y: Tensor) -> Tensor:
        return distribution.evidence(y, self.parameters, self.learning.intensity).double().softmax(1)

    def _chunks(self, stimuli: Any, labels: Any = None, sample_weight: Any = None) -> Chunks:
        return Chunks.of(stimuli, self.num_features, self.num_classes, labels, sample_weight)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)
