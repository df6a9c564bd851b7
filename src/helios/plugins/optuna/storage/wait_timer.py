"""`WaitTimer`: warnings and a time limit for a wait for other processes of a study."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from helios.core.logging import get_root_logger
from helios.errors import ArgumentTypeError, ConfigurationError, StudyTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

_WARNING_INTERVAL: Final = 60.0  # Seconds between two warnings.
_LONGEST_STEP: Final = 5.0  # Seconds that count at most between two checks: this process may have been stopped.


class WaitTimer:
    """Measures a wait, logs a warning every minute, and raises at a limit.

    Args:
        limit: the longest wait in seconds; `None` for no limit.
        first_warning: seconds until the first warning.
    """

    def __init__(self, limit: float | None, *, first_warning: float = 0.0) -> None:
        self._limit = limit
        self._checked_at = time.monotonic()
        self._waited = 0.0
        self._warn_at = first_warning

    def restart(self) -> None:
        """Set the waited time to 0, because the other process has made progress."""
        self._waited, self._warn_at = 0.0, _WARNING_INTERVAL

    def check(self, describe: Callable[[], str]) -> None:
        """Log a warning or raise if it is time for that; to be called repeatedly during the wait.

        Args:
            describe: returns the reason of the wait and the remedy; called only for a warning or an error.

        Raises:
            StudyTimeoutError: if the limit is reached.
        """
        now = time.monotonic()
        self._waited += min(now - self._checked_at, _LONGEST_STEP)
        self._checked_at = now
        if self._limit is not None and self._waited >= self._limit:
            raise StudyTimeoutError(f"given up after {self._limit:g} s (give_up_after): {describe()}")
        if self._waited >= self._warn_at:
            self._warn_at = self._waited + _WARNING_INTERVAL
            until = "" if self._limit is None else f"; given up after {self._limit:g} s (give_up_after)"
            get_root_logger().warning("waiting for %.0f s so far%s: %s", self._waited, until, describe())


def check_give_up_after(give_up_after: object) -> None:
    """Check the argument `give_up_after` of `run_study`.

    Raises:
        ArgumentTypeError: if it is neither a number nor `None`.
        ConfigurationError: if it is not above 0.
    """
    if give_up_after is None:
        return
    if isinstance(give_up_after, bool) or not isinstance(give_up_after, int | float):
        raise ArgumentTypeError(f"give_up_after is {give_up_after!r}: pass seconds, or None to wait without a limit")
    if math.isnan(give_up_after) or give_up_after <= 0:
        raise ConfigurationError(f"give_up_after is {give_up_after}: pass seconds above 0, or None for no limit")
