"""Sessions as ranges of epochs of one fit: what SAFE asks of a data module and of a Trainer."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lightning_plasticity.strategies import check_unsharded


@runtime_checkable
class Sessions(Protocol):
    """A data module of sessions, as `ClassIncrementalData`."""

    @property
    def session_classes(self) -> list[list[int]]:
        """Classes of each session, numbered in order of appearance."""
        ...

    @property
    def epochs_per_session(self) -> list[int]:
        """Epochs of each session."""
        ...

    def session_of_epoch(self, epoch: int) -> int:
        """The session that owns an epoch."""
        ...

    def session_loader(self, session: int, split: Any, train_transforms: bool = False) -> Iterable[Any]:
        """Images of a session in order, this process's unpadded share: every n-th of n processes."""
        ...


def require_sessions(trainer: Trainer) -> Sessions:
    """The trainer's data module, if it has sessions.

    Raises:
        MisconfigurationException: if it has none.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, Sessions):
        raise MisconfigurationException(
            f"datamodule={type(data).__name__}: SAFE learns in sessions; give the fit a ClassIncrementalData"
        )
    return data


def order_of(data: Sessions) -> list[int] | None:
    """The data set's label of each class, where the data tell."""
    order = getattr(data, "class_order", None)
    return None if order is None else [int(label) for label in order]


def check_order(learned: Sequence[int] | None, given: Sequence[int] | None) -> None:
    """Refuses data whose classes are numbered otherwise than those that were learned.

    Raises:
        MisconfigurationException: naming both orders.
    """
    if learned is not None and given is not None and list(learned) != list(given):
        raise MisconfigurationException(
            f"class_order={list(given)}: the model has learned the classes in the order {list(learned)};"
            " give the data that one"
        )


def check_trainer(trainer: Trainer, data: Sessions) -> None:
    """Refuses a Trainer that would not come to all sessions, or that SAFE does not know.

    Raises:
        MisconfigurationException: naming the Trainer's argument and the value it needs.
    """
    check_unsharded(trainer)
    precision = str(trainer.precision)
    if precision not in ("32-true", "16-mixed", "bf16-mixed"):
        raise MisconfigurationException(
            f"precision={precision} is not supported: heads and statistics need float32; use bf16-mixed"
        )
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    epochs = data.epochs_per_session
    reload = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    if len(epochs) > 1 and reload != 1:
        raise MisconfigurationException(
            f"reload_dataloaders_every_n_epochs={reload}: sessions are ranges of epochs with own data; "
            "give the Trainer reload_dataloaders_every_n_epochs=1"
        )
    if trainer.max_epochs != sum(epochs):
        raise MisconfigurationException(
            f"max_epochs={trainer.max_epochs}: the sessions take {epochs} epochs; give the Trainer "
            f"max_epochs={sum(epochs)}"
        )


def check_images(data: Sessions, split: str) -> None:
    """Refuses sessions without images to evaluate.

    Raises:
        MisconfigurationException: naming the session.
    """
    for session in range(len(data.session_classes)):
        images = getattr(data.session_loader(session, split), "dataset", None)
        if images is not None and not len(images):
            raise MisconfigurationException(
                f"evaluate={split!r}: session {session} of the data has no such images; hold some out "
                "(ClassIncrementalData: validation=0.1)"
            )


def check_classes(data: Sessions, num_classes: int) -> None:
    """Refuses more classes than a head has rows.

    Raises:
        MisconfigurationException: naming both numbers.
    """
    needed = 1 + max(max(classes) for classes in data.session_classes)
    if needed > num_classes:
        raise MisconfigurationException(
            f"num_classes={num_classes}: the sessions hold {needed} classes; give the model {needed}"
        )


def classes_at(data: Sessions, session: int) -> tuple[int, int]:
    """Number of classes before a session, and with it: `K`, `C`."""
    seen = [1 + max(max(part) for part in data.session_classes[: n + 1]) for n in range(session + 1)]
    return (seen[-2] if session else 0), seen[-1]


def rate(
    epoch: int, epochs: Sequence[int], later: float, length: int | None, tunes: Callable[[int], bool]
) -> float:
    """Factor of a learning rate: half a cosine from the start of each session.

    Args:
        epoch: of the fit.
        epochs: of each session.
        later: factor of all sessions but the first.
        length: epochs in which the cosine falls to zero; None: those of the session.
        tunes: whether a session tunes anything; the factor is 0 where not, and after the last session.

    >>> [round(rate(e, [2, 2], 0.1, None, lambda session: True), 3) for e in range(5)]
    [1.0, 0.5, 0.1, 0.05, 0.0]
    """
    start = 0
    for session, own in enumerate(epochs):
        if epoch < start + own:
            if not tunes(session):
                return 0.0
            share = min((epoch - start) / (length or own), 1.0)
            return (later if session else 1.0) * (1 + math.cos(math.pi * share)) / 2
        start += own
    return 0.0
