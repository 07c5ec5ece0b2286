"""Which classes come in which session: planned from the settings alone, before any image is read."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import numpy as np

ClassOrder = Literal["shuffled", "sorted"] | list[int]
Sessions = int | list[int] | list[list[int]]


class SessionPlan(NamedTuple):
    """Classes and epochs of the sessions.

    Attributes:
        class_order: the data set's label of the learner's class 0, 1, ...: the order in which classes appear.
        session_classes: the learner's classes that each session holds.
        epochs_per_session: how long each session takes.
    """

    class_order: list[int]
    session_classes: list[list[int]]
    epochs_per_session: list[int]

    def session_of_epoch(self, epoch: int) -> int:
        """The session that owns an epoch.

        Raises:
            ValueError: before the first epoch, or past the last session's.
        """
        ends = list(accumulate(self.epochs_per_session))
        if not 0 <= epoch < ends[-1]:
            raise ValueError(
                f"epoch {epoch} belongs to no session: they take {self.epochs_per_session} epochs, "
                f"{ends[-1]} together; set max_epochs={ends[-1]}"
            )
        return next(session for session, end in enumerate(ends) if epoch < end)


def order_classes(num_classes: int, class_order: ClassOrder, seed: int) -> list[int]:
    """Order in which classes appear.

    ``"shuffled"`` is the permutation of NumPy's legacy generator, with which most papers on class-incremental
    learning draw theirs: seed 1993 gives their order.

    Raises:
        ValueError: for a list that isn't an order of some of the classes.

    Example:
        >>> order_classes(10, "shuffled", 1993)
        [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]
    """
    if class_order == "sorted":
        return list(range(num_classes))
    if class_order == "shuffled":
        legacy = np.random.RandomState(seed)
        return [int(label) for label in legacy.permutation(num_classes)]
    if isinstance(class_order, str):
        raise ValueError(f"class_order={class_order!r} must be 'shuffled', 'sorted' or a list of labels")
    _check_classes(class_order, num_classes, f"class_order={class_order}")
    return list(class_order)


def _check_classes(classes: Sequence[int], num_classes: int, what: str) -> None:
    twice = sorted({label for label in classes if list(classes).count(label) > 1})
    unknown = sorted({label for label in classes if not 0 <= label < num_classes})
    if twice:
        raise ValueError(f"{what}: the classes {twice} come twice")
    if unknown:
        raise ValueError(f"{what}: the classes {unknown} aren't among the data set's {num_classes}")


def plan_sessions(
    num_classes: int, sessions: Sessions, epochs: int | list[int], class_order: ClassOrder, seed: int
) -> SessionPlan:
    """Plan class-incremental sessions: every class comes in one session.

    Args:
        num_classes: of the data set.
        sessions: their number, if the classes divide evenly; or how many classes each has; or the data set's
            labels of each.
        epochs: of every session, or of each.
        class_order: see ``order_classes``; unused where labels are given.
        seed: of the order.

    Raises:
        ValueError: for an empty session, a class in two sessions, or sizes that don't add up.

    Example:
        >>> plan_sessions(5, [3, 2], [4, 1], "sorted", seed=0)
        SessionPlan(class_order=[0, 1, 2, 3, 4], session_classes=[[0, 1, 2], [3, 4]],
        epochs_per_session=[4, 1])
    """
    given = [isinstance(part, list | tuple) for part in sessions] if not isinstance(sessions, int) else []
    if given and all(given):
        labels = [label for part in sessions for label in part]  # type: ignore[union-attr]
        _check_classes(labels, num_classes, f"sessions={sessions}")
        order, sizes = labels, [len(part) for part in sessions]  # type: ignore[union-attr, arg-type]
    else:
        order = order_classes(num_classes, class_order, seed)
        sizes = _sizes(sessions, len(order))
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sessions={sessions}: each must have a class or more")
    edges = list(accumulate(sizes, initial=0))
    classes = [list(range(first, end)) for first, end in pairwise(edges)]
    return SessionPlan(order, classes, plan_epochs(epochs, len(sizes)))


def _sizes(sessions: Sessions, num_classes: int) -> list[int]:
    """Number of classes of each session."""
    if isinstance(sessions, int):
        if sessions < 1 or num_classes % sessions:
            raise ValueError(
                f"sessions={sessions}: {num_classes} classes can't be dealt out evenly; give a list of how "
                f"many classes each session has"
            )
        return [num_classes // sessions] * sessions
    if not all(isinstance(size, int) for size in sessions):
        raise ValueError(
            f"sessions={sessions} must be a number, a list of numbers, or a list of lists of labels"
        )
    sizes: list[int] = list(sessions)  # type: ignore[arg-type]
    if sum(sizes) != num_classes:
        raise ValueError(f"sessions={sessions} has {sum(sizes)} classes together, the data set {num_classes}")
    return sizes


def plan_epochs(epochs: int | list[int], num_sessions: int) -> list[int]:
    """Epochs of each session.

    Raises:
        ValueError: for another number of sessions, or a session without an epoch.
    """
    each = [epochs] * num_sessions if isinstance(epochs, int) else list(epochs)
    if len(each) != num_sessions:
        raise ValueError(
            f"epochs_per_session={epochs}: there are {num_sessions} sessions; give one number for each"
        )
    if min(each) < 1:
        raise ValueError(f"epochs_per_session={epochs}: each must be 1 or more")
    return each
