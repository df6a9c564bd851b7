"""Locks that die with the process that holds them."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from optuna.storages import RDBStorage
from optuna.storages.journal import JournalFileBackend

from helios.core.files import ensure_regular
from helios.core.logging import get_root_logger
from helios.core.rng import derive_seed
from helios.plugins.optuna._patience import keep_trying

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna
    import sqlalchemy as sql

_SUFFIX: Final = ".helios-lock"  # Not ".lock": beside a journal, that is Optuna's own.

_threads: Any = threading.Lock()
# Forked while another thread holds it, it would stay locked in the child for ever.
os.register_at_fork(after_in_child=_threads._at_fork_reinit)  # noqa: SLF001 - as concurrent.futures does it.


@contextlib.contextmanager
def study_lock(study: optuna.Study) -> Iterator[None]:
    """Hold the lock of a study, which one thread of one process at a time can; the others wait. It cannot be nested.

    For SQLite and journal files it is a lock on a file beside them, for PostgreSQL an advisory lock. Both are let go of
    by the system when the process is killed. On any other storage only the threads of this process are kept apart.
    """
    storage: Any = study._storage  # noqa: SLF001 - optuna has no public way to a study's storage.
    with _threads, _process_lock(getattr(storage, "_backend", storage), study.study_name):
        yield


def _process_lock(backend: object, study_name: str) -> contextlib.AbstractContextManager[None]:
    if isinstance(backend, JournalFileBackend):
        return _file_lock(backend._file_path)  # noqa: SLF001 - where the journal is, only it knows.
    if isinstance(backend, RDBStorage):
        dialect = backend.engine.dialect.name
        if dialect == "sqlite" and (path := _sqlite_path(backend.engine)):
            return _file_lock(path)
        if dialect == "postgresql":
            return _advisory_lock(backend.engine, study_name)
    return contextlib.nullcontext()


def _sqlite_path(engine: sql.Engine) -> str:
    """Return where the database is, as SQLite has opened it; empty for one in memory."""
    # Not from the URL: its path may be relative to a directory that the process has left since.
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("PRAGMA database_list").all()
    return next(str(path or "") for _, name, path in rows if name == "main")


@contextlib.contextmanager
def _file_lock(neighbour: str) -> Iterator[None]:
    import fcntl  # noqa: PLC0415 - POSIX only, and needed nowhere else.

    # Not flock: a worker of a data loader that is forked meanwhile would inherit that lock, and keep it.
    path = Path(os.path.realpath(neighbour) + _SUFFIX)
    if path.exists():
        ensure_regular(path)
    with path.open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _advisory_lock(engine: sql.Engine, name: str) -> Iterator[None]:
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - comes with optuna's RDB storage alone.

    key = derive_seed(0, "study lock", name) - 2**63  # PostgreSQL's locks are signed.
    connection = keep_trying(lambda: _connect_locked(engine, key))
    try:
        yield
    finally:
        try:
            connection.close()
        except DBAPIError:
            # The server has let go of the lock when it lost the connection.
            get_root_logger().warning("the connection that held the study's lock was lost")


def _connect_locked(engine: sql.Engine, key: int) -> sql.Connection:
    from sqlalchemy import text  # noqa: PLC0415 - comes with optuna's RDB storage alone.

    connection = engine.connect()
    try:
        # Held to the end of this transaction, or of this connection.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
    except BaseException:
        connection.close()
        raise
    return connection
