"""Data and independent references for the federated memory: slow, obvious NumPy."""

import numpy as np
import pytest
import torch


class World:
    """Random archetypes, and clients' noisy copies of them."""

    def __init__(self, archetypes, neurons, seed=0):
        self.rng = np.random.default_rng(seed)
        self.archetypes = self.rng.choice([-1.0, 1.0], (archetypes, neurons))

    def examples(self, count, support=None, quality=0.8, shares=None):
        support = list(range(len(self.archetypes))) if support is None else support
        chosen = self.rng.choice(support, count, p=shares)
        flips = self.rng.random((count, self.archetypes.shape[1])) < (1 - quality) / 2
        return torch.as_tensor(np.where(flips, -1, 1) * self.archetypes[chosen])

    def noise(self, count):
        return torch.as_tensor(self.rng.choice([-1.0, 1.0], (count, self.archetypes.shape[1])))

    def overlaps(self, found):
        """Largest absolute overlap of every archetype with any that was found."""
        table = np.abs(np.asarray(found, dtype=float) @ self.archetypes.T) / self.archetypes.shape[1]
        return table.max(0) if len(table) else np.zeros(len(self.archetypes))


@pytest.fixture
def world():
    return World


def dense_operator(examples):
    x = np.asarray(examples, dtype=float)
    return x.T @ x / x.size
