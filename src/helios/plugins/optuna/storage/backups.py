"""Backups of a study: a file beside a SQLite file, a study beside the study in any other database.

Both are made within the transaction that changes the study, so they hold what it was at that very moment.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import sqlalchemy as sql
from optuna.storages._rdb import models

from helios.checkpoint.files import atomic_write
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

_STUDIES: Final[sql.Table] = models.StudyModel.__table__
_TRIALS: Final[sql.Table] = models.TrialModel.__table__
_PARTS_OF_STUDY: Final[tuple[sql.Table, ...]] = (
    models.StudyDirectionModel.__table__,
    models.StudyUserAttributeModel.__table__,
    models.StudySystemAttributeModel.__table__,
)
_PARTS_OF_TRIAL: Final[tuple[sql.Table, ...]] = (
    models.TrialParamModel.__table__,
    models.TrialValueModel.__table__,
    models.TrialIntermediateValueModel.__table__,
    models.TrialUserAttributeModel.__table__,
    models.TrialSystemAttributeModel.__table__,
)


def back_up_file(connection: sql.Connection, _study_name: str) -> Path:
    """Copy a SQLite file beside itself, whole, though it is in use: `study.db` to `study-backup-1.db` and so on.

    The connection must hold the file's write lock: that makes the number this caller's own.

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
        # Through a connection of its own: SQLite does not read out of one that is about to write.
        with contextlib.closing(sqlite3.connect(file.name)) as target, connection.engine.connect() as source:
            target.execute("PRAGMA journal_mode = MEMORY")  # A second file would stay behind after a kill.
            cast("sqlite3.Connection", source.connection.driver_connection).backup(target)

    atomic_write(backup, write)
    return backup


def back_up_study(connection: sql.Connection, study_name: str) -> str:
    """Copy a study beside itself in its database: `name` to `name-backup-1` and so on.

    Returns:
        The name of the copy.
    """
    prefix = f"{study_name}-backup-"
    names = connection.execute(
        sql.select(_STUDIES.c.study_name).where(_STUDIES.c.study_name.startswith(prefix, autoescape=True))
    ).scalars()
    name = f"{prefix}{_next(re.compile(re.escape(prefix) + r'([0-9]+)'), names)}"
    connection.execute(sql.insert(_STUDIES).values(study_name=name))
    study_id, copy_id = _id_of(connection, study_name), _id_of(connection, name)
    for part in (*_PARTS_OF_STUDY, _TRIALS):
        columns = _columns(part, "study_id")
        old = sql.select(sql.literal(copy_id), *columns).where(part.c.study_id == study_id)
        _copy(connection, part, ["study_id", *(column.name for column in columns)], old)
    old_trials, new_trials = _TRIALS.alias(), _TRIALS.alias()
    pairs = (new_trials.c.number == old_trials.c.number) & (new_trials.c.study_id == copy_id)
    for part in _PARTS_OF_TRIAL:
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
    query = sql.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == study_name)
    return int(connection.execute(query).scalar_one())


def _columns(table: sql.Table, link: str) -> list[sql.Column[Any]]:
    return [column for column in table.c if not column.primary_key and column.name != link]


def _copy(connection: sql.Connection, table: sql.Table, names: list[str], rows: sql.Select[Any]) -> None:
    # In the order of the keys: Optuna reads parameters in that order, and numbers trials by it.
    ordered = rows.order_by(*(table.primary_key.columns))
    connection.execute(sql.insert(table).from_select(names, ordered))


def _names(folder: Path) -> Iterable[str]:
    return (path.name for path in folder.iterdir())


def _escape_glob(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _next(pattern: re.Pattern[str], names: Iterable[str]) -> int:
    """Return the number after the highest in use, so that order by number is order by age."""
    return 1 + max((int(match[1]) for name in names if (match := pattern.fullmatch(name))), default=0)
