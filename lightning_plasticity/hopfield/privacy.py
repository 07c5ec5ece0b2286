"""Differential privacy of what clients send: the Gaussian mechanism, accounted as zero-concentrated (zCDP).

A client's operator is `J = sum_a eta_a eta_a^T / (N M)`, and `||eta eta^T / N||_F = 1`. Replacing one example
moves `J`, and its product with orthonormal columns, by at most `sqrt(2) / M` in Frobenius norm. A round sends
two such products. Bun and Steinke (2016): noise `sigma = Delta / sqrt(2 rho_1)` makes one of them rho_1-zCDP,
they add up, and `rho`-zCDP implies `(rho + 2 sqrt(rho log(1/delta)), delta)`-DP.
"""

import math
import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

EXCHANGES = 2  # products that a client sends in a round


@dataclass(frozen=True)
class DifferentialPrivacy:
    """A budget for one example of one client over all rounds (the neighbour replaces that example).

    Args:
        epsilon: of `(epsilon, delta)`-differential privacy.
        delta: probability of failure, well below one over the number of examples.
        rounds: rounds that share the budget; in later ones a client sends nothing.
        seed: None draws noise from the operating system's entropy. A number makes noise repeatable, for
            tests: who knows it can subtract the noise, so that nothing is private.

    Raises:
        ValueError: for a budget out of range.

    >>> DifferentialPrivacy(epsilon=1.0).is_kept_by(DifferentialPrivacy(epsilon=2.0))
    False
    >>> round(DifferentialPrivacy(epsilon=1.0, delta=1e-5, rounds=10).noise_std(examples=1000), 3)
    0.031
    """

    epsilon: float
    delta: float = 1e-5
    rounds: int = 10
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon={self.epsilon} must be a finite number above 0")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta} must lie between 0 and 1, well below 1 / examples")
        if not self.rounds >= 1:
            raise ValueError(f"rounds={self.rounds} must be at least 1")

    @property
    def rho(self) -> float:
        """The zCDP budget: the largest with `rho + 2 sqrt(rho log(1/delta)) <= epsilon`."""
        log = math.log(1 / self.delta)
        return (math.sqrt(log + self.epsilon) - math.sqrt(log)) ** 2

    def is_kept_by(self, other: "DifferentialPrivacy | None") -> bool:
        """Whether another budget spends no more than this one, and its noise is as hard to know."""
        if other is None or (other.seed is not None and self.seed is None):
            return False
        return other.rho <= self.rho * (1 + 1e-9)

    def noise_std(self, examples: int) -> float:
        """Standard deviation of the noise on each entry of `J Q`, for a client's `M` examples."""
        return sensitivity(examples) * math.sqrt(self.rounds * EXCHANGES / (2 * self.rho))

    def generator(self, device: torch.device, *position: int) -> torch.Generator:
        """A source of noise; `position` (client, round, exchange) keeps repeatable noise from repeating."""
        if self.seed is None:
            seed = secrets.randbits(63)
        else:
            seed = self.seed
            for number in position:
                seed = (seed * 1_000_003 + number + 1) % 2**63
        return torch.Generator(device).manual_seed(seed)


def sensitivity(examples: int) -> float:
    """Most that replacing one of `M` examples moves `J Q`, in Frobenius norm: `sqrt(2) / M`."""
    return math.sqrt(2) / examples


def noisy_singular_value(eigenvalue: Tensor, std: float, neurons: int, width: int) -> Tensor:
    """Where a singular value of `D U` lands under noise of `std` on each of `[neurons, width]` entries.

    Benaych-Georges and Nadakuditi (2012): `s^2 = (l^2 + std^2 N)(l^2 + std^2 s) / l^2`, for
    `l > std (N s)^(1/4)`.
    """
    square = eigenvalue**2
    return ((square + std**2 * neurons) * (square + std**2 * width) / square.clamp(min=1e-300)).sqrt()


def clean_eigenvalue(singular_value: Tensor, std: float, neurons: int, width: int) -> Tensor:
    """The inverse of `noisy_singular_value`, 0 for what noise alone can make."""
    a, b = std**2 * neurons, std**2 * width
    middle = singular_value**2 - a - b
    root = (middle**2 - 4 * a * b).clamp(min=0).sqrt()
    above = (middle > 0) & (singular_value**2 > (math.sqrt(a) + math.sqrt(b)) ** 2)
    return torch.where(above, ((middle + root) / 2).clamp(min=0), torch.zeros_like(middle)).sqrt()


def noise_to_signal(eigenvalue: Tensor, std: float, neurons: int, width: int) -> Tensor:
    """`(1 - gamma) / gamma` that the noise adds to an eigenvector; infinite where it hides it.

    `gamma = (l^4 - std^4 N s) / (l^4 + l^2 std^2 N)` of the same paper (left vectors).
    """
    square = eigenvalue**2
    a, b = std**2 * neurons, std**2 * width
    signal = (square**2 - a * b).clamp(min=0)
    return torch.where(signal > 0, (square * a + a * b) / signal.clamp(min=1e-300), torch.inf)
