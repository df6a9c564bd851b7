"""Locks that die with the process that holds them."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from optuna.storages import RDBStorage
from optuna.storages.journal import JournalFileBackend

from helios.core.rng import derive_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna

_threads: Final = threading.RLock()


@contextlib.contextmanager
def study_lock(study: optuna.Study) -> Iterator[None]:
    """Hold the lock of a study, which one process at a time can; the others wait.

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
        dialect, database = backend.engine.dialect.name, backend.engine.url.database
        if dialect == "sqlite" and database not in (None, "", ":memory:"):
            return _file_lock(str(database))
        if dialect == "postgresql":
            return _advisory_lock(backend, study_name)
    return contextlib.nullcontext()


@contextlib.contextmanager
def _file_lock(neighbour: str) -> Iterator[None]:
    import fcntl  # noqa: PLC0415 - POSIX only, and needed nowhere else.

    with Path(f"{neighbour}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _advisory_lock(backend: RDBStorage, name: str) -> Iterator[None]:
    from sqlalchemy import text  # noqa: PLC0415 - comes with optuna's RDB storage alone.

    key = derive_seed(0, "study lock", name) - 2**63  # PostgreSQL's locks are signed.
    with backend.engine.connect() as connection, connection.begin():
        # Held to the end of this transaction, or of this connection.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        yield
