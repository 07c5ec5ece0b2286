"""How well features are predicted linearly, and whether generated activity has the statistics of the data."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def autocorrelation(signals: Tensor, lags: int) -> Tensor:
    """Mean over signals of the autocorrelation at lags 0 to `lags - 1`, normalised to 1 at 0: `[lags]`.

    Args:
        signals: `[T, n]`.
        lags: fewer than `T`.

    Example:
        >>> autocorrelation(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), 2)
        tensor([ 1., -1.])
    """
    if not 0 < lags < len(signals):
        raise ValueError(f"lags={lags} must lie between 1 and {len(signals) - 1}")
    centred = signals - signals.mean(0)
    count = len(signals)
    products = [(centred[: count - lag] * centred[lag:]).mean(0) for lag in range(lags)]
    every = torch.stack(products)
    return (every / every[0].clamp_min(1e-12)).mean(1)


class AutocorrelationError(Metric):
    """Difference of the mean autocorrelations of generated activity and data: `mse`, `correlation`.

    Args:
        lags: steps.
        **kwargs: as of any Metric.

    Example:
        >>> wave = torch.sin(torch.arange(100.0) / 5).unsqueeze(1)
        >>> error = AutocorrelationError(lags=40)
        >>> error.update(generated=wave, data=2 * wave)
        >>> {name: round(float(value), 6) for name, value in error.compute().items()}
        {'mse': 0.0, 'correlation': 1.0}
    """

    full_state_update = False
    mse: Tensor
    correlation: Tensor
    count: Tensor

    def __init__(self, lags: int = 160, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lags = lags
        for name in ("mse", "correlation"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, generated: Tensor, data: Tensor) -> None:
        """Takes signals `[T, n]` and `[T, m]` of one model."""
        one, other = autocorrelation(generated, self.lags), autocorrelation(data, self.lags)
        self.mse = self.mse + (one - other).square().mean()
        self.correlation = self.correlation + torch.corrcoef(torch.stack([one, other]))[0, 1]
        self.count += 1

    def compute(self) -> dict[str, Tensor]:
        """Means over updates."""
        return {"mse": self.mse / self.count, "correlation": self.correlation / self.count}


class LatentR2(Metric):
    """Variance of targets that a linear map of the inputs explains: `R^2` of least squares with a constant.

    Sums are streamed, so that no history is kept.

    Args:
        inputs: number of inputs.
        targets: number of targets.
        **kwargs: as of any Metric.

    Example:
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> score = LatentR2(inputs=2, targets=3)
        >>> score.update(x, x @ torch.ones(2, 3) + 1)
        >>> round(float(score.compute()), 4)
        1.0
    """

    full_state_update = False
    gram: Tensor

    def __init__(self, inputs: int, targets: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if inputs < 1 or targets < 1:
            raise ValueError(f"inputs={inputs} and targets={targets} must be at least 1")
        self.inputs, self.targets = inputs, targets
        size = inputs + 1 + targets
        self.add_state("gram", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """Takes `[N, inputs]` and `[N, targets]`."""
        rows = torch.cat([inputs, torch.ones_like(inputs[:, :1]), targets], 1).double()
        if rows.shape[1] != len(self.gram):
            raise ValueError(
                f"inputs {tuple(inputs.shape)}, targets {tuple(targets.shape)}: [N, {self.inputs}] and "
                f"[N, {self.targets}]"
            )
        self.gram = self.gram + rows.T @ rows

    def compute(self) -> Tensor:
        """`1 - residual / total` sums of squares, over all targets together."""
        k = self.inputs + 1
        a, b, c = self.gram[:k, :k], self.gram[:k, k:], self.gram[k:, k:]
        ridge = 1e-10 * a.diagonal().mean() * torch.eye(k, dtype=a.dtype, device=a.device)
        residual = c.trace() - (b * torch.linalg.solve(a + ridge, b)).sum()
        count, sums = self.gram[self.inputs, self.inputs], self.gram[self.inputs, k:]
        score: Tensor = 1 - residual / (c.trace() - sums.square().sum() / count)
        return score
