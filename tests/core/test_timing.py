"""The stopwatch."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.core.timing import AverageTimer
from helios.errors import NotRunningError


class Clock:
    """A clock that advances only when a test sets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_intervals_are_averaged_in_seconds(clock: Clock) -> None:
    """`stop` returns the seconds since `start`; the time between intervals is not measured."""
    timer = AverageTimer()
    assert (timer.average, timer.last, timer.total, timer.count) == (0.0, 0.0, 0.0, 0)
    for length in (1.0, 2.0, 6.0):
        timer.start()
        clock.now += length
        assert timer.stop() == length
        clock.now += 50.0
    assert (timer.average, timer.last, timer.total, timer.count) == (3.0, 6.0, 9.0, 3)


def test_starting_again_drops_the_open_interval(clock: Clock) -> None:
    """A second `start` restarts the interval."""
    timer = AverageTimer()
    timer.start()
    clock.now += 7.0
    timer.start()
    clock.now += 1.0
    assert timer.stop() == 1.0


def test_stop_needs_a_start(clock: Clock) -> None:
    """A `stop` without a `start`, also after `reset` or another `stop`, is an error with the remedy."""
    timer = AverageTimer()
    with pytest.raises(NotRunningError, match=r"call start\(\) before each stop\(\)"):
        timer.stop()
    timer.start()
    clock.now += 1.0
    timer.stop()
    with pytest.raises(NotRunningError):
        timer.stop()
    timer.start()
    timer.reset()
    with pytest.raises(NotRunningError):
        timer.stop()
    assert (timer.average, timer.total, timer.count) == (0.0, 0.0, 0)


def test_a_context_is_an_interval(clock: Clock) -> None:
    """A `with` block is measured; one that raises is not, and its error propagates."""
    timer = AverageTimer()
    with timer as entered:
        clock.now += 4.0
    assert entered is timer
    with pytest.raises(ZeroDivisionError), timer:
        raise ZeroDivisionError
    assert (timer.total, timer.count) == (4.0, 1)
    with pytest.raises(NotRunningError):
        timer.stop()


@given(st.lists(st.integers(0, 1000), min_size=1), st.data())
def test_a_restored_timer_continues(lengths: list[int], data: st.DataObject) -> None:
    """Saving and restoring between any two intervals changes no result."""
    cut = data.draw(st.integers(0, len(lengths)))
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", clock)
        whole, before, after = AverageTimer(), AverageTimer(), AverageTimer()
        for n, length in enumerate(lengths):
            if n == cut:
                after.load_state_dict(before.state_dict())
            parts = [whole, before if n < cut else after]
            for timer in parts:
                timer.start()
            clock.now += length
            for timer in parts:
                timer.stop()
        if cut == len(lengths):
            after.load_state_dict(before.state_dict())
    assert after.state_dict() == whole.state_dict()
    assert after.average == whole.average
