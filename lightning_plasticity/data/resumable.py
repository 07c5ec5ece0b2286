"""A DataLoader that goes on inside an epoch."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose place in the epoch is saved in Lightning's checkpoints.

    Lightning stores the state of a training loader that has one. A run that is resumed inside an epoch then
    sees the rest of it: the batches before are drawn again and dropped, so it is meant for data
    whose order follows from the epoch alone, as `EpochSampler`'s does. The place counts in that epoch alone,
    if the epoch is known.

    A batch that was handed out is not yet learned: an interrupt may come in between. With ``trainer`` the
    place is what that Trainer's fit has learned, whoever else draws batches from this loader.

    Args:
        *args: as DataLoader.
        trainer: whose fit this loader feeds; None: the place is what was handed out.
        **kwargs: as DataLoader.

    Example:
        >>> loader = ResumableLoader(range(6), batch_size=2)
        >>> batches = iter(loader)
        >>> next(batches), loader.state_dict()
        (tensor([0, 1]), {'batches': 1, 'epoch': 0})
        >>> other = ResumableLoader(range(6), batch_size=2)
        >>> other.load_state_dict({"batches": 1})
        >>> [batch.tolist() for batch in other]
        [[2, 3], [4, 5]]
    """

    def __init__(self, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trainer = trainer
        self._given, self._skip = 0, 0
        self._in_epoch: int | None = None

    @property
    def _epoch(self) -> int:
        known = 0 if self.trainer is None else _place(self.trainer)["epoch"]
        return int(getattr(self.sampler, "epoch", known))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Gives the batches of an epoch, or those that are left of one."""
        skip, self._skip = self._skip, 0
        return self._batches(super().__iter__(), self._epoch, skip, self._in_epoch)

    def _batches(self, batches: Iterator[Any], epoch: int, skip: int, in_epoch: int | None) -> Iterator[Any]:
        if epoch != self._epoch:  # a resumed fit asks for an iterator first, and names its epoch then
            batches = super().__iter__()
        if self.trainer is not None:
            # Lightning's own way, load_state_dict, is left out if the number of steps was asked for before
            restarts = self.trainer.fit_loop.epoch_loop.restarting
            skip = _place(self.trainer)["batches"] % len(self) if restarts else 0
        elif in_epoch not in (None, self._epoch):
            skip = 0
        for number, batch in enumerate(batches, start=1):
            if number > skip:
                self._given = number
                yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of which epoch have been learned, or given if no Trainer is known."""
        if self.trainer is None:
            return {"batches": self._given, "epoch": self._epoch}
        return _place(self.trainer)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skips the batches that were given already; none in another epoch, or if they were all.

        A Trainer that is known says itself where it goes on.
        """
        self._given, self._in_epoch = state["batches"], state.get("epoch")
        self._skip = state["batches"] % len(self)


def _place(trainer: Trainer) -> dict[str, int]:
    """Where a fit goes on if it is stored now: after how many batches of which epoch.

    A batch counts as processed after its optimizer step and before the hooks of its end; an epoch before the
    hooks of its own. Until an epoch has started, Lightning's count of batches is still that of the last one.
    """
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    started = epochs.started > epochs.processed
    return {"batches": batches.processed if started else 0, "epoch": epochs.processed}
