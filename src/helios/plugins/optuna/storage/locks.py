"""The lock of a study, which the operating system or the database releases when its process is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from optuna.storages import RDBStorage
from optuna.storages.journal import JournalFileBackend

from helios.core.logging import get_root_logger
from helios.core.paths import ensure_regular
from helios.core.rng import derive_seed
from helios.plugins.optuna.optuna_internals import journal_path, storage_of
from helios.plugins.optuna.storage.delegating import innermost_backend
from helios.plugins.optuna.storage.owners import describe_owner, parse_owner, this_process
from helios.plugins.optuna.storage.retry import retry
from helios.plugins.optuna.storage.wait_timer import WaitTimer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import optuna
    import sqlalchemy as sql

_SUFFIX: Final = ".helios-lock"  # Optuna uses ".lock" beside a journal.
_FIRST_PAUSE: Final = 0.002  # Seconds between two attempts; starting a trial takes a few hundredths of a second.
_LONGEST_PAUSE: Final = 0.25
_FIRST_WARNING: Final = 10.0  # Seconds of waiting for the lock after which a warning is logged.


class _ThreadLock:
    """Excludes the threads of this process. A forked child gets a new one: no thread would release the parent's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.lock = threading.Lock()


_threads: Final = _ThreadLock()


@contextlib.contextmanager
def study_lock(study: optuna.Study, *, give_up_after: float | None = None) -> Iterator[None]:
    """Hold the lock of a study, which one thread of one process can hold at a time. It is not reentrant.

    For SQLite and journal files it is a lock on a file beside them, for PostgreSQL an advisory lock. The system
    releases both when the process is killed. On any other storage it excludes the threads of this process only.

    A process that is stopped while it holds the lock keeps it: the waiting processes then log warnings.

    Args:
        study: the study.
        give_up_after: the longest wait for the lock in seconds; `None` for no limit.

    Raises:
        StudyTimeoutError: if another process or thread holds the lock for that long.
    """
    timer = WaitTimer(give_up_after, first_warning=_FIRST_WARNING)
    lock = _threads.lock
    _acquire(lambda: lock.acquire(blocking=False), timer, lambda: "the study's lock is held by another thread")
    try:
        with _process_lock(innermost_backend(storage_of(study)), study.study_name, timer):
            yield
    finally:
        lock.release()


def _acquire(try_acquire: Callable[[], bool], timer: WaitTimer, describe: Callable[[], str]) -> None:
    """Acquire a lock by polling: neither file locks nor advisory locks have a timeout."""
    pause = _FIRST_PAUSE
    while not try_acquire():
        timer.check(describe)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _describe(name: str, holder: str) -> str:
    return f"the lock of study {name!r} is held by {holder}. If that process hangs, end it: that releases the lock"


def _process_lock(backend: object, study_name: str, timer: WaitTimer) -> contextlib.AbstractContextManager[None]:
    if isinstance(backend, JournalFileBackend):
        return _file_lock(journal_path(backend), study_name, timer)
    if isinstance(backend, RDBStorage):
        dialect = backend.engine.dialect.name
        if dialect == "sqlite" and (path := sqlite_path(backend.engine)):
            return _file_lock(path, study_name, timer)
        if dialect == "postgresql":
            return _advisory_lock(backend.engine, study_name, timer)
    return contextlib.nullcontext()


def sqlite_path(engine: sql.Engine) -> str:
    """Return the path of a database as SQLite has opened it; empty for a database in memory."""
    # The path in the URL may be relative to a former working directory of the process.
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("PRAGMA database_list").all()
    return next(str(path or "") for _, name, path in rows if name == "main")


# ---------------------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def _file_lock(locked_file: str, study_name: str, timer: WaitTimer) -> Iterator[None]:
    path = Path(os.path.realpath(locked_file) + _SUFFIX)
    if path.exists():
        ensure_regular(path)
    with path.open("a+", encoding="utf-8") as file:
        _acquire(lambda: _try_lock_file(file), timer, lambda: _describe(study_name, _read_holder(file)))
        with contextlib.suppress(OSError):  # As on a full disk: only the warnings of waiting processes show the name.
            file.truncate(0)
            json.dump(dataclasses.asdict(this_process()), file)
            file.flush()
        yield


def _try_lock_file(file: IO[str]) -> bool:
    import fcntl  # noqa: PLC0415 - POSIX only.

    # A forked data loader worker would inherit a lock of `flock`, and keep it.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either.
        return False
    return True


def _read_holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        owner = parse_owner(json.load(file))
    except ValueError:
        owner = None
    return "another process" if owner is None else describe_owner(owner)


# ----------------------------------------------------------------------------------------------------------- PostgreSQL

_HOLDER: Final = """
SELECT a.application_name, coalesce(a.client_hostname, host(a.client_addr), '')
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND ((l.classid::bigint << 32) | l.objid::bigint) = :key
"""


@contextlib.contextmanager
def _advisory_lock(engine: sql.Engine, name: str, timer: WaitTimer) -> Iterator[None]:
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - only Optuna's RDB storage needs it.

    key = derive_seed(0, "study lock", name) - 2**63  # PostgreSQL's locks are signed.
    connection = retry(lambda: _connect_locked(engine, key, name, timer))
    try:
        yield
    finally:
        try:
            connection.close()
        except DBAPIError:
            # The server released the lock when the connection was lost.
            get_root_logger().warning("the connection that held the study's lock was lost")


def _connect_locked(engine: sql.Engine, key: int, name: str, timer: WaitTimer) -> sql.Connection:
    connection = engine.connect()
    try:
        _acquire(
            lambda: _try_advisory_lock(connection, key),
            timer,
            lambda: _describe(name, _find_holder(connection, key)),
        )
    except BaseException:
        connection.close()
        raise
    return connection


def _try_advisory_lock(connection: sql.Connection, key: int) -> bool:
    from sqlalchemy import text  # noqa: PLC0415 - only Optuna's RDB storage needs it.

    # The server releases it at the end of the transaction or of the connection.
    if connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": key}).scalar_one():
        # `_find_holder` shows this name to waiting processes.
        connection.execute(text("SELECT set_config('application_name', :name, true)"), {"name": str(this_process())})
        return True
    connection.rollback()
    return False


def _find_holder(connection: sql.Connection, key: int) -> str:
    from sqlalchemy import text  # noqa: PLC0415 - only Optuna's RDB storage needs it.

    found = connection.execute(text(_HOLDER), {"key": key}).first()
    connection.rollback()
    if found is None:
        return "another process"
    name, address = found
    return f"{name or 'a process'}{f', connected from {address}' if address else ''}"
