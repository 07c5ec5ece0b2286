import pytest
import torch

from lightning_plasticity.intrinsic import PoissonGammaMixture
from lightning_plasticity.intrinsic.distribution import Parameters


@pytest.fixture(scope="session")
def example():
    """The C = 4, D = 16 example: classes of different direction, intensity and spread."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(4, 16, generator=generator, dtype=torch.float64).square()
    truth = PoissonGammaMixture(4, 16)
    truth.parameters = Parameters(
        weights / weights.sum(1, keepdim=True),
        torch.tensor([30.0, 60.0, 60.0, 150.0], dtype=torch.float64),
        torch.tensor([20.0, 5.0, 40.0, 3.0], dtype=torch.float64),
        torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64),
    )
    return truth


@pytest.fixture(scope="session")
def stimuli(example):
    return example.sample(4000)[0]


def same_direction(seed=0, size=4000, shape=10.0):
    """Two classes that nothing but intensity tells apart: means 40 and 160."""
    weights = torch.rand(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    truth = PoissonGammaMixture(2, 16, seed=seed)
    truth.parameters = Parameters(
        (weights / weights.sum()).repeat(2, 1),
        torch.tensor([40.0, 160.0], dtype=torch.float64),
        torch.full((2,), shape, dtype=torch.float64),
        torch.full((2,), 0.5, dtype=torch.float64),
    )
    return truth, *truth.sample(size)
