"""What a database that is full, deleted, damaged or out of reach is called, and what remains to be done about it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import sqlalchemy as sql
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from helios.checkpoint.files import atomic_write
from helios.errors import StudyStorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna

_AGAIN: Final = "run the study again then: trials that were being run are continued from their checkpoints"
# What drivers say, in lower case, and what to do.
_REMEDIES: Final = (
    (
        ("disk is full", "no space left", "disk full", "diskfull"),
        f"its disk is full. What it held is as it was: make room, and {_AGAIN}",
    ),
    (
        ("readonly database", "read-only", "no such table", "unable to open", "does not exist"),
        (
            "it was deleted, moved away or made read-only while it was in use, or cannot be opened: bring it back, "
            f"from a backup if need be (resume_study keeps them beside it), and {_AGAIN}"
        ),
    ),
    (
        ("malformed", "not a database", "disk i/o error", "corrupt"),
        (
            "it is damaged, or its disk fails: bring it back from a backup (resume_study keeps them beside it), and "
            f"{_AGAIN}"
        ),
    ),
)


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Raise one error of ours where a database fails for good.

    Raises:
        StudyStorageError: it says what has failed, and what to do.
    """
    try:
        yield
    except (StorageInternalError, sql.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise _explain(error) from error


def find_storage_error(error: BaseException | None) -> StudyStorageError | None:
    """Return the error of ours that was being handled when another one was raised, or `None` if there was none."""
    while error is not None and not isinstance(error, StudyStorageError):
        error = error.__cause__ or error.__context__
    return error


def _explain(error: BaseException) -> StudyStorageError:
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ is not None else error
    # Of the driver alone: what SQLAlchemy adds to it is the statement, with all of its values.
    text = str(cause.orig) if isinstance(cause, sql.exc.DBAPIError) else str(cause)
    said = text.strip().partition("\n")[0]
    for marks, remedy in _REMEDIES:
        if any(mark in said.lower() for mark in marks):
            return StudyStorageError(f"the database of the study cannot be used ({said}): {remedy}")
    return StudyStorageError(
        f"the database of the study cannot be used ({said}). What it held is as it was: see to it that it can be read "
        f"and written, and {_AGAIN}"
    )


@contextlib.contextmanager
def rescued(study: optuna.Study) -> Iterator[None]:
    """Keep what a SQLite file held if it is deleted in this context: the open connections still have it.

    Raises:
        StudyStorageError: in place of one that ended the context; it says where the content is kept.
    """
    backend = getattr(study._storage, "_backend", None)  # noqa: SLF001 - Optuna has no public way to the database.
    path = _path_of(backend)
    try:
        yield
    except StudyStorageError as error:
        if path is None or path.exists():
            raise
        kept = None
        with contextlib.suppress(OSError, sqlite3.Error, sql.exc.SQLAlchemyError):
            kept = _rescue(cast("RDBStorage", backend).engine, path)
        if kept is None:
            raise
        raise StudyStorageError(
            f"the database of the study, '{path}', was deleted or moved away while it was in use. What it held is kept "
            f"in '{kept}': give that its name, and {_AGAIN}"
        ) from error


def _path_of(backend: object) -> Path | None:
    if not isinstance(backend, RDBStorage) or backend.engine.dialect.name != "sqlite":
        return None
    with storage_errors(), backend.engine.connect() as connection:
        rows = connection.exec_driver_sql("PRAGMA database_list").all()
    file = next((str(file or "") for _, name, file in rows if name == "main"), "")
    return Path(file) if file else None


def _rescue(engine: sql.Engine, path: Path) -> Path:
    number = next(n for n in range(1, 10**6) if not _name_rescued(path, n).exists())

    def write(file: BinaryIO) -> None:
        with contextlib.closing(sqlite3.connect(file.name)) as target, engine.connect() as source:
            target.execute("PRAGMA journal_mode = MEMORY")  # A second file would stay behind after a kill.
            cast("sqlite3.Connection", source.connection.driver_connection).backup(target)
            if not target.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise sqlite3.OperationalError("the connection is a new one, to a new file")

    atomic_write(_name_rescued(path, number), write)
    return _name_rescued(path, number)


def _name_rescued(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-rescued-{number}{path.suffix}")
