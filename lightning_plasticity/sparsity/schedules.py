"""Schedules: how a sparsity or a regrowth ratio moves over the optimizer steps of a run.

A schedule is a pure function of the optimizer step and of the run's length. Times are told apart
by their type: a ``float`` is a fraction of the run in [0, 1], an ``int`` is an optimizer step.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


def check_fraction(name: str, value: object, closed: bool = False) -> None:
    """Refuse anything but a real number in [0, 1), or in [0, 1] if ``closed``.

    Raises:
        ValueError: names the argument, the value and the range.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (0 <= value < 1 or (closed and value == 1)):  # type: ignore[operator]
        raise ValueError(f"{name}={value!r} must be a number in [0, 1{']' if closed else ')'}")


def check_fraction_or_schedule(name: str, value: object, closed: bool = False) -> None:
    """:func:`check_fraction` where a schedule may stand; its values are checked once the run is known.

    Raises:
        ValueError: names the argument, the value and the range.
    """
    if isinstance(value, Schedule) and not isinstance(value, Constant):
        return
    try:
        check_fraction(name, value.value if isinstance(value, Constant) else value, closed)
    except ValueError as error:
        raise ValueError(f"{error} or a schedule") from None


def check_time(name: str, value: float) -> None:
    """Refuse anything but a fraction of the run (float in [0, 1]) or an optimizer step (int >= 0).

    Raises:
        ValueError: if ``value`` is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"{name}={value!r} is a negative optimizer step; give an int of 0 or more.")
    elif not isinstance(value, float):
        raise ValueError(
            f"{name}={value!r} must be a float (fraction of the run, 0 to 1) or an int (optimizer step)."
        )
    elif not 0.0 <= value <= 1.0:
        raise ValueError(
            f"{name}={value!r} is a fraction of the run and must lie between 0.0 and 1.0; "
            "write optimizer steps as an int, without a decimal point."
        )


def resolve_step(value: float, total: float, name: str = "value") -> int:
    """Turn a time into an optimizer step: an int stays, a float is that fraction of ``total``, rounded.

    Args:
        value: fraction of the run (float in [0, 1]) or optimizer step (int).
        total: optimizer steps of the whole run; used for fractions above 0 only.
        name: the argument that an error shall name.

    Returns:
        The optimizer step.

    Raises:
        ValueError: if ``value`` is no valid time, or needs a run length that is unknown or endless.

    Example:
        >>> resolve_step(0.5, total=1000), resolve_step(300, total=1000)
        (500, 300)
    """
    check_time(name, value)
    if isinstance(value, int):
        return value
    if value == 0.0:
        return 0
    if not (math.isfinite(total) and total > 0):
        raise ValueError(
            f"{name}={value!r} is a fraction of the run, but the run's length is {total!r} optimizer steps; "
            "give the trainer max_epochs or max_steps, or write an int (optimizer step)."
        )
    return round(value * total)


class Schedule(ABC):
    """A number that depends on the optimizer step; subclass it for a curve of your own."""

    @abstractmethod
    def __call__(self, step: int, total: int) -> float:
        """Give the value at an optimizer step.

        Args:
            step: optimizer steps done so far, 0 before the first.
            total: optimizer steps of the whole run.
        """

    @property
    def needs_total(self) -> bool:
        """Whether the run's length must be known; assumed unless a subclass knows better."""
        return True


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step.

    Args:
        value: between 0 and 1.

    Raises:
        ValueError: if ``value`` is outside [0, 1].

    Example:
        >>> Constant(0.9)(step=123, total=1000)
        0.9
    """

    value: float

    def __post_init__(self) -> None:
        """Refuse a bad value."""
        check_fraction("value", self.value, closed=True)

    def __call__(self, step: int, total: int) -> float:
        """Give the value."""
        return float(self.value)

    @property
    def needs_total(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From ``initial`` to ``final`` between ``start`` and ``end``; subclasses give the curve's form."""

    initial: float
    final: float
    start: float
    end: float

    def __post_init__(self) -> None:
        """Refuse values and times that can't be meant."""
        check_fraction("initial", self.initial, closed=True)
        check_fraction("final", self.final, closed=True)
        check_time("start", self.start)
        check_time("end", self.end)
        if type(self.start) is type(self.end):
            self._check_order(self.start, self.end)

    def _check_order(self, start: float, end: float) -> None:
        if end < start:
            raise ValueError(
                f"end={self.end!r} comes before start={self.start!r} ({end} < {start}); "
                "move end to start or later."
            )

    @staticmethod
    @abstractmethod
    def _remaining(progress: float) -> float:
        """Give the share of the way from initial to final still to go, 1 at progress 0 and 0 at 1."""

    def __call__(self, step: int, total: int) -> float:
        """Give the value: ``initial`` up to the start, exactly ``final`` from the end on.

        Raises:
            ValueError: if a fraction needs a run length that is unknown, or the end comes before the start.
        """
        start = resolve_step(self.start, total, "start")
        end = resolve_step(self.end, total, "end")
        self._check_order(start, end)
        if step >= end:
            return float(self.final)
        if step <= start:
            return float(self.initial)
        return self.final + (self.initial - self.final) * self._remaining((step - start) / (end - start))

    @property
    def needs_total(self) -> bool:
        """Whether a time is a fraction of the run other than its very beginning."""
        return any(isinstance(time, float) and time > 0.0 for time in (self.start, self.end))


