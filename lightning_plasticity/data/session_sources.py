"""Where a session's images come from: bundled sets, torchvision's, folders, tensors or any data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_plasticity.data.session_images import MemoryImages, Selection, Source, open_source
from lightning_plasticity.data.sources import IMAGE_SETS, load_split, optional_module
from lightning_plasticity.data.splits import stratified_split

Split = Literal["train", "val", "test"]
Domain = dict[Split, Source]


def open_domains(dataset: Any, data_dir: Path) -> list[Domain]:
    """Training and test images of each domain; of one, unless the sessions are domains.

    Args:
        dataset: as ``ClassIncrementalData`` takes it.
        data_dir: where torchvision's sets or the folders are.

    Raises:
        ValueError: for images that don't fit, or missing folders.
        MisconfigurationException: for torchvision's missing files.
    """
    if isinstance(dataset, str) and dataset in IMAGE_SETS:
        train, test = (
            MemoryImages(*half, IMAGE_SETS[dataset].peak) for half in load_split(dataset, data_dir)
        )
        return [{"train": train, "test": test}]
    if dataset == "folder":
        pairs = [_folders(data_dir)]
    elif dataset == "domains":
        pairs = [_folders(domain) for domain in sorted(data_dir.glob("*")) if domain.is_dir()]
    else:
        pairs = dataset if isinstance(dataset, list) else [dataset]
    if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{len(pairs)} domains: give a tuple (train, test) for each")
    return [{"train": open_source(train), "test": open_source(test)} for train, test in pairs]


def select_images(
    sources: Sequence[Domain],
    domain: int,
    classes: list[int],
    split: Split,
    number: Tensor,
    validation: float,
    seed: int,
) -> Selection:
    """A session's images of one split.

    Args:
        sources: of all domains.
        domain: which of them.
        classes: the learner's classes of the session.
        split: validation images are split off the training images, class by class.
        number: the learner's class of each label of the data set, -1 for none.
        validation: share of the training images held out.
        seed: of that split.
    """
    half: Split = "test" if split == "test" else "train"
    source = sources[domain][half]
    positions = torch.arange(len(source.labels))
    if split != "test":
        kept, held_out = stratified_split(source.labels, validation, seed)
        positions = kept if split == "train" else held_out
    known = source.labels[positions] < len(number)
    labels = torch.where(known, number[source.labels[positions] * known], -1)
    mine = torch.isin(labels, torch.tensor(classes))
    first = sum(len(other[half].labels) for other in sources[:domain])
    return Selection(source, positions[mine], labels[mine], first)


def _folders(folder: Path) -> tuple[Any, Any]:
    """Training and test images of a folder, as torchvision reads them.

    Raises:
        ValueError: if there are none, or the classes differ.
    """
    datasets = optional_module("torchvision.datasets", "a data set in folders")
    train = folder / "train"
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), folder / "test")
    for part in (train, test):
        if not part.is_dir():
            raise ValueError(
                f"there must be a folder {part.resolve()} that holds one folder of images per class"
            )
    pair = tuple(datasets.ImageFolder(str(part)) for part in (train, test))
    if pair[0].classes != pair[1].classes:
        raise ValueError(f"the classes in {train} and {test} differ: {pair[0].classes} and {pair[1].classes}")
    return pair[0], pair[1]
