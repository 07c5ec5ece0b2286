"""The Poisson-Gamma mixture against others: ``python tests/benchmarks/bench_intrinsic.py``.

One EM pass over 60,000 x 784 counts with 100 classes, beside the two matrix products of a pass,
scikit-learn's GaussianMixture (diagonal) and, where it is installed, pomegranate's Poisson mixture; then the
accuracy of each on two classes of one direction and different intensity. Ratios are medians over paired
rounds. Energies are summed and sorted in the warm-up, once for all passes, as in a fit.
"""

import statistics
import time
import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from lightning_plasticity.intrinsic import PoissonGammaMixture
from lightning_plasticity.intrinsic.chunks import CHUNK, Chunks
from lightning_plasticity.intrinsic.distribution import Parameters
from lightning_plasticity.intrinsic.robustness import normalised

SIZE, FEATURES, CLASSES, ROUNDS = 60_000, 784, 100, 5
FEWER = 6_000  # stimuli for the slow ones


def model_and_counts(size):
    """A mixture of sparse directions and energies of 50 to 500 counts, and a sample of it in float32."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(CLASSES, FEATURES, generator=generator, dtype=torch.float64).pow(4)
    truth = PoissonGammaMixture(CLASSES, FEATURES)
    shape, prior = torch.full((2, CLASSES), 5.0, dtype=torch.float64)
    mean = torch.linspace(50, 500, CLASSES, dtype=torch.float64)
    truth.parameters = Parameters(weights / weights.sum(1, keepdim=True), mean, shape, prior / prior.sum())
    return truth, truth.sample(size)[0].float()


def two_products(stimuli, weights):
    """`Y log(W)^T` and `R^T Y`, chunk by chunk as a pass does them."""
    share = torch.full((CHUNK, CLASSES), 1 / CLASSES)
    for part in stimuli.split(CHUNK):
        _ = part @ weights.T
        _ = share[: len(part)].T @ part


def seconds(function):
    """Wall time of one call, after a rest: other libraries' threads spin for a while after their work."""
    time.sleep(0.3)
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(title, ours, other):
    """Median times of both and of their ratio other / ours, over paired rounds after a warm-up."""
    pairs = [(seconds(ours), seconds(other)) for _ in range(ROUNDS + 1)][1:]
    mine, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{title:<66}{mine:9.3f} s {theirs:9.3f} s {ratio:8.2f} x", flush=True)


