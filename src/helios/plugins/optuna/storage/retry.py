"""Trying a call again while its database is locked or cannot be reached."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

import sqlalchemy as sql
from optuna.exceptions import StorageInternalError

from helios.core.logging import get_root_logger

if TYPE_CHECKING:
    from collections.abc import Callable

RETRY_TIMEOUT: Final = 120.0  # Seconds after which the error of a database is raised.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0

_Result = TypeVar("_Result")


def is_locked(error: BaseException) -> bool:
    """Return whether another connection held a SQLite file for as long as SQLite waits."""
    cause = _cause_of(error)
    return isinstance(cause, sql.exc.OperationalError) and "is locked" in str(cause.orig)


def is_transient(error: BaseException) -> bool:
    """Return whether a later attempt may succeed: a locked file, a server that restarts, a lost connection."""
    cause = _cause_of(error)
    if not isinstance(cause, sql.exc.DBAPIError):
        return False
    if type(cause.orig).__module__.startswith("sqlite3"):
        return is_locked(error)
    return cause.connection_invalidated or isinstance(cause, sql.exc.OperationalError)


def is_creation_conflict(error: BaseException) -> bool:
    """Return whether a study could not be created because another process was creating it, or its tables."""
    cause = _cause_of(error)
    if not isinstance(cause, sql.exc.DBAPIError):
        return False
    return is_locked(error) or isinstance(cause, sql.exc.IntegrityError) or "already exists" in str(cause.orig)


def _cause_of(error: BaseException) -> BaseException | None:
    return error.__cause__ if isinstance(error, StorageInternalError) else error


def retry(call: Callable[[], _Result], should_retry: Callable[[BaseException], bool] = is_transient) -> _Result:
    """Return what a call returns, and repeat it for up to two minutes while its errors are transient.

    Args:
        call: what is called; it may be called again after it has failed.
        should_retry: returns whether to call it again after an error.
    """
    pause, deadline = _FIRST_PAUSE, time.monotonic() + RETRY_TIMEOUT
    while True:
        try:
            return call()
        except (StorageInternalError, sql.exc.DBAPIError) as error:
            if not should_retry(error) or time.monotonic() + pause > deadline:
                raise
            text = _first_line(error)
            get_root_logger().warning("the database cannot be used: trying again in %.1f s (%s)", pause, text)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _first_line(error: BaseException) -> str:
    cause = _cause_of(error)
    text = str(cause.orig) if isinstance(cause, sql.exc.DBAPIError) else str(cause)
    return text.strip().partition("\n")[0]
