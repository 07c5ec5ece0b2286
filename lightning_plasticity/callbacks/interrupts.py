"""FinishBatch: Ctrl-C waits for the end of a batch, so that what is saved then is no half of one."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class FinishBatch(Callback):
    """Put a Ctrl-C off until the batch that is being learned is over; a second one stops at once.

    In the middle of a batch the statistics of BatchNorm may have moved and the weights not, or some of them:
    a run resumed from there would not be the uninterrupted one. It belongs in front of all other callbacks.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._asked = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if it was asked for in the last batch; else listen."""
        self._stop_if_asked()
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._release()
            signal.default_int_handler(number, frame)
        self._asked = True

    def _stop_if_asked(self) -> None:
        asked = self._asked
        self._release()
        if asked:
            raise KeyboardInterrupt

    def _release(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        self._before, self._asked = None, False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No batch is being learned: stop if it was asked for."""
        self._stop_if_asked()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No batch is being learned: stop if it was asked for."""
        self._stop_if_asked()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signal back."""
        self._release()
