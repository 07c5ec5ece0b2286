"""Schedules: curves against the formulas, exact ends, and times in fractions or steps."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import auto_cli

from lightning_plasticity.sparsity.schedules import (
    Constant,
    Cosine,
    Cubic,
    Schedule,
    as_schedule,
    check_fraction,
    check_fraction_or_schedule,
    resolve_step,
)

fractions = st.floats(0.0, 1.0)
times = st.one_of(fractions, st.integers(0, 500))


def test_cubic_equals_the_papers_formula():
    s_i, s_f, t0, n, dt = 0.5, 0.9, 20, 28, 5
    sparsity = Cubic(s_i, s_f, start=t0, end=t0 + n * dt)
    for t in range(t0, t0 + n * dt):
        expected = s_f + (s_i - s_f) * (1 - (t - t0) / (n * dt)) ** 3
        assert sparsity(t, total=1000) == pytest.approx(expected, abs=1e-15)


def test_cosine_equals_granets_decay():
    # CosineDecay of GraNet: torch's CosineAnnealingLR with eta_min = 0.005, stepped T times
    ratio = Cosine()
    expected = 0.005 + (0.5 - 0.005) * (1 + np.cos(np.pi * np.arange(101) / 100)) / 2
    np.testing.assert_allclose([ratio(t, total=100) for t in range(101)], expected, rtol=1e-14)


@given(st.sampled_from([Cubic, Cosine]), fractions, fractions, times, times, st.integers(1, 400))
def test_ramps_keep_their_ends_exactly_and_never_turn_back(kind, initial, final, start, end, total):
    first, last = resolve_step(start, total), resolve_step(end, total)
    if last < first or (type(start) is type(end) and end < start):
        with pytest.raises(ValueError, match=r"end=.*start="):
            kind(initial, final, start, end)(0, total)
        return
    ramp = kind(initial, final, start, end)
    values = [ramp(step, total) for step in range(last + 3)]
    assert values[: first if first == last else first + 1] == [initial] * (
        first if first == last else first + 1
    )
    assert values[last:] == [final] * 3
    steps = np.diff(values) * (1 if final >= initial else -1)
    assert (steps >= -1e-15).all()
    assert min(initial, final) - 1e-15 <= min(values) <= max(values) <= max(initial, final) + 1e-15


def test_a_ramp_of_no_length_is_a_jump():
    ramp = Cubic(0.1, 0.7, start=5, end=5)
    assert [ramp(step, 10) for step in (4, 5, 6)] == [0.1, 0.7, 0.7]


@pytest.mark.parametrize(
    ("value", "total", "step"),
    [(0.5, 1000, 500), (0.333, 10, 3), (1.0, 7, 7), (0.0, 7, 0), (12, 7, 12), (1, 100, 1)],
)
def test_floats_are_fractions_and_ints_are_steps(value, total, step):
    assert resolve_step(value, total) == step


def test_the_runs_length_is_needed_for_fractions_only():
    assert Cubic(start=0.0, end=0.5).needs_total
    assert not Cubic(start=0.0, end=500).needs_total
    assert not Constant(0.5).needs_total
    assert Cubic(0.0, 0.8, start=0.0, end=100)(100, total=-1) == 0.8  # an endless run
    for total in (-1, 0, math.inf):
        with pytest.raises(ValueError, match=r"end=0.5 .*max_steps"):
            Cubic(end=0.5)(3, total)


def test_mixed_times_are_checked_when_the_length_is_known():
    ramp = Cubic(start=0.5, end=40)
    assert ramp(40, total=50) == 0.9
    with pytest.raises(ValueError, match=r"end=40 comes before start=0.5"):
        ramp(10, total=1000)


@pytest.mark.parametrize("kind", [Cubic, Cosine])
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[
            (name, value)
            for name in ("initial", "final")
            for value in (-0.1, 1.1, math.nan, "high", True, None)
        ],
        *[(name, value) for name in ("start", "end") for value in (-1, 1.5, -0.5, math.nan, True, "x", None)],
    ],
)
def test_bad_values_are_named(kind, argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value!r}"):
        kind(**{argument: value})


@pytest.mark.parametrize(("start", "end"), [(0.6, 0.5), (6, 5)])
def test_an_end_before_the_start_is_refused_at_once(start, end):
    with pytest.raises(ValueError, match=f"end={end} comes before start={start}"):
        Cubic(start=start, end=end)


def test_as_schedule_takes_numbers_and_schedules():
    ramp = Cubic()
    assert as_schedule(ramp) is ramp
    assert as_schedule(0.25) == Constant(0.25)
    assert as_schedule(0)(7, 10) == 0.0
    for bad in (1.5, "0.5", None, True):
        with pytest.raises(ValueError, match=r"must be a number in \[0, 1\]"):
            as_schedule(bad)


def test_schedules_are_values():
    assert Cubic(end=5) == Cubic(end=5) != Cubic(end=6)
    assert len({Cosine(), Cosine(), Constant(0.5)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Cubic().end = 3


def test_a_schedule_of_ones_own_is_a_callable_class():
    class Stairs(Schedule):
        def __call__(self, step, total):
            return 0.5 if step < total // 2 else 0.9

    assert [as_schedule(Stairs())(step, 10) for step in (0, 9)] == [0.5, 0.9]
    assert Stairs().needs_total


def setting(sparsity: float | Schedule):
    return sparsity


def parse(*arguments):
    return auto_cli(setting, args=list(arguments), as_positional=False, exit_on_error=False)


def test_configurations_give_numbers_or_classes():
    home = "lightning_plasticity.sparsity.schedules"
    assert parse("--sparsity=0.9") == 0.9
    by_class = parse(
        f'--sparsity={{"class_path": "{home}.Cubic", "init_args": {{"final": 0.8, "end": 300}}}}'
    )
    assert by_class == Cubic(final=0.8, end=300)
    assert type(by_class.end) is int  # a step stays a step
    assert parse(f'--sparsity={{"class_path": "{home}.Cubic", "init_args": {{"end": 1.0}}}}')(1, 10) < 0.9
    assert parse("--sparsity=Constant", "--sparsity.value=0.3") == Constant(0.3)


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("1.0", 1.0), ("0.25", 0.25), ("400", 400)])
def test_command_lines_tell_steps_from_fractions(text, expected):
    end = parse("--sparsity=Cubic", f"--sparsity.end={text}").end
    assert (end, type(end)) == (expected, type(expected))


@pytest.mark.parametrize(("value", "closed"), [(0, False), (0.999, False), (1, True), (1.0, True), (0, True)])
def test_fractions_in_range_pass(value, closed):
    check_fraction("rate", value, closed=closed)
    check_fraction_or_schedule("rate", value, closed=closed)
    check_fraction_or_schedule("rate", Constant(value), closed=closed)


@pytest.mark.parametrize(
    ("value", "closed"),
    [(1, False), (1.5, True), (-0.1, True), (math.nan, True), ("0.5", True), (True, True)],
)
def test_fractions_out_of_range_are_named(value, closed):
    message = rf"rate={value!r} must be a number in \[0, 1{{}}".format(r"\]" if closed else r"\)")
    for check in (check_fraction, check_fraction_or_schedule):
        with pytest.raises(ValueError, match=message):
            check("rate", value, closed=closed)


def test_a_schedule_stands_only_where_one_may():
    check_fraction_or_schedule("sparsity", Cubic())
    with pytest.raises(ValueError, match=r"sparsity=1.0 must be a number in \[0, 1\)"):
        check_fraction_or_schedule("sparsity", Constant(1.0))
    with pytest.raises(ValueError, match="rate=Cubic"):
        check_fraction("rate", Cubic())
