"""Sessions: which images come when, prepared how, and that nothing depends on luck."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer, seed_everything
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from lightning_plasticity.data import ClassIncrementalData
from lightning_plasticity.data.preparation import Preparation, random_cut, resize_and_crop
from lightning_plasticity.data.session_images import ShardSampler
from lightning_plasticity.data.session_plan import order_classes, plan_sessions
from lightning_plasticity.data.sources import digits

PLAIN = Preparation(mean=0.0, std=1.0)


def numbered(classes=6, each=10, size=4, test=3):
    """Images that show their number: pixel value = number / 1000; labels 0..classes-1, interleaved."""

    def part(count, first):
        labels = torch.arange(count) % classes
        pixels = ((torch.arange(count) + first) / 1000).view(-1, 1, 1, 1).expand(-1, 3, size, size)
        return pixels.clone(), labels

    return part(classes * each, 0), part(classes * test, 500)


def incremental(**options):
    """Class-incremental data whose images can be told apart."""
    options = {"sessions": [3, 2, 1], "image_size": 4, "preparation": PLAIN, "batch_size": 7, **options}
    data = ClassIncrementalData(numbered(), **options)
    data.setup()
    return data


def read(loader):
    """Numbers and labels of all images of a loader, in order."""
    batches = list(loader)
    images = torch.cat([batch[0] for batch in batches])
    assert torch.equal(images, images[:, :1, :1, :1].expand_as(images))
    return (images[:, 0, 0, 0] * 1000).round().long(), torch.cat([batch[1] for batch in batches])


# ---- the plan


@pytest.mark.parametrize(
    ("sessions", "sizes"), [(3, [2, 2, 2]), ([3, 2, 1], [3, 2, 1]), ([[5, 0], [3]], [2, 1])]
)
def test_labels_are_numbered_in_order_of_appearance(sessions, sizes):
    plan = plan_sessions(6, sessions, 2, "shuffled", seed=4)
    edges = np.cumsum([0, *sizes])
    assert plan.session_classes == [list(range(a, b)) for a, b in pairwise(edges)]
    if sessions == [[5, 0], [3]]:
        assert plan.class_order == [5, 0, 3]
    else:
        assert plan.class_order == np.random.RandomState(4).permutation(6).tolist()
    assert plan.epochs_per_session == [2] * len(sizes)


def test_the_order_of_the_literature():
    """The first classes of CIFAR-100 in the order of seed 1993, as many papers list them."""
    assert order_classes(100, "shuffled", 1993)[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    assert order_classes(4, "sorted", 1993) == [0, 1, 2, 3]
    assert order_classes(4, [2, 0], 1993) == [2, 0]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_every_epoch_belongs_to_the_session_that_a_slow_count_gives(sizes, data):
    epochs = data.draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    plan = plan_sessions(sum(sizes), sizes, epochs, "shuffled", seed=0)
    owners = [session for session, count in enumerate(epochs) for _ in range(count)]
    assert [plan.session_of_epoch(epoch) for epoch in range(sum(epochs))] == owners
    for outside in (-1, sum(epochs)):
        with pytest.raises(
            ValueError, match=rf"epoch {outside} belongs to no session.*max_epochs={sum(epochs)}"
        ):
            plan.session_of_epoch(outside)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sessions": 4}, "sessions=4: 6 classes can't be dealt out evenly; give a list"),
        ({"sessions": 0}, "sessions=0"),
        ({"sessions": [3, 2]}, r"sessions=\[3, 2\] has 5 classes together, the data set 6"),
        ({"sessions": [3, 0, 3]}, r"sessions=\[3, 0, 3\]: each must have a class or more"),
        ({"sessions": [[0, 1], []]}, "each must have a class or more"),
        ({"sessions": [[0, 1], [1, 2]]}, r"the classes \[1\] come twice"),
        ({"sessions": [[0, 1], [6]]}, r"the classes \[6\] aren't among the data set's 6"),
        ({"sessions": []}, r"sessions=\[\] has 0 classes together"),
        ({"sessions": [[0], 1]}, "must be a number, a list of numbers, or a list of lists"),
        ({"epochs_per_session": [1, 2]}, "there are 3 sessions; give one number for each"),
        ({"epochs_per_session": [1, 0, 2]}, "each must be 1 or more"),
        ({"class_order": [0, 0, 1, 2, 3, 4]}, r"the classes \[0\] come twice"),
        ({"class_order": "random"}, "class_order='random' must be 'shuffled', 'sorted' or a list"),
        ({"class_order": [0, 1, 2]}, r"sessions=\[3, 2, 1\] has 6 classes together, the data set 3"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"image_size": 0}, "image_size=0 must be 1 or more"),
        ({"validation": 1.0}, "validation=1.0 must be 0 or more and below 1"),
        ({"download": True}, "can't be fetched"),
        ({"dataset": "mnist6k"}, "dataset='mnist6k' must be one of mnist5k, digits"),
        ({"dataset": [numbered(), numbered()]}, "with domains each is a session"),
        ({"dataset": (3, 4)}, "images can't be had of a int"),
    ],
)
def test_bad_settings_are_errors_at_construction(options, words):
    options = {"sessions": [3, 2, 1], "dataset": numbered(), **options}
    with pytest.raises(MisconfigurationException, match=words):
        ClassIncrementalData(**options)


def test_a_session_without_images_is_named():
    train, test = numbered()
    few = (test[0][test[1] < 5], test[1][test[1] < 5])
    data = ClassIncrementalData((train, few), sessions=[3, 2, 1], class_order="sorted")
    with pytest.raises(MisconfigurationException, match=r"session 2 has no test images: .* classes \[5\]"):
        data.setup()
    with pytest.raises(MisconfigurationException, match="The images aren't loaded yet"):
        incremental_without_setup().train_dataloader()


def incremental_without_setup():
    return ClassIncrementalData(numbered(), sessions=[3, 2, 1])


# ---- the images of a session


def test_sessions_hold_their_classes_and_splits_share_no_image():
    data = incremental(validation=0.2, seed=3)
    (_, labels), (_, test_labels) = numbered()
    seen = []
    for session, classes in enumerate(data.session_classes):
        own = [data.class_order[label] for label in classes]
        parts = {split: read(data.session_loader(session, split)) for split in ("train", "val", "test")}
        for split, (found, numbered_anew) in parts.items():
            truth = test_labels[found - 500] if split == "test" else labels[found]
            assert [data.class_order[label] for label in numbered_anew] == truth.tolist()
            assert set(truth.tolist()) == set(own)
        assert {split: len(found) for split, (found, _) in parts.items()} == {
            "train": 8 * len(own),
            "val": 2 * len(own),
            "test": 3 * len(own),
        }
        seen += parts["train"][0].tolist() + parts["val"][0].tolist()
    assert sorted(seen) == list(range(60))
    assert [data.classes_seen(session) for session in range(3)] == [3, 5, 6]
    assert (data.num_classes, data.num_sessions) == (6, 3)


def test_all_seen_sessions_together_and_each_image_once():
    data = incremental()
    for split in ("train", "val", "test"):
        parts = [read(data.session_loader(session, split)) for session in range(3)]
        found, labels = read(data.seen_loader(1, split))
        assert found.tolist() == [*parts[0][0].tolist(), *parts[1][0].tolist()]
        assert labels.tolist() == [*parts[0][1].tolist(), *parts[1][1].tolist()]
    assert [read(loader)[1].unique().tolist() for loader in data.test_dataloader()] == data.session_classes


def test_numbers_of_images_are_the_same_whatever_the_order():
    data = incremental(with_index=True)
    by_number = {}
    for images, labels, index in [*data.session_loader(0, "train"), *data.train_dataloader()]:
        for image, label, number in zip(images, labels, index.tolist(), strict=True):
            assert round(image.max().item() * 1000) == number
            assert by_number.setdefault(number, label.item()) == label.item()
    assert len(by_number) == 27


def test_a_class_that_is_in_no_session_is_left_out():
    data = incremental(sessions=[[4, 1], [0]])
    found = [read(data.session_loader(session, "train"))[0] % 6 for session in range(2)]
    assert [set(part.tolist()) for part in found] == [{1, 4}, {0}]


@pytest.mark.parametrize(
    ("split", "session", "words"), [("dev", 0, "split='dev'"), ("val", 3, "session=3 must be 0..2")]
)
def test_unknown_parts(split, session, words):
    with pytest.raises(ValueError, match=words):
        incremental().session_loader(session, split)


# ---- preparation


def test_real_digits_as_a_network_wants_them():
    data = ClassIncrementalData("digits", sessions=2, class_order="sorted", image_size=8, validation=0.0)
    data.setup()
    images, labels = next(iter(data.session_loader(0, "train")))
    source = digits()
    first = source.pixels[(source.labels < 5)].float() / 16
    distances = ((images[:, 0].flatten(1)[:, None] * 0.5 + 0.5) - first.flatten(1)).abs().amax(2)
    assert distances.amin(1).max() < 1e-6
    assert source.labels[source.labels < 5][distances.argmin(1)].tolist() == labels.tolist()
    assert images.shape == (48, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])


def test_resizing_and_cutting_as_pillow_and_torchvision_do():
    from torchvision.transforms import v2

    image = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    chain = v2.Compose([v2.Resize(12, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(9)])
    expected = chain(image).clamp(0, 1)
    torch.testing.assert_close(resize_and_crop(image, 9, Preparation(crop_pct=0.75)), expected)


def test_normalisation_of_each_channel():
    data = incremental(preparation=Preparation(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0)))
    images = next(iter(data.session_loader(0, "test")))[0]
    plain = next(iter(incremental().session_loader(0, "test")))[0]
    for channel, (mean, std) in enumerate(zip((0.1, 0.2, 0.3), (1, 2, 4), strict=True)):
        torch.testing.assert_close(images[:, channel], (plain[:, channel] - mean) / std)


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.lists(st.floats(0, 0.999), min_size=4, max_size=4))
def test_random_cuts_lie_in_the_image(height, width, draw):
    top, left, cut_height, cut_width = random_cut(height, width, torch.tensor(draw), (0.05, 1.0))
    assert 0 <= top <= top + cut_height <= height
    assert 0 <= left <= left + cut_width <= width
    assert min(cut_height, cut_width) >= 1


def test_random_cuts_have_the_areas_and_shapes_asked_for():
    draws = torch.rand(4000, 4, generator=torch.Generator().manual_seed(1))
    cuts = np.array([random_cut(1000, 1000, draw, (0.05, 0.5)) for draw in draws])
    areas, shapes = cuts[:, 2] * cuts[:, 3] / 1e6, cuts[:, 3] / cuts[:, 2]
    assert (areas.min(), areas.max()) == pytest.approx((0.05, 0.5), abs=2e-3)
    assert areas.mean() == pytest.approx(0.275, abs=6e-3)
    assert (shapes.min(), shapes.max()) == pytest.approx((3 / 4, 4 / 3), abs=5e-3)
    assert np.log(shapes).mean() == pytest.approx(0, abs=8e-3)


@pytest.mark.parametrize("augment", ["shift", "resized_crop"])
def test_augmentation_follows_from_seed_and_epoch_and_reaches_training_alone(augment):
    preparation = Preparation(augment=augment, flip=True)
    options = {
        "dataset": "digits",
        "sessions": 2,
        "image_size": 8,
        "preparation": preparation,
        "with_index": True,
    }

    def epoch_of(number, **more):
        data = ClassIncrementalData(**{**options, **more})
        data.setup()
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        images, _, index = (torch.cat(parts) for parts in zip(*loader, strict=True))
        return images[index.argsort()]

    first = epoch_of(0)
    assert torch.equal(epoch_of(0), first)
    assert not torch.equal(epoch_of(1), first)
    assert torch.equal(epoch_of(0, batch_size=7), first)
    data = ClassIncrementalData(**options)
    data.setup()
    plain = torch.cat([batch[0] for batch in data.session_loader(0, "train")])
    assert (first != plain).flatten(1).any(1).float().mean() > 0.8
    again = torch.cat([batch[0] for batch in data.session_loader(0, "train", train_transforms=True)])
    assert torch.equal(again, first)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"std": 0.0}, "std=0.0 must be above 0"),
        ({"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\) must be one number or three"),
        ({"augment": "auto"}, "augment='auto' must be one of"),
        ({"interpolation": "nearest"}, "interpolation='nearest' must be"),
        ({"crop_pct": 0.0}, "crop_pct=0.0 must be above 0"),
        ({"scale": (0.5, 0.1)}, "must be two ascending shares"),
        ({"padding": 0}, "padding=0 must be 1 or more"),
    ],
)
def test_bad_preparations(options, words):
    with pytest.raises(ValueError, match=words):
        Preparation(**options)


# ---- other sources


def test_tensors_data_sets_and_pillow_images_are_the_same():
    (images, labels), test = numbered()

    class Items:
        """As torchvision's data sets are."""

        def __init__(self, convert):
            self.convert, self.targets = convert, labels.tolist()

        def __len__(self):
            return len(labels)

        def __getitem__(self, position):
            return self.convert((images[position] * 255).byte()), int(labels[position])

    whole = ((images * 255).byte(), labels)
    kinds = [whole, TensorDataset(*whole), Items(lambda x: x)]
    kinds += [
        Items(lambda x: Image.fromarray(x.permute(1, 2, 0).numpy())),
        Items(lambda x: x.permute(1, 2, 0).numpy()),
    ]
    kinds += [Items(lambda x: Image.fromarray(x[0].numpy()))]
    results = []
    for kind in kinds:
        data = ClassIncrementalData((kind, test), sessions=3, image_size=6, with_index=True)
        data.setup()
        results.append([torch.cat(parts) for parts in zip(*data.session_loader(1, "train"), strict=True)])
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ((torch.zeros(4, 3, 2, 2), torch.zeros(3, dtype=torch.int64)), r"labels of shape \(3,\)"),
        ((torch.zeros(4, 2, 2, 2), torch.zeros(4, dtype=torch.int64)), "with 1, 3 or 4 channels"),
        ((torch.full((4, 3, 2, 2), 7.0), torch.zeros(4, dtype=torch.int64)), "must lie in 0..1"),
        ((torch.zeros(4, 3, 2, 2), torch.zeros(4)), "labels must be integers of 0 or more"),
        ((torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, -1, 0])), "labels must be integers of 0 or more"),
        ("cifar", "images can't be had of a str"),
    ],
)
def test_images_that_do_not_fit(part, words):
    with pytest.raises(MisconfigurationException, match=words):
        ClassIncrementalData((part, part), sessions=1)


