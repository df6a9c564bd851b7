"""Measuring the average duration of a repeated action."""

from __future__ import annotations

import collections
import time
from typing import TYPE_CHECKING, Any

from helios.errors import ConfigurationError, NotRunningError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class AverageTimer:
    """A stopwatch that computes the mean of the measured intervals, in seconds.

    >>> timer = AverageTimer()
    >>> for _ in range(3):
    ...     with timer:
    ...         pass
    >>> timer.count
    3

    Args:
        sliding_window: the number of last intervals whose mean is computed; of all intervals if it is `None`.

    Raises:
        ConfigurationError: if `sliding_window` is not an integer of at least 1.
    """

    def __init__(self, sliding_window: int | None = None) -> None:
        is_count = isinstance(sliding_window, int) and not isinstance(sliding_window, bool) and sliding_window >= 1
        if sliding_window is not None and not is_count:
            raise ConfigurationError(f"sliding_window is {sliding_window!r}: pass an integer of at least 1, or None")
        self._recent: collections.deque[float] | None = None
        if sliding_window is not None:
            self._recent = collections.deque(maxlen=sliding_window)
        self._started_at: float | None = None
        self.reset()

    def start(self) -> None:
        """Begin an interval; an interval in progress is dropped."""
        self._started_at = time.perf_counter()

    def stop(self) -> float:
        """End the interval, add it to the mean, and return its length in seconds.

        Raises:
            NotRunningError: if no interval is in progress.
        """
        if self._started_at is None:
            raise NotRunningError("the timer was stopped but is not running: call start() before each stop()")
        self._add(time.perf_counter() - self._started_at)
        self._started_at = None
        return self._last

    def record(self) -> float:
        """End the interval, add it to the mean, begin the next one, and return the length in seconds.

        The first interval begins at `start`, or, without one, when the timer is made or reset.
        """
        now = time.perf_counter()
        self._add(now - (self._made_at if self._started_at is None else self._started_at))
        self._started_at = now
        return self._last

    def reset(self) -> None:
        """Drop all intervals, the one in progress included."""
        self._made_at = time.perf_counter()
        self._started_at = None
        self._last = 0.0
        self._total = 0.0
        self._count = 0
        if self._recent is not None:
            self._recent.clear()

    def get_average_time(self) -> float:
        """Return the mean length of the intervals, of the last `sliding_window` ones if set, in seconds; 0 for none."""
        return self.average

    def _add(self, length: float) -> None:
        self._last = length
        self._total += length
        self._count += 1
        if self._recent is not None:
            self._recent.append(length)

    @property
    def average(self) -> float:
        """The mean length of the intervals, of the last `sliding_window` ones if set, in seconds; 0 for none."""
        if self._recent:
            return sum(self._recent) / len(self._recent)
        return self._total / self._count if self._count else 0.0

    @property
    def last(self) -> float:
        """The length of the last interval in seconds; 0 if there is none yet."""
        return self._last

    @property
    def total(self) -> float:
        """The sum of all intervals, in seconds."""
        return self._total

    @property
    def count(self) -> int:
        """The number of intervals measured."""
        return self._count

    def __enter__(self) -> Self:
        """Begin an interval."""
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the interval; it is dropped after an exception."""
        if exc_type is None:
            self.stop()
        else:
            self._started_at = None

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements as plain data, without an interval in progress."""
        state: dict[str, Any] = {"total": self._total, "count": self._count, "last": self._last}
        return state if self._recent is None else {**state, "recent": list(self._recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ConfigurationError: if it is something else; the timer is then unchanged.
        """
        try:
            total, count, last = float(state_dict["total"]), int(state_dict["count"]), float(state_dict["last"])
            recent = () if self._recent is None else [float(length) for length in state_dict["recent"]]
        except (LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"state_dict is not what AverageTimer.state_dict returned ({type(error).__name__}: {error}): pass that"
            ) from error
        self.reset()
        self._total, self._count, self._last = total, count, last
        if self._recent is not None:
            self._recent.extend(recent)
