"""Locks that die with the process that holds them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from optuna.storages import RDBStorage
from optuna.storages.journal import JournalFileBackend

from helios.core.logging import get_root_logger
from helios.core.paths import ensure_regular
from helios.core.rng import derive_seed
from helios.plugins.optuna.storage.owners import describe_owner, parse_owner, this_process
from helios.plugins.optuna.storage.retry import keep_trying
from helios.plugins.optuna.storage.waiting import Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import optuna
    import sqlalchemy as sql

_SUFFIX: Final = ".helios-lock"  # Not ".lock": beside a journal, that is Optuna's own.
_FIRST_PAUSE: Final = 0.002  # Seconds between two tries to have a lock; a trial is begun in a few hundredths.
_LONGEST_PAUSE: Final = 0.25
_UNUSUAL: Final = 10.0  # Seconds after which a wait for the lock is worth a warning.

_threads: Any = threading.Lock()
# Forked while another thread holds it, it would stay locked in the child for ever.
os.register_at_fork(after_in_child=_threads._at_fork_reinit)  # noqa: SLF001 - as concurrent.futures does it.


@contextlib.contextmanager
def study_lock(study: optuna.Study, *, give_up_after: float | None = None) -> Iterator[None]:
    """Hold the lock of a study, which one thread of one process at a time can; the others wait. It cannot be nested.

    For SQLite and journal files it is a lock on a file beside them, for PostgreSQL an advisory lock. Both are let go of
    by the system when the process is killed. On any other storage only the threads of this process are kept apart.

    A process that was stopped while it held the lock keeps it: whoever waits says so, again and again.

    Args:
        study: the study.
        give_up_after: how many seconds to wait for the lock; `None` for no limit.

    Raises:
        StudyTimeoutError: if another process, or thread, has held the lock for so long.
    """
    storage: Any = study._storage  # noqa: SLF001 - optuna has no public way to a study's storage.
    wait = Wait(give_up_after, first=_UNUSUAL)
    _try_until(lambda: _threads.acquire(blocking=False), wait, lambda: "the study's lock is held by another thread")
    try:
        with _process_lock(getattr(storage, "_backend", storage), study.study_name, wait):
            yield
    finally:
        _threads.release()


def _try_until(take: Callable[[], bool], wait: Wait, describe: Callable[[], str]) -> None:
    """Take a lock, as soon as it is free. No lock in use here can be waited for with a limit of time."""
    pause = _FIRST_PAUSE
    while not take():
        wait.look(describe)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _describe(name: str, holder: str) -> str:
    return f"the lock of study {name!r} is held by {holder}. If that process hangs, end it: the lock is free then"


def _process_lock(backend: object, study_name: str, wait: Wait) -> contextlib.AbstractContextManager[None]:
    if isinstance(backend, JournalFileBackend):
        return _file_lock(backend._file_path, study_name, wait)  # noqa: SLF001 - where the journal is, only it knows.
    if isinstance(backend, RDBStorage):
        dialect = backend.engine.dialect.name
        if dialect == "sqlite" and (path := sqlite_path(backend.engine)):
            return _file_lock(path, study_name, wait)
        if dialect == "postgresql":
            return _advisory_lock(backend.engine, study_name, wait)
    return contextlib.nullcontext()


def sqlite_path(engine: sql.Engine) -> str:
    """Return where the database is, as SQLite has opened it; empty for one in memory."""
    # Not from the URL: its path may be relative to a directory that the process has left since.
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("PRAGMA database_list").all()
    return next(str(path or "") for _, name, path in rows if name == "main")


# ---------------------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def _file_lock(neighbour: str, study_name: str, wait: Wait) -> Iterator[None]:
    path = Path(os.path.realpath(neighbour) + _SUFFIX)
    if path.exists():
        ensure_regular(path)
    with path.open("a+", encoding="utf-8") as file:
        _try_until(lambda: _try_lock_file(file), wait, lambda: _describe(study_name, _read_holder(file)))
        with contextlib.suppress(OSError):  # On a full disk, say: it is only to be read by those who wait.
            file.truncate(0)
            json.dump(dataclasses.asdict(this_process()), file)
            file.flush()
        yield


def _try_lock_file(file: IO[str]) -> bool:
    import fcntl  # noqa: PLC0415 - POSIX only, and needed nowhere else.

    # Not flock: a worker of a data loader that is forked meanwhile would inherit that lock, and keep it.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX leaves open which.
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
def _advisory_lock(engine: sql.Engine, name: str, wait: Wait) -> Iterator[None]:
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - comes with optuna's RDB storage alone.

    key = derive_seed(0, "study lock", name) - 2**63  # PostgreSQL's locks are signed.
    connection = keep_trying(lambda: _connect_locked(engine, key, name, wait))
    try:
        yield
    finally:
        try:
            connection.close()
        except DBAPIError:
            # The server has let go of the lock when it lost the connection.
            get_root_logger().warning("the connection that held the study's lock was lost")


def _connect_locked(engine: sql.Engine, key: int, name: str, wait: Wait) -> sql.Connection:
    connection = engine.connect()
    try:
        _try_until(
            lambda: _try_advisory_lock(connection, key),
            wait,
            lambda: _describe(name, _find_holder(connection, key)),
        )
    except BaseException:
        connection.close()
        raise
    return connection


def _try_advisory_lock(connection: sql.Connection, key: int) -> bool:
    from sqlalchemy import text  # noqa: PLC0415 - comes with optuna's RDB storage alone.

    # Held to the end of this transaction, or of this connection.
    if connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": key}).scalar_one():
        # For those who wait.
        connection.execute(text("SELECT set_config('application_name', :name, true)"), {"name": str(this_process())})
        return True
    connection.rollback()
    return False


def _find_holder(connection: sql.Connection, key: int) -> str:
    from sqlalchemy import text  # noqa: PLC0415 - comes with optuna's RDB storage alone.

    found = connection.execute(text(_HOLDER), {"key": key}).first()
    connection.rollback()
    if found is None:
        return "another process"
    name, address = found
    return f"{name or 'a process'}{f', connected from {address}' if address else ''}"
