"""The error for a database that is full, deleted, damaged or unreachable, with the remedy in its message."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import sqlalchemy as sql
from optuna.exceptions import StorageInternalError

from helios.checkpoint.files import atomic_write
from helios.errors import StudyStorageError
from helios.plugins.optuna.optuna_internals import storage_of
from helios.plugins.optuna.storage.delegating import database_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna
    from optuna.storages import RDBStorage

_AGAIN: Final = "then run the study again: unfinished trials are resumed from their checkpoints"
# Parts of the drivers' messages, in lower case, and the remedy.
_REMEDIES: Final = (
    (
        ("disk is full", "no space left", "disk full", "diskfull"),
        f"its disk is full. Its content is unchanged: make room, and {_AGAIN}",
    ),
    (
        ("readonly database", "read-only", "no such table", "unable to open", "does not exist"),
        (
            "it was deleted, moved away or made read-only while it was in use, or cannot be opened: restore it, "
            f"from a backup if necessary (resume_study writes them beside it), and {_AGAIN}"
        ),
    ),
    (
        ("malformed", "not a database", "disk i/o error", "corrupt"),
        (
            "it is damaged, or its disk fails: restore it from a backup (resume_study writes them beside it), and "
            f"{_AGAIN}"
        ),
    ),
)


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Raise a `StudyStorageError` in place of every error of a database.

    Raises:
        StudyStorageError: with the message of the database and the remedy.
    """
    try:
        yield
    except (StorageInternalError, sql.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise _explain(error) from error


def find_storage_error(error: BaseException | None) -> StudyStorageError | None:
    """Return the `StudyStorageError` among an error and its causes, or `None` if there is none."""
    while error is not None and not isinstance(error, StudyStorageError):
        error = error.__cause__ or error.__context__
    return error


def _explain(error: BaseException) -> StudyStorageError:
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ is not None else error
    # The driver's message only: SQLAlchemy appends the statement with all of its values.
    text = str(cause.orig) if isinstance(cause, sql.exc.DBAPIError) else str(cause)
    message = text.strip().partition("\n")[0]
    for marks, remedy in _REMEDIES:
        if any(mark in message.lower() for mark in marks):
            return StudyStorageError(f"the database of the study cannot be used ({message}): {remedy}")
    return StudyStorageError(
        f"the database of the study cannot be used ({message}). Its content is unchanged: make it readable and "
        f"writable, and {_AGAIN}"
    )


@contextlib.contextmanager
def rescue_deleted_file(study: optuna.Study) -> Iterator[None]:
    """Copy the content of a SQLite file that is deleted in this context: its open connections can still read it.

    Raises:
        StudyStorageError: in place of the one that ended the context; it names the copy.
    """
    database = database_of(storage_of(study))
    path = None if database is None else _path_of(database)
    try:
        yield
    except StudyStorageError as error:
        if database is None or path is None or path.exists():
            raise
        copy = None
        with contextlib.suppress(OSError, sqlite3.Error, sql.exc.SQLAlchemyError):
            copy = _copy(database.engine, path)
        if copy is None:
            raise
        raise StudyStorageError(
            f"the database of the study, '{path}', was deleted or moved away while it was in use. Its content is in "
            f"'{copy}': rename that to '{path.name}', and {_AGAIN}"
        ) from error


def _path_of(database: RDBStorage) -> Path | None:
    if database.engine.dialect.name != "sqlite":
        return None
    with storage_errors(), database.engine.connect() as connection:
        rows = connection.exec_driver_sql("PRAGMA database_list").all()
    file = next((str(file or "") for _, name, file in rows if name == "main"), "")
    return Path(file) if file else None


def _copy(engine: sql.Engine, path: Path) -> Path:
    number = next(n for n in range(1, 10**6) if not _rescued_path(path, n).exists())

    def write(file: BinaryIO) -> None:
        with contextlib.closing(sqlite3.connect(file.name)) as target, engine.connect() as source:
            target.execute("PRAGMA journal_mode = MEMORY")  # A journal file would be left behind by a kill.
            cast("sqlite3.Connection", source.connection.driver_connection).backup(target)
            if not target.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise sqlite3.OperationalError("this connection was opened after the file was deleted")

    atomic_write(_rescued_path(path, number), write)
    return _rescued_path(path, number)


def _rescued_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-rescued-{number}{path.suffix}")
