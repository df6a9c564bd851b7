"""Backups of a study: in SQLite a copy of the file beside it, in other databases a copy of the study in the database.

A backup is made within the transaction that changes the study, so it holds the study exactly as it was before.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import sqlalchemy as sql

from helios.checkpoint.files import atomic_write
from helios.errors import ConfigurationError
from helios.plugins.optuna.optuna_internals import tables

if TYPE_CHECKING:
    from collections.abc import Iterable


def back_up_file(connection: sql.Connection, _study_name: str) -> Path:
    """Copy a SQLite file while it is in use: `study.db` to `study-backup-1.db` and so on.

    The connection must hold the file's write lock: no other process can then choose the same number.

    Raises:
        ConfigurationError: if the database is in memory.
    """
    files = {name: file for _, name, file in connection.exec_driver_sql("PRAGMA database_list")}
    if not files["main"]:
        raise ConfigurationError("a database in memory has no place for a backup: pass backup_study=False")
    path = Path(files["main"])
    pattern = re.compile(re.escape(f"{path.stem}-backup-") + r"(\d+)" + re.escape(path.suffix))
    for left_over in path.parent.glob(f".{_escape_glob(path.stem)}-backup-*.tmp"):
        left_over.unlink()
    backup = path.with_name(f"{path.stem}-backup-{_next(pattern, _names(path.parent))}{path.suffix}")

    def write(file: BinaryIO) -> None:
        shutil.copymode(path, file.name)
        # SQLite cannot copy from a connection with an open write transaction, so a second connection is used.
        with contextlib.closing(sqlite3.connect(file.name)) as target, connection.engine.connect() as source:
            target.execute("PRAGMA journal_mode = MEMORY")  # A journal file would be left behind by a kill.
            cast("sqlite3.Connection", source.connection.driver_connection).backup(target)

    atomic_write(backup, write)
    return backup


def back_up_study(connection: sql.Connection, study_name: str) -> str:
    """Copy a study within its database: `name` to `name-backup-1` and so on.

    Returns:
        The name of the copy.
    """
    studies, trials = tables().studies, tables().trials
    prefix = f"{study_name}-backup-"
    names = connection.execute(
        sql.select(studies.c.study_name).where(studies.c.study_name.startswith(prefix, autoescape=True))
    ).scalars()
    name = f"{prefix}{_next(re.compile(re.escape(prefix) + r'([0-9]+)'), names)}"
    connection.execute(sql.insert(studies).values(study_name=name))
    study_id, copy_id = _id_of(connection, study_name), _id_of(connection, name)
    for part in (*tables().of_study, trials):
        columns = _columns(part, "study_id")
        old = sql.select(sql.literal(copy_id), *columns).where(part.c.study_id == study_id)
        _copy(connection, part, ["study_id", *(column.name for column in columns)], old)
    old_trials, new_trials = trials.alias(), trials.alias()
    pairs = (new_trials.c.number == old_trials.c.number) & (new_trials.c.study_id == copy_id)
    for part in tables().of_trial:
        columns = _columns(part, "trial_id")
        old = (
            sql.select(new_trials.c.trial_id, *columns)
            .join_from(part, old_trials, part.c.trial_id == old_trials.c.trial_id)
            .join(new_trials, pairs)
            .where(old_trials.c.study_id == study_id)
        )
        _copy(connection, part, ["trial_id", *(column.name for column in columns)], old)
    return name


def _id_of(connection: sql.Connection, study_name: str) -> int:
    studies = tables().studies
    return int(
        connection.execute(sql.select(studies.c.study_id).where(studies.c.study_name == study_name)).scalar_one()
    )


def _columns(table: sql.Table, link: str) -> list[sql.Column[Any]]:
    return [column for column in table.c if not column.primary_key and column.name != link]


def _copy(connection: sql.Connection, table: sql.Table, names: list[str], rows: sql.Select[Any]) -> None:
    # In the order of the primary keys: Optuna reads parameters and numbers trials in that order.
    ordered = rows.order_by(*(table.primary_key.columns))
    connection.execute(sql.insert(table).from_select(names, ordered))


def _names(folder: Path) -> Iterable[str]:
    return (path.name for path in folder.iterdir())


def _escape_glob(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _next(pattern: re.Pattern[str], names: Iterable[str]) -> int:
    """Return the highest number in use plus one, so that a higher number means a newer backup."""
    return 1 + max((int(match[1]) for name in names if (match := pattern.fullmatch(name))), default=0)
