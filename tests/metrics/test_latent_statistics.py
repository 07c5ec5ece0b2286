"""Autocorrelations and explained variance, against NumPy and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from lightning_plasticity.metrics import AutocorrelationError, LatentR2
from lightning_plasticity.metrics.latent_statistics import autocorrelation


def test_autocorrelation_is_a_mean_of_products():
    signals = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).cumsum(0)
    found = autocorrelation(signals, 10).numpy()
    slow = np.zeros(10)
    for signal in signals.double().numpy().T:
        centred = signal - signal.mean()
        for lag in range(10):
            slow[lag] += np.mean(centred[: 60 - lag] * centred[lag:]) / np.mean(centred**2) / 3
    np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-5)


def test_error_is_a_mean_over_models():
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randn(60, n, generator=generator).cumsum(0) for n in (2, 4)] for _ in range(2)]
    error, mse, correlation = AutocorrelationError(lags=8), [], []
    for one, other in pairs:
        error.update(one, other)
        a, b = (autocorrelation(part, 8).numpy() for part in (one, other))
        mse.append(((a - b) ** 2).mean())
        correlation.append(np.corrcoef(a, b)[0, 1])
    assert float(error.compute()["mse"]) == pytest.approx(np.mean(mse), rel=1e-4)
    assert float(error.compute()["correlation"]) == pytest.approx(np.mean(correlation), rel=1e-4)
    with pytest.raises(ValueError, match="lags=60"):
        autocorrelation(pairs[0][0], 60)


def test_streamed_r2_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator)
    y = x @ torch.randn(3, 4, generator=generator) + 2 + 0.5 * torch.randn(200, 4, generator=generator)
    score = LatentR2(3, 4)
    for one, other in zip(x.split(70), y.split(70), strict=True):
        score.update(one, other)
    fitted = LinearRegression().fit(x.numpy(), y.numpy())
    residual = ((y.numpy() - fitted.predict(x.numpy())) ** 2).sum()
    expected = 1 - residual / ((y.numpy() - y.numpy().mean(0)) ** 2).sum()
    assert float(score.compute()) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="targets"):
        score.update(x, x)
    with pytest.raises(ValueError, match="inputs=0"):
        LatentR2(0, 1)
