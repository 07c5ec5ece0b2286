"""FinishBatch: an interrupt waits for the end of a batch, so that what is saved then is no half of one."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException


class FinishBatch(Callback):
    """Put a Ctrl-C off until the batch that is being learned is over; a second one stops at once.

    In the middle of a batch the statistics of BatchNorm may have moved and the weights not, or some of them:
    a run resumed from there would not be the uninterrupted one. In validation and while an epoch ends a
    Ctrl-C stops at once. It is remembered, too: a library that swallows every exception (fsspec does while it
    looks whether a file exists, and Lightning asks it at each checkpoint) would else swallow the interrupt,
    and the run go on.

    Of several processes each would stop somewhere else, and the others wait for it for ever. So they ask each
    other before every batch and at the end of an epoch, and stop together once they know the answer, after
    the batch that follows (or after a validation that follows). A second Ctrl-C ends them without a
    checkpoint. They do the same on SIGTERM: Lightning tells the others of it from within the signal's
    handler, and waits for ever if they are in another collective call by then (its issue 20806). Workers of
    data loaders must not get it, as they would end at once. In one process SIGTERM is Lightning's.

    It belongs in front of all other callbacks.

    Attributes:
        asked: whether an interrupt came in this fit. Workers of a data loader may hear it too and end at
            once, so that an error of the loader may come before the next batch does: it is the interrupt.
    """

    def __init__(self) -> None:
        self.asked = False
        self._terminated = self._wait = self._together = self._speaks = False
        self._process = 0
        self._sigterm: Any = None
        self._answers: tuple[dist.Work, torch.Tensor] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self.asked = self._terminated = False
        self._wait = self._together = trainer.world_size > 1 and dist.is_initialized()
        self._answers = None
        self._speaks, self._process = trainer.is_global_zero, os.getpid()
        self._sigterm = signal.getsignal(signal.SIGTERM)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        self._listen()

    def _listen(self) -> None:
        """Hear the signals that nobody else does, but Lightning, which gives all back when its run is over.

        It has noted by now which handlers there were, and has registered its own.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._ask)
        if self._together and self._sigterm is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.asked = self._terminated = True
        else:  # forked since
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker, forked since: it is needed until the end
            return
        again, self.asked = self.asked, True
        if again or not self._wait:
            signal.default_int_handler(number, frame)
        if self._together:  # inside a collective call no handler runs
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._speaks:
            when, how = ("the next", ", without a checkpoint") if self._together else ("this", "")
            print(
                f"Stopping after {when} batch; once more to stop at once{how}.", file=sys.stderr, flush=True
            )

    def _between_batches(self, trainer: Trainer) -> None:
        self._wait = self._together
        if self._together:
            self._ask_the_others(trainer.strategy.root_device)
        elif self.asked:
            raise KeyboardInterrupt

    def _ask_the_others(self, device: torch.device) -> None:
        """Stop if one was told to when they asked each other last; else ask."""
        if self._answers is not None:
            work, flags = self._answers
            work.wait()
            asked, terminated = flags.tolist()
            self.asked = self.asked or bool(asked)
            if asked:
                raise SIGTERMException if terminated else KeyboardInterrupt
        flags = torch.tensor([self.asked, self._terminated], dtype=torch.int32, device=device)
        self._answers = dist.all_reduce(flags, dist.ReduceOp.MAX, async_op=True), flags

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if it was asked for since the last batch began."""
        self._between_batches(trainer)
        self._wait = self._together or trainer.world_size == 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No batch is being learned: stop if it was asked for."""
        # several processes may begin one after different batches, by their clocks (val_check_interval)
        if trainer.state.fn == TrainerFn.FITTING and not self._together:
            self._between_batches(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No batch is being learned: stop if it was asked for."""
        self._between_batches(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last answers."""
        self._answers = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put nothing off any more."""
        self._answers = None
        # Lightning ignores the signal while it shuts down after a Ctrl-C: that stays
        if signal.getsignal(signal.SIGINT) == self._ask:
            signal.signal(signal.SIGINT, signal.default_int_handler)
