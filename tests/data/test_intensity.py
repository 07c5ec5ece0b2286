import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_plasticity.data import IntensityData
from lightning_plasticity.data.intensity import bumps


def ready(*args, **settings):
    data = IntensityData(*args, **settings)
    data.setup()
    return data


@pytest.mark.parametrize(
    ("kind", "sizes", "features", "classes"),
    [
        ("digits", (3600, 400, 1000), 784, 10),
        ("digits8x8", (1295, 143, 359), 64, 10),
        ("bumps", (4000, 1000, 1000), 144, 8),
    ],
)
def test_sizes_and_shapes(kind, sizes, features, classes):
    data = ready(kind)
    assert tuple(len(data.stimuli(part)[1]) for part in ("train", "val", "test")) == sizes
    assert (data.num_features, data.num_classes, len(data.means)) == (features, classes, classes)
    stimuli, labels = next(iter(data.train_dataloader()))
    assert stimuli.shape == (50, features)
    assert stimuli.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert sum(len(labels) for _, labels in data.val_dataloader()) == sizes[1]
    assert sum(len(labels) for _, labels in data.test_dataloader()) == sizes[2]


def test_intensities_have_the_mean_and_spread_asked_for():
    data = ready("bumps", means=[30, 300] * 4, shape=5.0)
    stimuli, labels = data.stimuli("train")
    for label, mean in ((0, 30.0), (1, 300.0)):
        energy = stimuli[labels == label].double().sum(1)
        assert float(energy.mean()) == pytest.approx(mean, rel=0.06)
        assert float(energy.var()) == pytest.approx(mean + mean**2 / 5, rel=0.25)


def test_without_noise_the_direction_is_the_form():
    data = ready("bumps", noise="none")
    stimuli, labels = data.stimuli("test")
    forms = bumps().repeat_interleave(2, dim=0)
    torch.testing.assert_close(stimuli / stimuli.sum(1, keepdim=True), forms[labels])
    noisy, _ = ready("bumps").stimuli("test")
    assert torch.equal(noisy, noisy.round())


def test_each_place_has_a_dim_and_a_bright_class_of_one_form():
    forms = bumps(4, 12)
    torch.testing.assert_close(forms.sum(1), torch.ones(4))
    assert forms.argmax(1).unique().numel() == 4
    data = ready("bumps", noise="none", labelled=2000)
    stimuli, labels = data.stimuli("train")
    dim, bright = (stimuli[labels == label].mean(0) for label in (2, 3))
    torch.testing.assert_close(dim / dim.sum(), bright / bright.sum())
    assert float(bright.sum() / dim.sum()) == pytest.approx(4, rel=0.1)


def test_contrast_scales_the_rates_and_leaves_the_rest():
    data = ready("bumps", noise="none")
    once, labels = data.stimuli("test")
    twice, same = data.stimuli("test", contrast=2.0)
    torch.testing.assert_close(twice, 2 * once)
    assert torch.equal(labels, same)


def test_only_a_few_training_labels_are_given():
    data = ready("digits8x8", labelled=7)
    _, given = data.labelled_stimuli()
    truth = data.stimuli("train")[1]
    known = given >= 0
    assert torch.equal(given[known], truth[known])
    assert given[known].bincount(minlength=10).tolist() == [7] * 10
    assert all((labels >= 0).all() for _, labels in data.val_dataloader())
    assert (ready("digits8x8", labelled=0).labelled_stimuli()[1] == -1).all()


def test_everything_follows_from_the_seed():
    first, again, other = (ready("digits8x8", seed=seed) for seed in (0, 0, 1))
    batches = [next(iter(data.train_dataloader()))[0] for data in (first, again, other)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_the_order_changes_with_the_epoch_alone():
    data = ready("bumps")
    loader = data.train_dataloader()
    first = torch.cat([labels for _, labels in loader])
    assert torch.equal(first, torch.cat([labels for _, labels in loader]))
    loader.sampler.set_epoch(1)
    assert not torch.equal(first, torch.cat([labels for _, labels in loader]))


@pytest.mark.parametrize(
    "setting",
    [
        {"kind": "faces"},
        {"noise": "gauss"},
        {"means": [1.0, 2.0]},
        {"means": [1.0] * 9 + [0.0]},
        {"shape": 0.0},
        {"shape": float("inf")},
        {"labelled": -1},
        {"batch_size": 0},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(MisconfigurationException, match=next(iter(setting))):
        IntensityData(**setting)


def test_use_before_setup_is_refused():
    for use in (IntensityData("bumps").train_dataloader, IntensityData("bumps").stimuli):
        with pytest.raises(MisconfigurationException, match=r"setup\(\)"):
            use()