def test_domains_bring_the_same_classes_again():
    (images, labels), (test_images, test_labels) = numbered(classes=4)
    domains = [((images, labels), (test_images, test_labels))]
    domains.append(((images + 0.2, labels), (test_images + 0.2, test_labels)))
    data = ClassIncrementalData(
        domains, epochs_per_session=[2, 1], image_size=4, preparation=PLAIN, seed=5, with_index=True
    )
    data.setup()
    assert data.session_classes == [[0, 1, 2, 3]] * 2
    assert (data.num_classes, data.num_sessions, data.classes_seen(0)) == (4, 2, 4)
    assert [data.session_of_epoch(epoch) for epoch in range(3)] == [0, 0, 1]
    first, second = (read(data.session_loader(session, "train")) for session in range(2))
    assert (second[0] - 200).tolist() == first[0].tolist()
    assert second[1].tolist() == first[1].tolist()
    numbers = torch.cat([batch[2] for batch in data.seen_loader(1, "train")])
    assert len(numbers.unique()) == len(numbers) == len(first[0]) * 2


def write_folders(root, classes=("cat", "dog"), sides=((9, 12), (12, 9), (8, 8), (16, 10))):
    for part in ("train", "test"):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for index, side in enumerate(sides):
                Image.new("RGB", side, (100 * number + index, 0, 0)).save(root / part / name / f"{index}.png")


