"""Branches of a run: a copy that is cut and trains on, while the run goes on as if nothing had happened."""

import copy
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_plasticity.callbacks.sparse_training import SparseTraining


class Branch(SparseTraining):
    """One branch: a cut between the first backward pass and optimizer step, then constant masks.

    Args:
        rate: Share of the active connections to cut.
        regrow: Whether each layer gets back as many as it lost.
        masks: The run's masks, empty if it trains dense.
        coupled: Groups of parameters whose filters the run masks together, and the cut too.
        **cut: ``scope``, ``granularity``, ``include`` and ``exclude`` of what is cut.
    """

    def __init__(
        self,
        rate: float,
        regrow: bool,
        masks: Mapping[str, torch.Tensor] | None = None,
        coupled: Sequence[Sequence[str]] = (),
        **cut: Any,
    ) -> None:
        together = coupled if cut["granularity"] == "filter" else ()
        super().__init__(sparsity=0.0, coupled=together or False, **cut)
        self.rate, self.regrow, self.start_masks = rate, regrow, dict(masks or {})
        self.sparsity_before = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the run's masks."""
        if self.start_masks:
            self.include, self.exclude = list(self.start_masks), []
        super().on_fit_start(trainer, pl_module)
        for _, engine in self._engines:
            engine.set_masks(self.start_masks)
        self.sparsity_before = 1.0 - self.density

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Cut once, with the gradients of the uncut net; every later step only holds the masks."""
        for owner, engine in self._engines:
            if owner is optimizer and engine.step == 0:
                engine.cut(optimizer, self.rate, self.regrow)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say nothing: the run that branched reports."""
        self._detach()


def copy_run(
    pl_module: LightningModule, optimizers: Sequence[Optimizer]
) -> tuple[LightningModule, list[Optimizer]]:
    """Copy a module and its optimizers, state and present learning rates included, without schedulers."""
    memo: dict[int, Any] = {}
    module = copy.deepcopy(pl_module, memo)
    module._metric_attributes = None  # Lightning's cache of metrics by id, which are others in the copy
    return module, [copy.deepcopy(optimizer, memo) for optimizer in optimizers]


def branch_trainer(trainer: Trainer, epochs: int, branch: Callback) -> Trainer:
    """A silent Trainer like the given one, which writes nothing and validates once, at its end."""
    return type(trainer)(
        accelerator=trainer.accelerator,
        devices=same_device(trainer.strategy.root_device),
        precision=trainer.precision,
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        limit_train_batches=trainer.limit_train_batches,
        limit_val_batches=trainer.limit_val_batches,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        callbacks=[branch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def validation_data(trainer: Trainer) -> Any:
    """The run's validation dataloaders, loaded now if the run has not validated yet."""
    if trainer.val_dataloaders is None:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    return trainer.val_dataloaders


def same_device(device: torch.device) -> int | list[int]:
    """The ``devices=`` of a Trainer that shall work where another one does.

    Example:
        >>> same_device(torch.device("cuda", 2)), same_device(torch.device("cpu"))
        ([2], 1)
    """
    return [device.index] if device.type == "cuda" and device.index is not None else 1


@contextmanager
def undisturbed(trainer: Trainer) -> Iterator[None]:
    """Put back every random state that a branch moves, and keep its Trainer quiet."""
    generators = {id(g): (g, g.get_state()) for g in _generators(trainer)}
    log = logging.getLogger(type(trainer).__module__.split(".trainer")[0])
    level = log.level
    log.setLevel(logging.ERROR)
    global_state = random_state()
    try:
        yield
    finally:  # also after an interrupt: the run's checkpoint is saved behind it
        set_random_state(global_state)
        log.setLevel(level)
        for generator, state in generators.values():
            generator.set_state(state)


def random_state() -> dict[str, Any]:
    """The global random states of torch, CUDA, NumPy and Python, in plain types for a checkpoint.

    NumPy's too, deprecated as it is: users' data sets and augmentations draw from it.
    """
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put a :func:`random_state` back; CUDA's where there are as many devices."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([device.cpu() for device in state["cuda"]])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])


def _generators(trainer: Trainer) -> Iterator[torch.Generator]:
    """Generators that the run's dataloaders and samplers draw from."""
    for loaders in (trainer.train_dataloader, trainer.val_dataloaders):
        for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
            for owner in (loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler"))):
                for inner in (owner, getattr(owner, "sampler", None)):
                    if isinstance(generator := getattr(inner, "generator", None), torch.Generator):
                        yield generator
