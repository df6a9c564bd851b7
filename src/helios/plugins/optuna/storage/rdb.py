"""Optuna's tables in a relational database: the one room that reads and writes them directly.

Optuna offers no way to change a trial that has finished, nor to change several in one step. Both are needed to take a
study up again without a moment at which it is half done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sql
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState

from helios.errors import ConfigurationError
from helios.plugins.optuna.storage.owners import OWNER_KEY, Owner, parse_owner
from helios.plugins.optuna.storage.urls import parse_url

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

# How long another process may hold a SQLite file before a wait for it is given up. SQLite itself waits for 5 s.
_LOCK_TIMEOUT: Final = 60.0

# Databases limit how many values one statement may have.
_CHUNK: Final = 500

# What one run of a trial leaves, and the next may not find: Optuna refuses to set a constraint that is set already.
_CONSTRAINTS: Final = "constraints"

_STUDIES: Final[sql.Table] = models.StudyModel.__table__
_TRIALS: Final[sql.Table] = models.TrialModel.__table__
_VALUES: Final[sql.Table] = models.TrialValueModel.__table__
_HEARTBEATS: Final[sql.Table] = models.TrialHeartbeatModel.__table__
_NOTES: Final[sql.Table] = models.TrialSystemAttributeModel.__table__


@dataclasses.dataclass(frozen=True)
class TrialRow:
    """What there is to know about a trial before it is changed.

    Attributes:
        trial_id: its id in the database.
        number: its number in the study.
        state: its state.
        owner: who runs it, or ran it last.
        silence: seconds since its last heartbeat; `None` if it never had one.
    """

    trial_id: int
    number: int
    state: TrialState
    owner: Owner | None
    silence: float | None


def open_storage(storage: str) -> RDBStorage:
    """Open the database of a storage URL, patiently: other processes may hold it, and servers may be restarted.

    Raises:
        ConfigurationError: if the string is no storage URL, or a SQLite file is none, or its folder does not exist.
    """
    url = parse_url(storage)
    if url.get_backend_name() != "sqlite":
        return RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})
    folder = Path(url.database or "").parent
    if "uri" not in url.query and not folder.is_dir():
        raise ConfigurationError(f"storage is in {folder}, which is no folder: make it, or correct the URL")
    file = Path(url.database or "")
    if "uri" not in url.query and file.exists() and not file.is_file():
        raise ConfigurationError(f"storage is in {file}, which is no file: move it away, or correct the URL")
    patience = {} if "timeout" in url.query else {"timeout": _LOCK_TIMEOUT}
    return RDBStorage(storage, engine_kwargs={"connect_args": patience})


@contextlib.contextmanager
def transaction(engine: sql.Engine, study_name: str) -> Iterator[tuple[sql.Connection, int]]:
    """Change a study in one step: all that happens in the context takes place when it ends, or nothing does.

    Meanwhile nobody else changes the study: no trial is begun, and none of those read here moves on.

    Returns:
        The connection and the study's id.
    """
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            # SQLite locks nothing before the first change, and what was read by then may be out of date.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        query = sql.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == study_name)
        yield connection, connection.execute(query.with_for_update()).scalar_one()
        connection.commit()


def has_trials(connection: sql.Connection, study_id: int) -> bool:
    """Return whether a study has any trial."""
    query = sql.select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study_id).limit(1)
    return connection.execute(query).first() is not None


def read_trials(connection: sql.Connection, study_id: int, states: Collection[TrialState]) -> list[TrialRow]:
    """Return the trials of a study that are in one of some states, by number, and hold them until the end."""
    chosen = (_TRIALS.c.study_id == study_id) & _TRIALS.c.state.in_(states)
    query = sql.select(_TRIALS.c.trial_id, _TRIALS.c.number, _TRIALS.c.state).where(chosen)
    rows = connection.execute(query.order_by(_TRIALS.c.trial_id).with_for_update()).all()
    ids = sql.select(_TRIALS.c.trial_id).where(chosen)
    marks = sql.select(_NOTES.c.trial_id, _NOTES.c.value_json)
    owners = {
        trial_id: parse_owner(json.loads(mark))
        for trial_id, mark in connection.execute(marks.where(_NOTES.c.key == OWNER_KEY, _NOTES.c.trial_id.in_(ids)))
    }
    silences = _read_silences(connection, ids)
    return [
        TrialRow(trial_id, number, state, owners.get(trial_id), silences.get(trial_id))
        for trial_id, number, state in rows
    ]


def find_silences(storage: object, study_id: int) -> dict[int, float]:
    """Return how many seconds ago the running trials of a study gave their last heartbeat, by their ids.

    Trials that never gave one are not in it; nor is any where there is no relational database.
    """
    backend = getattr(storage, "_backend", storage)
    if not isinstance(backend, RDBStorage):
        return {}
    chosen = (_TRIALS.c.study_id == study_id) & (_TRIALS.c.state == TrialState.RUNNING)
    with backend.engine.connect() as connection:
        return _read_silences(connection, sql.select(_TRIALS.c.trial_id).where(chosen))


def forget_heartbeat(storage: object, trial_id: int) -> None:
    """Take the last heartbeat off a trial: whoever runs it next need not be taken for somebody who is silent."""
    backend = getattr(storage, "_backend", storage)
    if isinstance(backend, RDBStorage):
        with backend.engine.begin() as connection:
            connection.execute(sql.delete(_HEARTBEATS).where(_HEARTBEATS.c.trial_id == trial_id))


def _read_silences(connection: sql.Connection, ids: sql.Select[Any]) -> dict[int, float]:
    # By the database's own clock, as Optuna does: its heartbeats are in local time on one database, in UTC on another.
    now: datetime.datetime = connection.execute(sql.select(sql.func.now())).scalar_one().replace(tzinfo=None)
    query = sql.select(_HEARTBEATS.c.trial_id, _HEARTBEATS.c.heartbeat).where(_HEARTBEATS.c.trial_id.in_(ids))
    return {trial_id: (now - beat).total_seconds() for trial_id, beat in connection.execute(query)}


def requeue(connection: sql.Connection, trial_ids: Sequence[int]) -> None:
    """Let trials wait in their own slots, with their parameters, attributes and intermediate values.

    What their last run left behind as its result is taken off: values, constraints, dates, owner and heartbeat.
    """
    is_result = (
        (_NOTES.c.key == OWNER_KEY)
        | (_NOTES.c.key == _CONSTRAINTS)
        | _NOTES.c.key.startswith(f"{_CONSTRAINTS}:", autoescape=True)
    )
    for ids in _chunks(trial_ids):
        connection.execute(sql.delete(_VALUES).where(_VALUES.c.trial_id.in_(ids)))
        connection.execute(sql.delete(_HEARTBEATS).where(_HEARTBEATS.c.trial_id.in_(ids)))
        connection.execute(sql.delete(_NOTES).where(_NOTES.c.trial_id.in_(ids), is_result))
        waiting = {"state": TrialState.WAITING, "datetime_start": None, "datetime_complete": None}
        connection.execute(sql.update(_TRIALS).where(_TRIALS.c.trial_id.in_(ids)).values(waiting))


def let_fail(connection: sql.Connection, trial_ids: Sequence[int]) -> None:
    """Mark trials as failed now."""
    # Optuna keeps dates in UTC, without saying so in them.
    failed = {"state": TrialState.FAIL, "datetime_complete": datetime.datetime.now(datetime.UTC).replace(tzinfo=None)}
    for ids in _chunks(trial_ids):
        connection.execute(sql.update(_TRIALS).where(_TRIALS.c.trial_id.in_(ids)).values(failed))


def forget_notes(storage: object, trial_id: int, names: Sequence[str]) -> None:
    """Take system attributes off a trial that has not finished; does nothing where there is no relational database."""
    backend = getattr(storage, "_backend", storage)
    if isinstance(backend, RDBStorage) and names:
        with backend.engine.begin() as connection:
            connection.execute(sql.delete(_NOTES).where(_NOTES.c.trial_id == trial_id, _NOTES.c.key.in_(names)))


def _chunks(trial_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(trial_ids), _CHUNK):
        yield trial_ids[first : first + _CHUNK]