def test_folders_of_images_of_any_size(tmp_path):
    write_folders(tmp_path)
    data = ClassIncrementalData(
        "folder",
        sessions=2,
        class_order="sorted",
        data_dir=tmp_path,
        image_size=8,
        preparation=PLAIN,
        validation=0.25,
    )
    data.setup()
    images, labels = next(iter(data.session_loader(1, "test")))
    assert images.shape == (4, 3, 8, 8)
    assert labels.tolist() == [1] * 4
    torch.testing.assert_close(images[:, 0].amax((1, 2)) * 255, torch.tensor([100.0, 101, 102, 103]))
    assert [len(data.session_loader(0, split).dataset) for split in ("train", "val", "test")] == [3, 1, 4]


# timm leaves closing the files that it opens to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_data_sets_of_timm_and_torchvision_are_read_alike(tmp_path):
    """timm's has no list of labels: its reader has them."""
    from timm.data import create_dataset
    from torchvision.datasets import ImageFolder

    write_folders(tmp_path)
    found = []
    for make in (lambda part: create_dataset("", root=str(part)), lambda part: ImageFolder(str(part))):
        sets = make(tmp_path / "train"), make(tmp_path / "test")
        data = ClassIncrementalData(sets, sessions=2, image_size=8, with_index=True, validation=0.25)
        data.setup()
        loader = data.session_loader(1, "train")
        found.append([torch.cat(parts) for parts in zip(*loader, strict=True)])
        assert len(found[-1][1]) == 3
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_folders_of_domains(tmp_path):
    for domain in ("clipart", "sketch", "real"):
        write_folders(tmp_path / domain)
    data = ClassIncrementalData("domains", data_dir=tmp_path, image_size=8)
    data.setup()
    assert data.session_classes == [[0, 1]] * 3


