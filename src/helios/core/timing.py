"""Measuring the average duration of a repeated action."""

from __future__ import annotations

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
    """

    def __init__(self) -> None:
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
        self._last = time.perf_counter() - self._started_at
        self._started_at = None
        self._total += self._last
        self._count += 1
        return self._last

    def reset(self) -> None:
        """Drop all intervals, the one in progress included."""
        self._started_at = None
        self._last = 0.0
        self._total = 0.0
        self._count = 0

    @property
    def average(self) -> float:
        """The mean length of the intervals in seconds; 0 if there is none yet."""
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
        return {"total": self._total, "count": self._count, "last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ConfigurationError: if it is something else; the timer is then unchanged.
        """
        try:
            total, count, last = float(state_dict["total"]), int(state_dict["count"]), float(state_dict["last"])
        except (LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"state_dict is not what AverageTimer.state_dict returned ({type(error).__name__}: {error}): pass that"
            ) from error
        self.reset()
        self._total, self._count, self._last = total, count, last
