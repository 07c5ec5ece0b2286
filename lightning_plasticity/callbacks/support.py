"""What every callback needs to know about the run it is in."""

import zlib
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
)
from lightning.pytorch.utilities.data import _extract_batch_size
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from lightning_plasticity.sparsity.masks import apply_masks_, local, pack_mask

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor
    from torch.distributed import ProcessGroup

    from lightning_plasticity.sparsity.sparsifier import Sparsifier

_REASONS = {
    DeepSpeedStrategy: "DeepSpeed owns gradients and steps: neither can be masked at the right moment",
    FSDPStrategy: "FSDP1 flattens parameters, so layers have no masks; use ModelParallelStrategy (FSDP2)",
}


def callbacks_of(trainer: Trainer) -> list[Any]:
    """The trainer's callbacks, which Lightning sets without declaring them."""
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]


def leaves_no_trace(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which Lightning sets without declaring it."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def check_strategy(trainer: Trainer, who: str) -> None:
    """Refuse strategies under which masks would silently go wrong.

    Raises:
        MisconfigurationException: Names the strategy and the reason.
    """
    strategy = trainer.strategy
    if isinstance(strategy, tuple(_REASONS)):
        reason = next(text for kind, text in _REASONS.items() if isinstance(strategy, kind))
    elif period := getattr(strategy, "_model_averaging_period", None):
        reason = (
            f"with model_averaging_period={period} gradients differ between processes, and so would masks; "
            "leave it out"
        )
    elif type(strategy).__name__ in ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy"):
        return  # by name: pytorch_lightning has classes of its own, and XLA's are subclasses of these
    else:
        reason = "it is not among the strategies that are tested"
    raise MisconfigurationException(
        f"{who} does not work with strategy={type(strategy).__name__}: {reason}. "
        "Tested: single device, ddp, ModelParallelStrategy (FSDP2)."
    )


def log_now(trainer: Trainer, numbers: "Mapping[str, float]") -> None:
    """Send numbers to every logger now, under the step that the trainer logs under."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in trainer.loggers:
        logger.log_metrics(dict(numbers), step=step)


def shard_group(parameters: "Iterable[Tensor]") -> "ProcessGroup | None":
    """The process group that shards parameters along their first dimension; None if they are whole.

    Raises:
        MisconfigurationException: If parameters are cut in another way (tensor parallelism) or not all alike.
    """
    parameters = list(parameters)
    if len({p.device_mesh if isinstance(p, DTensor) else None for p in parameters}) > 1:
        raise MisconfigurationException(
            "some masked parameters are sharded and some are whole, or they are sharded over different "
            "processes: call fully_shard on the whole model after its layers, or leave the others out with "
            "exclude=[...]."
        )
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            if parameter.device_mesh.ndim != 1 or not parameter.placements[0].is_shard(0):
                raise MisconfigurationException(
                    f"masked parameters are placed as {parameter.placements}: only FSDP2's data-parallel "
                    "sharding along dimension 0 is supported. Set tensor_parallel_size=1, or leave these "
                    "layers out with exclude=[...]."
                )
            return parameter.device_mesh.get_group()
    return None


def unscales_itself(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Whether a fused optimizer is left to unscale fp16 gradients inside its step, which forbids clipping."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)


def batch_size(batch: Any) -> int | None:
    """Samples in a batch, None where it cannot be told."""
    try:
        return next(_extract_batch_size(batch))
    except (StopIteration, TypeError):
        return None


@torch.no_grad()
def mask_averages(trainer: Trainer, masks: "Mapping[str, Tensor]") -> None:
    """Mask the averaged weights that ``WeightAveraging`` and ``StochasticWeightAveraging`` keep.

    An average over time is denser than any of its masks. After this it is as sparse as the newest one, and
    stays so, because the weights that it goes on averaging are.
    """
    for callback in callbacks_of(trainer):
        average = getattr(callback, "_average_model", None)
        if isinstance(average, nn.Module):
            model = average.module if isinstance(average, AveragedModel) else average
            parameters = dict(model.named_parameters())
            names = [name for name in masks if name in parameters]
            masked = [masks[name].to(parameters[name].device) for name in names]
            apply_masks_([local(parameters[name]) for name in names], masked)


def check_equal_masks(engines: "Iterable[Sparsifier]") -> None:
    """Compare masks over all processes by checksum, or by count where each holds a shard; a debugging aid.

    Raises:
        RuntimeError: Names the masks that differ.
    """
    if not torch.distributed.is_initialized():
        return
    own = {
        name: count if engine.group is not None else zlib.crc32(pack_mask(mask).cpu().numpy().tobytes())
        for engine in engines
        for (name, mask), count in zip(engine.masks.items(), engine.counts, strict=True)
    }
    everyone: list[dict[str, int] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    if different := [name for name in own if len({(other or {}).get(name) for other in everyone}) > 1]:
        raise RuntimeError(f"masks differ between processes: {different}")
