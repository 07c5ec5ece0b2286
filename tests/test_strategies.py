"""One device and DDP pass, their subclasses do not."""

from types import SimpleNamespace

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, strategies
from pytorch_lightning.strategies import DDPStrategy as OtherDDP

from lightning_plasticity.strategies import check_unsharded


def of(kind):
    return SimpleNamespace(strategy=object.__new__(kind))


def test_one_device_and_ddp_pass():
    check_unsharded(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
    check_unsharded(of(strategies.DDPStrategy))
    check_unsharded(of(OtherDDP))


@pytest.mark.parametrize(
    "name", ["DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy", "SingleDeviceXLAStrategy"]
)
def test_others_do_not(name):
    words = rf"strategy={name} is not supported: sums are cut; use one device or strategy='ddp'"
    with pytest.raises(MisconfigurationException, match=words):
        check_unsharded(of(getattr(strategies, name)), "sums are cut")
