"""FinishBatch: Ctrl-C waits for the end of a batch, so that what is saved then is no half of one."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class FinishBatch(Callback):
    """Put a Ctrl-C off until the batch that is being learned is over; a second one stops at once.

    In the middle of a batch the statistics of BatchNorm may have moved and the weights not, or some of them:
    a run resumed from there would not be the uninterrupted one. Between batches a Ctrl-C stops at once. It is
    remembered, too: a library that swallows every exception (fsspec does while it looks whether a file
    exists, and Lightning asks it at each checkpoint) would else swallow the interrupt, and the run go on.

    It belongs in front of all other callbacks. In one process only: of several each could stop at another
    batch, and the others would wait for it.

    Attributes:
        asked: whether a Ctrl-C came in this fit. Workers of a data loader may hear it too and end at once, so
            that an error of the loader may come before the next batch does: it is the interrupt.
    """

    def __init__(self) -> None:
        self.asked = False
        self._learning = False
        self._before: Any = None
        self._process = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, and listen."""
        self.asked = self._learning = False
        self._process = os.getpid()
        if (
            trainer.world_size == 1
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker, forked since: it is needed until the end
            return
        again, self.asked = self.asked, True
        if again or not self._learning:
            signal.default_int_handler(number, frame)
        print("Stopping after this batch; once more to stop at once.", file=sys.stderr, flush=True)

    def _between_batches(self) -> None:
        self._learning = False
        if self.asked:
            raise KeyboardInterrupt

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if it was asked for since the last batch began."""
        self._between_batches()
        self._learning = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No batch is being learned: stop if it was asked for."""
        self._between_batches()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No batch is being learned: stop if it was asked for."""
        self._between_batches()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signal back."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signal back."""
        self._release()

    def _release(self) -> None:
        # Lightning ignores the signal while it shuts down: that stays
        if self._before is not None and signal.getsignal(signal.SIGINT) == self._ask:
            signal.signal(signal.SIGINT, self._before)
        self._before = None
