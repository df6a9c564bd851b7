"""The stopwatch."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.core.timing import AverageTimer
from helios.errors import ConfigurationError, NotRunningError


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


def test_record_ends_an_interval_and_begins_the_next(clock: Clock) -> None:
    """`record` measures from `start`, or from when the timer was made, and then from the last `record`."""
    timer = AverageTimer()
    clock.now += 3.0
    assert timer.record() == 3.0
    clock.now += 1.0
    assert timer.record() == 1.0
    assert timer.get_average_time() == timer.average == 2.0
    clock.now += 50.0
    timer.start()
    clock.now += 5.0
    assert timer.record() == 5.0
    assert timer.get_average_time() == 3.0
    timer.reset()
    clock.now += 4.0
    assert timer.record() == 4.0
    assert timer.get_average_time() == 4.0


def test_a_sliding_window_is_the_mean_of_the_last_intervals(clock: Clock) -> None:
    """With `sliding_window`, the mean forgets all but the last intervals; `total` and `count` do not."""
    timer = AverageTimer(sliding_window=2)
    assert timer.get_average_time() == 0.0
    for length in (100.0, 2.0, 4.0):
        timer.start()
        clock.now += length
        timer.record()
    assert (timer.get_average_time(), timer.total, timer.count) == (3.0, 106.0, 3)
    timer.reset()
    assert timer.get_average_time() == 0.0
    for wrong in (0, -1, True, 2.0, "2"):
        with pytest.raises(ConfigurationError, match="sliding_window is .*: pass an integer of at least 1, or None"):
            AverageTimer(wrong)  # type: ignore[arg-type]  # wrong on purpose


@given(st.lists(st.integers(0, 1000), min_size=1), st.sampled_from([None, 1, 3]), st.data())
def test_a_restored_timer_continues(lengths: list[int], window: int | None, data: st.DataObject) -> None:
    """Saving and restoring between any two intervals changes no result."""
    cut = data.draw(st.integers(0, len(lengths)))
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", clock)
        whole, before, after = AverageTimer(window), AverageTimer(window), AverageTimer(window)
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