@dataclass(frozen=True)
class Cubic(_Ramp):
    """Gradual pruning's cubic curve, fast first, then gentle (Zhu & Gupta 2017; GraNet, Liu et al. 2021).

    ``s_t = s_f + (s_i - s_f) * (1 - (t - t0) / (tf - t0))**3`` between ``t0 = start`` and ``tf = end``.

    Args:
        initial: value s_i up to the start, between 0 and 1.
        final: value s_f, exact from the end on, between 0 and 1.
        start: float: fraction of the run; int: optimizer step.
        end: the same; ``end == start`` is a jump.

    Raises:
        ValueError: if a value or time is out of range, or the end comes before the start.

    Example:
        >>> sparsity = Cubic(initial=0.0, final=0.8, start=0, end=100)
        >>> [round(sparsity(step, total=200), 3) for step in (0, 50, 100, 150)]
        [0.0, 0.7, 0.8, 0.8]
    """

    initial: float = 0.0
    final: float = 0.9
    start: int | float = 0.0
    end: int | float = 0.5

    @staticmethod
    def _remaining(progress: float) -> float:
        return (1.0 - progress) ** 3


@dataclass(frozen=True)
class Cosine(_Ramp):
    """Half a cosine: the regrowth ratio of RigL (Evci et al. 2020) and GraNet (Liu et al. 2021).

    ``r_t = r_f + (r_i - r_f) * (1 + cos(pi * (t - t0) / (tf - t0))) / 2``, ``t0 = start``, ``tf = end``.

    Args:
        initial: value up to the start, between 0 and 1.
        final: value from the end on, exact, between 0 and 1.
        start: float: fraction of the run; int: optimizer step.
        end: the same; ``end == start`` is a jump.

    Raises:
        ValueError: if a value or time is out of range, or the end comes before the start.

    Example:
        >>> ratio = Cosine(initial=0.5, final=0.1)
        >>> [round(ratio(step, total=200), 3) for step in (0, 100, 200)]
        [0.5, 0.3, 0.1]
    """

    initial: float = 0.5
    final: float = 0.005
    start: int | float = 0.0
    end: int | float = 1.0

    @staticmethod
    def _remaining(progress: float) -> float:
        return (1.0 + math.cos(math.pi * progress)) / 2.0


def as_schedule(value: float | Schedule) -> Schedule:
    """Let a plain number stand for a constant schedule.

    Args:
        value: number between 0 and 1, or a schedule, returned as it is.

    Raises:
        ValueError: if ``value`` is neither.

    Example:
        >>> as_schedule(0.9)
        Constant(value=0.9)
    """
    return value if isinstance(value, Schedule) else Constant(value)