@pytest.mark.parametrize("dataset", ["folder", "domains", "cifar100"])
def test_missing_files_name_their_folder(tmp_path, dataset):
    data = ClassIncrementalData(dataset, sessions=None if dataset == "domains" else 2, data_dir=tmp_path)
    with pytest.raises(MisconfigurationException, match=f"dataset='{dataset}'.*{re.escape(str(tmp_path))}"):
        data.setup()


# ---- in a Trainer


class Recorder(LightningModule):
    """Learns a little and writes down what it was shown."""

    def __init__(self):
        super().__init__()
        self.layer, self.shown = torch.nn.Linear(3 * 16, 6), []

    def training_step(self, batch, _):
        images, labels = batch
        self.shown.append((self.current_epoch, labels.tolist(), images.sum().item()))
        return torch.nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(folder, **options):
    options = {"max_epochs": 5, "reload_dataloaders_every_n_epochs": 1, **options}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **options)


def test_one_fit_goes_through_the_sessions(tmp_path):
    data, model = incremental(epochs_per_session=[2, 1, 2]), Recorder()
    trainer(tmp_path, enable_checkpointing=False).fit(model, datamodule=data)
    for epoch, labels, _ in model.shown:
        assert set(labels) <= set(data.session_classes[[0, 0, 1, 2, 2][epoch]])
    steps = [sum(entry[0] == epoch for entry in model.shown) for epoch in range(5)]
    assert steps == [4, 4, 3, 2, 2]  # 27, 18 and 9 images in batches of 7
    orders = [[label for entry in model.shown if entry[0] == epoch for label in entry[1]] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_equals_uninterrupted_within_and_between_sessions(tmp_path, stop):
    options = {"epochs_per_session": [2, 1, 2], "preparation": Preparation(augment="shift", padding=1)}

    def run(**more):
        seed_everything(1, verbose=False)
        model = Recorder()
        run_trainer = trainer(tmp_path, **more)
        run_trainer.fit(model, datamodule=incremental(**options))
        return model, run_trainer

    whole, _ = run(enable_checkpointing=False)
    first, stopped = run(max_epochs=stop, enable_checkpointing=False)
    stopped.save_checkpoint(tmp_path / "stop.ckpt")
    seed_everything(99, verbose=False)
    second = Recorder()
    trainer(tmp_path, enable_checkpointing=False).fit(
        second, datamodule=incremental(**options), ckpt_path=tmp_path / "stop.ckpt", weights_only=True
    )
    assert [*first.shown, *second.shown] == whole.shown
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reload_dataloaders_every_n_epochs": 0}, "give the Trainer reload_dataloaders_every_n_epochs=1"),
        (
            {"max_epochs": 6},
            r"max_epochs=6: the sessions take \[2, 1, 2\] epochs; give the Trainer max_epochs=5",
        ),
        ({"max_epochs": -1}, r"max_epochs=-1: .*max_epochs=5"),
    ],
)
def test_a_trainer_set_up_wrongly_is_told(tmp_path, options, words):
    model, init = Recorder(), DataLoader.__init__
    with pytest.raises(MisconfigurationException, match=words):
        trainer(tmp_path, enable_checkpointing=False, **options).fit(
            model, datamodule=incremental(epochs_per_session=[2, 1, 2])
        )
    assert model.shown == []
    assert DataLoader.__init__ is init, "Lightning restores it only if no loader raises"


@given(st.integers(1, 12), st.integers(1, 5))
def test_shares_of_processes_hold_every_image_once(count, world):
    shares = [list(ShardSampler(torch.arange(count), world, rank)) for rank in range(world)]
    assert sorted(position for share in shares for position in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [len(ShardSampler(torch.arange(count), world, rank)) for rank in range(world)] == list(
        map(len, shares)
    )


def test_processes_train_on_equal_numbers_and_evaluate_each_image_once(monkeypatch):
    trained, evaluated = [], []
    for rank in range(2):
        data = incremental(batch_size=100)
        monkeypatch.setattr(data, "_processes", lambda rank=rank: (2, rank))
        trained.append(read(data.train_dataloader())[0])
        evaluated.append(read(data.seen_loader(2, "test"))[0])
    assert [len(part) for part in trained] == [14, 14]  # of 27, one twice
    assert len(torch.cat(trained).unique()) == 27
    assert torch.cat(evaluated).sort().values.tolist() == list(range(500, 518))
