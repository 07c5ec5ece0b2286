"""Which strategies keep weights, gradients and sums whole, so that what is local here stays right."""

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

UNSHARDED = ("SingleDeviceStrategy", "DDPStrategy")


def check_unsharded(trainer: Any, why: str = "weights or sums are not whole there") -> None:
    """Refuse every strategy but one device and DDP.

    By name and not by class: strategies of DeepSpeed and XLA are subclasses of these, and
    ``pytorch_lightning`` has classes of its own.

    Args:
        trainer: a Trainer of either package.
        why: what would go wrong.

    Raises:
        MisconfigurationException: names the strategy, the reason and the way out.
    """
    strategy = type(trainer.strategy).__name__
    if strategy not in UNSHARDED:
        raise MisconfigurationException(
            f"strategy={strategy} is not supported: {why}; use one device or strategy='ddp'"
        )
