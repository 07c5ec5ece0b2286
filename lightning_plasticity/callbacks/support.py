"""What every callback needs to know about the run it is in."""

import math
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from torch.distributed import ProcessGroup

_REASONS = {
    DeepSpeedStrategy: "DeepSpeed owns gradients and optimizer steps, so neither can be masked at the right moment",
    FSDPStrategy: "FSDP1 flattens parameters, so layers have no masks of their own; use ModelParallelStrategy (FSDP2)",
}


def check_strategy(trainer: Trainer, who: str) -> None:
    """Refuse strategies under which masks would silently go wrong.

    Raises:
        MisconfigurationException: Names the strategy and the reason.
    """
    strategy = trainer.strategy
    if isinstance(strategy, tuple(_REASONS)):
        reason = next(text for kind, text in _REASONS.items() if isinstance(strategy, kind))
    elif isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy):
        return
    elif type(strategy).__name__ in ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy"):
        return  # the same classes under the name pytorch_lightning
    else:
        reason = "it is not among the strategies that are tested"
    raise MisconfigurationException(
        f"{who} does not work with strategy={type(strategy).__name__}: {reason}. "
        "Tested: single device, ddp, ModelParallelStrategy (FSDP2)."
    )


def optimizer_steps(trainer: Trainer) -> int | None:
    """Steps that each optimizer will make in the whole run, as the trainer's settings tell; None if
    open-ended.

    Several optimizers share ``max_steps``, since the trainer's ``global_step`` adds them up.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps) or steps < 0:
        return None
    if trainer.max_steps == steps and len(trainer.optimizers) > 1:
        return int(steps) // len(trainer.optimizers)
    return int(steps)


def shard_group(parameters: "Iterable[Tensor]") -> "ProcessGroup | None":
    """The process group over which parameters are sharded along their first dimension; None if they are
    whole.

    Raises:
        MisconfigurationException: If parameters are cut in another way (tensor parallelism).
    """
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            if parameter.device_mesh.ndim != 1 or not parameter.placements[0].is_shard(0):
                raise MisconfigurationException(
                    f"masked parameters are placed as {parameter.placements}: only FSDP2's data-parallel sharding along "
                    "dimension 0 is supported. Set tensor_parallel_size=1 or leave these layers out with exclude=[...]."
                )
            return parameter.device_mesh.get_group()
    return None


def optimizer_of(parameter: "Tensor", optimizers: "Iterable[Optimizer]") -> Optimizer | None:
    """The optimizer that holds a parameter."""
    for optimizer in optimizers:
        if any(parameter is held for group in optimizer.param_groups for held in group["params"]):
            return optimizer
    return None
