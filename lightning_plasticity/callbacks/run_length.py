"""How long a run is, in optimizer steps and epochs, and whether schedules fit into it."""

import math

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_plasticity.callbacks.support import callbacks_of
from lightning_plasticity.sparsity.config import SparsityConfig

ENDLESS = 2**62
"""Steps of a run without end, for schedules that need no end."""


def optimizer_steps(trainer: Trainer) -> int | None:
    """Steps that each optimizer will make in the whole run; None if open-ended.

    Several optimizers share ``max_steps``, since the trainer's ``global_step`` adds them up.
    """
    if accumulation_changes(trainer):
        return None  # the trainer's estimate holds for the first factor only
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps) or steps < 0:
        return None
    if trainer.max_steps == steps and len(trainer.optimizers) > 1:
        return int(steps) // len(trainer.optimizers)
    return int(steps)


def epochs_of(trainer: Trainer) -> int | None:
    """Epochs of the whole run, the last perhaps cut short by ``max_steps``; None if that cannot be told."""
    limits = [trainer.max_epochs] if trainer.max_epochs is not None and trainer.max_epochs >= 0 else []
    batches = trainer.num_training_batches
    counts_steps = trainer.lightning_module.automatic_optimization and not accumulation_changes(trainer)
    if trainer.max_steps >= 0 and counts_steps and not math.isinf(batches):
        limits.append(math.ceil(trainer.max_steps / math.ceil(batches / trainer.accumulate_grad_batches)))
    return min(limits, default=None)


def accumulation_changes(trainer: Trainer) -> bool:
    """Whether a GradientAccumulationScheduler changes the batches of an optimizer step during the run."""
    return any(len(getattr(callback, "scheduling", None) or {}) > 1 for callback in callbacks_of(trainer))


def scheduled_steps(trainer: Trainer, config: SparsityConfig, given: int | None, who: str) -> int:
    """Optimizer steps that schedules are laid over; :data:`ENDLESS` where they need no end.

    Args:
        trainer: The run.
        config: The schedules.
        given: The user's own number, which the trainer's estimate gives way to.
        who: The callback that errors name.

    Raises:
        MisconfigurationException: If a schedule needs the run's length and the run has none.
    """
    total = given or optimizer_steps(trainer)
    sparsities = list(config.sparsity_schedules.values())
    if total is None:
        if any(schedule.needs_total for schedule in (*sparsities, config.regrow_schedule)):
            raise MisconfigurationException(
                f"{who} has times given as fractions of the run, but the run has no known end: set "
                "Trainer(max_steps=...) or max_epochs, give the callback total_steps=..., or give times as "
                "steps (int)."
            )
        return ENDLESS
    if not all(schedule(total, total) == schedule(ENDLESS, total) for schedule in sparsities):
        rank_zero_warn(f"{who}: the run ends after {total} optimizer steps, before its sparsity is reached.")
    return total


def few_updates(update_every: int, total: int) -> str | None:
    """Say when a run is too short for its updates to come gradually; None if it is not."""
    if (updates := max(1, total // update_every)) >= 10:  # the schedule's end is one
        return None
    usual = max(1, total // 50)
    way_out = f"update_every={usual}" if usual < update_every else "train longer"
    return (
        f"update_every={update_every} makes {updates} mask update{'s' if updates > 1 else ''} in {total} "
        f"optimizer steps; about 50 are usual: {way_out}."
    )