def gaussian_pass(stimuli):
    """A function that does one E and one M step of scikit-learn's diagonal Gaussian mixture."""
    mixture = GaussianMixture(
        CLASSES, covariance_type="diag", max_iter=1, init_params="random", random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(stimuli)

    def one_pass():
        _, log_posterior = mixture._e_step(stimuli)
        mixture._m_step(stimuli, log_posterior)

    return one_pass


def pomegranate_pass(stimuli, truth):
    """A function that does one pass of pomegranate's Poisson mixture; None if it is not installed."""
    try:
        from pomegranate.distributions import Poisson
        from pomegranate.gmm import GeneralMixtureModel
    except ImportError as error:
        print(f"pomegranate is not there: {error}")
        return None
    rates = (truth.weights * truth.mean.unsqueeze(1)).float().clamp_min(1e-6)

    def one_pass():
        mixture = GeneralMixtureModel([Poisson(rate) for rate in rates])
        mixture.summarize(stimuli)
        mixture.from_summaries()

    return one_pass


def bench_speed():
    """Passes against passes."""
    print(f"{torch.get_num_threads()} threads; columns: ours, other, other / ours")
    truth, counts = model_and_counts(SIZE)
    data, few = Chunks.of(counts, FEATURES, CLASSES), Chunks.of(counts[:FEWER], FEATURES, CLASSES)
    start = data.start(CLASSES, torch.Generator().manual_seed(0))
    reals = counts + torch.rand(SIZE, 1, generator=torch.Generator().manual_seed(1)) / 10
    real = Chunks.of(reals, FEATURES, CLASSES)
    weights = truth.weights.float().log()
    products = lambda: two_products(counts, weights)  # noqa: E731
    compare(
        "EM pass, counts, at the solution / two products",
        lambda: data.e_step(truth.parameters, "nb"),
        products,
    )
    compare("EM pass, counts, at a start / two products", lambda: data.e_step(start, "nb"), products)
    compare(
        "EM pass, reals, at the solution / two products",
        lambda: real.e_step(truth.parameters, "nb"),
        products,
    )
    compare("EM pass, reals, at a start / two products", lambda: real.e_step(start, "nb"), products)
    few_pass = lambda: few.e_step(truth.parameters, "nb")  # noqa: E731
    solution = lambda: data.e_step(truth.parameters, "nb")  # noqa: E731
    for dtype in ("float32", "float64"):
        theirs = gaussian_pass(counts.numpy().astype(dtype))
        compare(f"EM pass / scikit-learn GaussianMixture(diag) on {dtype}", solution, theirs)
    if (theirs := pomegranate_pass(counts[:FEWER], truth)) is not None:
        compare(f"EM pass / pomegranate Poisson mixture, {FEWER} stimuli", few_pass, theirs)


def best_accuracy(found, truth):
    """Accuracy under the better naming of two classes."""
    right = float((found == truth).double().mean())
    return max(right, 1 - right)


def pomegranate_classes(stimuli):
    """Classes by pomegranate's Poisson mixture, started at its own k-means; None if it is not installed."""
    try:
        from pomegranate.distributions import Poisson
        from pomegranate.gmm import GeneralMixtureModel
    except ImportError:
        return None
    torch.manual_seed(0)
    mixture = GeneralMixtureModel([Poisson(), Poisson()], random_state=0, max_iter=200)
    return mixture.fit(stimuli.float()).predict(stimuli.float())


def bench_accuracy(size=10_000, seeds=3):
    """Two classes with one direction over 16 inputs and means 40 / 160."""
    names = ["Poisson-Gamma mixture", "Poisson mixture (a = inf)", "normalised Poisson mixture",
             "GaussianMixture(diag)", "KMeans", "pomegranate Poisson"]  # fmt: skip
    for shapes in ((10.0, 10.0), (2.0, 50.0), (2.0, 2.0)):
        rows = {name: [] for name in names}
        for seed in range(seeds):
            weights = torch.rand(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
            truth = PoissonGammaMixture(2, 16, seed)
            parts = ([40.0, 160.0], shapes, [0.5, 0.5])
            rest = (torch.tensor(part, dtype=torch.float64) for part in parts)
            truth.parameters = Parameters((weights / weights.sum()).repeat(2, 1), *rest)
            y, c = truth.sample(size)
            gaussian = GaussianMixture(2, covariance_type="diag", n_init=5, random_state=seed)
            flat, array = normalised(y, float(y.sum(1).mean())), y.numpy()
            found = [
                PoissonGammaMixture(2, 16, seed).fit(y).predict(y),
                PoissonGammaMixture(2, 16, seed, intensity="poisson").fit(y).predict(y),
                PoissonGammaMixture(2, 16, seed, intensity="none").fit(flat).predict(flat),
                torch.from_numpy(gaussian.fit_predict(array)),
                torch.from_numpy(KMeans(2, n_init=5, random_state=seed).fit_predict(array).astype(np.int64)),
                pomegranate_classes(y),
            ]  # fmt: skip
            for name, classes in zip(names, found, strict=True):
                if classes is not None:
                    rows[name].append(100 * best_accuracy(classes, c))
            rows.setdefault("the true parameters", []).append(100 * best_accuracy(truth.predict(y), c))
        print(f"\naccuracy (%), shapes {shapes[0]:g} / {shapes[1]:g}, {seeds} seeds: mean, lowest, highest")
        for name, values in rows.items():
            if values:
                print(f"  {name:<30}{np.mean(values):7.1f}{min(values):7.1f}{max(values):7.1f}")


if __name__ == "__main__":
    bench_speed()
    bench_accuracy()
