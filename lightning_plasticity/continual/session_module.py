"""A LightningModule that learns in sessions: when each begins and ends, also in a run that goes on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_plasticity.continual import sessions
from lightning_plasticity.continual.learners import Batches
from lightning_plasticity.continual.processes import Processes

AT_ONCE = 4  # batches in one pass without gradients, which needs less memory


class SessionModule(LightningModule, ABC):
    """Sessions as ranges of epochs of one fit, each begun and ended once.

    A session begins with its first epoch and ends with its last. Lightning leaves out hooks where a run goes
    on from a checkpoint: `on_train_epoch_start` inside an epoch, `on_train_epoch_end` after an epoch's last
    batch, and every hook of training once all epochs are over. What they would have done is made up for at
    the next hook that comes.

    Attributes:
        begun: sessions begun.
        ended: sessions ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun = self.ended = 0
        self._at: int | None = None  # the session that `locate` was told of in this fit
        self._restored = 0, 0  # epochs and steps of the checkpoint that the run goes on from

    @abstractmethod
    def locate(self, old: int, seen: int) -> None:
        """Takes the numbers of classes before the current session, and with it."""

    @abstractmethod
    def begin_session(self, session: int) -> None:
        """Gets ready for a session's first batch."""

    @abstractmethod
    def end_session(self, session: int) -> dict[str, float]:
        """Takes in what a session gave, after its last batch; gives the numbers to log."""

    # --- hooks ---

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps how far the checkpoint's run was."""
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
        self._restored = progress.get("current", {}).get("processed", 0), checkpoint.get("global_step", 0)

    def on_fit_start(self) -> None:
        """Ends the last session if the checkpoint's epochs were all over: no later hook comes then.

        Raises:
            MisconfigurationException: for a model that has learned and a fit without its checkpoint.
        """
        (epochs, step), self._restored, self._at = self._restored, (0, 0), None
        self._check_start(bool(epochs or step))
        if epochs >= sum(sessions.require_sessions(self.trainer).epochs_per_session):
            self._end_late(epochs, step)

    def on_train_start(self) -> None:
        """Ends a session whose last batch was the checkpoint's last: its own end does not come then."""
        self._check_start(self.global_step > 0)
        self._end_late(self.current_epoch, self.global_step)

    def on_train_epoch_start(self) -> None:
        """Begins a session with its first epoch."""
        self._take_up()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Takes up the session of a run that goes on: `on_train_epoch_start` may not have come."""
        if batch_idx == 0 or self._at is None:
            self._take_up()

    def on_train_epoch_end(self) -> None:
        """Ends a session with its last epoch."""
        if self._is_over(self.current_epoch + 1):
            self.log_dict(self._end())

    # --- what they do ---

    def _check_start(self, goes_on: bool) -> None:
        """Refuses to begin sessions that the model has begun: nothing would be taken in at their ends."""
        if self.begun and not goes_on:
            raise MisconfigurationException(
                f"the model has begun {self.begun} sessions and ended {self.ended}: to go on, give a new "
                "Trainer's fit the checkpoint, ckpt_path=...; to begin anew, make a new model"
            )

    def _take_up(self) -> None:
        """Goes to the session of the current epoch, and begins it if it has not begun."""
        session = sessions.require_sessions(self.trainer).session_of_epoch(self.current_epoch)
        self._go_to(session)
        if self.begun <= session:
            self.begin_session(session)
            self.begun = session + 1

    def _go_to(self, session: int) -> None:
        self._at = session
        self.locate(*sessions.classes_at(sessions.require_sessions(self.trainer), session))

    def _is_over(self, epochs: int) -> bool:
        """Whether the session begun last ends with so many epochs, and has not ended yet."""
        own = sessions.require_sessions(self.trainer).epochs_per_session
        return self.ended < self.begun and epochs >= sum(own[: self.begun])

    def _end(self) -> dict[str, float]:
        self._go_to(self.begun - 1)
        return self.end_session(self.begun - 1)

    def _end_late(self, epochs: int, step: int) -> None:
        """Makes up for an end; no epoch's end sends these numbers to the loggers, so it is done here."""
        if self._is_over(epochs):
            numbers = self._end()
            for logger in self.trainer.loggers:
                logger.log_metrics(numbers, step)

    # --- what a session's images pass through ---

    def images(self, session: int, split: str) -> Iterator[Any]:
        """This process's batches of a session's images in test form, on the device."""
        data = sessions.require_sessions(self.trainer)
        batches = iter(data.session_loader(session, split, train_transforms=False))
        while group := list(islice(batches, AT_ONCE)):
            yield [torch.cat(parts).to(self.device) for parts in zip(*group, strict=True)]

    def training_images(self, session: int) -> Batches:
        """Gives a session's training images in test form, each time anew."""
        return lambda: self.images(session, "train")

    def processes(self) -> Processes:
        """The Trainer's."""
        trainer = self.trainer

        def total(tensor: Tensor) -> Tensor:
            summed: Any = trainer.strategy.reduce(tensor.clone(), reduce_op="sum")
            return summed  # type: ignore[no-any-return]

        return Processes(trainer.world_size, trainer.global_rank, total)

    def precision(self) -> Any:
        """The Trainer's autocast, outside of its own steps too."""
        if self._trainer is None:
            return torch.autocast(self.device.type, enabled=False)
        return self.trainer.precision_plugin.forward_context()
