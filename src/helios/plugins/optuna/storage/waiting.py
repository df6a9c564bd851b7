"""Waiting for other processes of a study: not without a word, and not longer than the caller wants to."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from helios.core.logging import get_root_logger
from helios.errors import ArgumentTypeError, ConfigurationError, StudyTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

_REPEAT: Final = 60.0  # Seconds between two warnings.
_LONGEST_STEP: Final = 5.0  # Seconds between two looks that count at most: this process may itself have been stopped.


class Wait:
    """Counts the time of a wait: warns of it again and again, and ends it at a limit.

    Args:
        limit: how many seconds to wait at most; `None` for no limit.
        first: after how many seconds to warn first.
    """

    def __init__(self, limit: float | None, *, first: float = 0.0) -> None:
        self._limit = limit
        self._looked_at = time.monotonic()
        self._waited = 0.0
        self._warn_at = first

    def start_again(self) -> None:
        """Begin to wait anew: what is waited for has moved."""
        self._waited, self._warn_at = 0.0, _REPEAT

    def look(self, describe: Callable[[], str]) -> None:
        """Warn, or give up, if it is time to.

        Args:
            describe: says what is waited for, and what to do about it. It is called only if it is time.

        Raises:
            StudyTimeoutError: if the limit is reached.
        """
        now = time.monotonic()
        self._waited += min(now - self._looked_at, _LONGEST_STEP)
        self._looked_at = now
        if self._limit is not None and self._waited >= self._limit:
            raise StudyTimeoutError(f"given up after {self._limit:g} s (give_up_after): {describe()}")
        if self._waited >= self._warn_at:
            self._warn_at = self._waited + _REPEAT
            until = "" if self._limit is None else f"; given up after {self._limit:g} s (give_up_after)"
            get_root_logger().warning("waiting for %.0f s so far%s: %s", self._waited, until, describe())


def check_limit(give_up_after: object) -> None:
    """Check a limit that a caller has given.

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
