"""DriftData: what each phase holds, and that a stream is the same whenever it is asked for."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_plasticity.data import DriftData


def stream(**options):
    data = DriftData(**({"dataset": "digits", "phases": 4, "steps_per_phase": 2, "batch_size": 20} | options))
    data.setup()
    return data, list(data.train_dataloader())


def test_classes_take_turns_with_a_reminder():
    data, batches = stream(kind="classes", old_share=0.1)
    shares = [float((labels < 5).float().mean()) for _, labels in batches]
    assert shares == pytest.approx([0.9, 0.9, 0.1, 0.1, 0.9, 0.9, 0.1, 0.1])
    assert [data.condition_at(step) for step in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert batches[0][0].shape == (20, 1, 8, 8)
    assert data.shape == (1, 8, 8)


def test_contrast_takes_turns():
    data, batches = stream(kind="contrast")
    peaks = [float(images.max()) for images, _ in batches]
    assert peaks == pytest.approx([1, 1, 0.2, 0.2, 1, 1, 0.2, 0.2])
    full, faint = data.test_set(0), data.test_set(1)
    torch.testing.assert_close(0.2 * full[0], faint[0])
    assert torch.equal(full[1], faint[1])


def test_a_stream_is_the_same_again_and_another_for_another_seed():
    one, again, other = (stream(seed=seed)[1] for seed in (1, 1, 2))
    for (x, y), (a, b) in zip(one, again, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
    assert not torch.equal(one[0][0], other[0][0])
    assert not torch.equal(one[0][0], one[1][0])


def test_train_and_test_images_are_apart():
    data, _ = stream()
    train, test = ({tuple(x.flatten().tolist()) for x in part[0][0]} for part in (data._train, data._test))
    assert not train & test


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "size"},
        {"phases": 0},
        {"steps_per_phase": 0},
        {"batch_size": 0},
        {"old_share": 0.6},
        {"dataset": "x"},
    ],
)
def test_bad_arguments(options):
    with pytest.raises(MisconfigurationException, match=next(iter(options))):
        DriftData(**options)
