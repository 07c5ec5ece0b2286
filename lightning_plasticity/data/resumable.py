"""A DataLoader that goes on inside an epoch."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose place in the epoch is saved in Lightning's checkpoints.

    Lightning stores the state of a training loader that has one. A run that is resumed inside an epoch then
    sees the rest of it: the batches before are drawn again and dropped, so it is meant for data
    whose order follows from the epoch alone, as `EpochSampler`'s does. The place counts in that epoch alone,
    if the sampler knows its epoch.

    Args:
        *args: as DataLoader.
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given, self._skip = 0, 0
        self._in_epoch: int | None = None

    @property
    def _epoch(self) -> int:
        return int(getattr(self.sampler, "epoch", 0))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Gives the batches of an epoch, or those that are left of one."""
        skip, self._skip = self._skip if self._in_epoch in (None, self._epoch) else 0, 0
        for number, batch in enumerate(super().__iter__(), start=1):
            if number > skip:
                self._given = number
                yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of which epoch have been given."""
        return {"batches": self._given, "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skips the batches that were given already; none in another epoch, or if they were all."""
        self._given, self._in_epoch = state["batches"], state.get("epoch")
        self._skip = state["batches"] % len(self)
