import pytest
import torch

from lightning_plasticity.data import IntensityData
from lightning_plasticity.data.resumable import ResumableLoader


def flat(batches):
    return [int(value) for batch in batches for value in batch]


def test_it_goes_on_where_it_stopped_once():
    loader = ResumableLoader(range(10), batch_size=3)
    batches = iter(loader)
    first = flat(next(batches) for _ in range(2))
    other = ResumableLoader(range(10), batch_size=3)
    other.load_state_dict(loader.state_dict())
    assert first + flat(other) == list(range(10))
    assert other.state_dict() == {"batches": 4, "epoch": 0}
    assert flat(other) == list(range(10))


def test_after_a_whole_epoch_it_begins_anew():
    loader = ResumableLoader(range(6), batch_size=2)
    assert flat(loader) == list(range(6))
    other = ResumableLoader(range(6), batch_size=2)
    other.load_state_dict(loader.state_dict())
    assert flat(other) == list(range(6))


def test_a_place_counts_in_its_own_epoch_alone():
    """A run may have stopped at an epoch's end after fewer batches than there are."""
    loaders = []
    for _ in range(2):
        data = IntensityData("bumps", batch_size=300)
        data.setup()
        loaders.append(data.train_dataloader())
    loaders[0].sampler.set_epoch(2)
    batches = iter(loaders[0])
    next(batches), next(batches)
    assert loaders[0].state_dict() == {"batches": 2, "epoch": 2}
    loaders[1].sampler.set_epoch(3)
    loaders[1].load_state_dict(loaders[0].state_dict())
    assert len(list(loaders[1])) == len(loaders[1])


@pytest.mark.parametrize("epoch", [0, 3])
def test_intensity_data_goes_on_in_the_order_of_the_epoch(epoch):
    loaders = []
    for _ in range(2):
        data = IntensityData("bumps", batch_size=300)
        data.setup()
        loaders.append(data.train_dataloader())
        loaders[-1].sampler.set_epoch(epoch)
    whole = [stimuli for stimuli, _ in loaders[0]]
    loaders[1].load_state_dict({"batches": 5, "epoch": epoch})
    rest = [stimuli for stimuli, _ in loaders[1]]
    assert len(rest) == len(whole) - 5
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], rest, strict=True))
