"""Reads and writes of Optuna's tables in a relational database.

Optuna has no method that changes a finished trial, or several trials in one transaction. `resume_study` needs both, so
that an interruption leaves either the old study or the new one.
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
from optuna.trial import TrialState

from helios.errors import ConfigurationError
from helios.plugins.optuna.optuna_internals import tables
from helios.plugins.optuna.storage.delegating import database_of
from helios.plugins.optuna.storage.owners import OWNER_KEY, Owner, parse_owner
from helios.plugins.optuna.storage.urls import parse_url

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from optuna.storages import BaseStorage

_LOCK_TIMEOUT: Final = 60.0  # Seconds to wait for a locked SQLite file; the default of SQLite is 5 s.
_CHUNK: Final = 500  # Databases limit the number of values in one statement.
# The system attributes of constraints, which Optuna never overwrites: a trial must not have them when it runs again.
_CONSTRAINTS: Final = "constraints"


@dataclasses.dataclass(frozen=True)
class TrialRow:
    """What is known about a trial before it is changed.

    Attributes:
        trial_id: its id in the database.
        number: its number in the study.
        state: its state.
        owner: the process that runs it, or ran it last.
        heartbeat_age: seconds since its last heartbeat; `None` if it never had one.
    """

    trial_id: int
    number: int
    state: TrialState
    owner: Owner | None
    heartbeat_age: float | None


def open_storage(storage: str) -> RDBStorage:
    """Open the database of a storage URL with a long lock timeout and with connections that are checked before use.

    Raises:
        ConfigurationError: if the string is not a storage URL, if a SQLite path is not a file, or if its folder does
            not exist.
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
    timeout = {} if "timeout" in url.query else {"timeout": _LOCK_TIMEOUT}
    return RDBStorage(storage, engine_kwargs={"connect_args": timeout})


@contextlib.contextmanager
def transaction(engine: sql.Engine, study_name: str) -> Iterator[tuple[sql.Connection, int]]:
    """Change a study in one transaction, which is committed at the end of the context.

    Until then no other process can change the study: it can neither start a trial nor change one that was read here.

    Yields:
        The connection and the study's id.
    """
    studies = tables().studies
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            # By default SQLite takes its lock at the first write, when the rows that were read may be out of date.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        query = sql.select(studies.c.study_id).where(studies.c.study_name == study_name)
        yield connection, connection.execute(query.with_for_update()).scalar_one()
        connection.commit()


def has_trials(connection: sql.Connection, study_id: int) -> bool:
    """Return whether a study has any trial."""
    trials = tables().trials
    query = sql.select(trials.c.trial_id).where(trials.c.study_id == study_id).limit(1)
    return connection.execute(query).first() is not None


def read_trials(connection: sql.Connection, study_id: int, states: Collection[TrialState]) -> list[TrialRow]:
    """Return the trials of a study in these states, by number, and lock them until the transaction ends."""
    trials, attrs = tables().trials, tables().system_attrs
    chosen = (trials.c.study_id == study_id) & trials.c.state.in_(states)
    query = sql.select(trials.c.trial_id, trials.c.number, trials.c.state).where(chosen)
    rows = connection.execute(query.order_by(trials.c.trial_id).with_for_update()).all()
    ids = sql.select(trials.c.trial_id).where(chosen)
    marks = sql.select(attrs.c.trial_id, attrs.c.value_json)
    owners = {
        trial_id: parse_owner(json.loads(mark))
        for trial_id, mark in connection.execute(marks.where(attrs.c.key == OWNER_KEY, attrs.c.trial_id.in_(ids)))
    }
    ages = _read_heartbeat_ages(connection, ids)
    return [
        TrialRow(trial_id, number, state, owners.get(trial_id), ages.get(trial_id)) for trial_id, number, state in rows
    ]


def find_heartbeat_ages(storage: BaseStorage, study_id: int) -> dict[int, float]:
    """Return the seconds since the last heartbeat of each running trial of a study, by trial id.

    Trials without a heartbeat are left out. The result is empty for a storage that is not a relational database.
    """
    database = database_of(storage)
    if database is None:
        return {}
    trials = tables().trials
    chosen = (trials.c.study_id == study_id) & (trials.c.state == TrialState.RUNNING)
    with database.engine.connect() as connection:
        return _read_heartbeat_ages(connection, sql.select(trials.c.trial_id).where(chosen))


def delete_heartbeat(storage: BaseStorage, trial_id: int) -> None:
    """Delete the last heartbeat of a trial, so that the next process that runs it does not look stale."""
    database = database_of(storage)
    if database is not None:
        heartbeats = tables().heartbeats
        with database.engine.begin() as connection:
            connection.execute(sql.delete(heartbeats).where(heartbeats.c.trial_id == trial_id))


def _read_heartbeat_ages(connection: sql.Connection, ids: sql.Select[Any]) -> dict[int, float]:
    heartbeats = tables().heartbeats
    # As in Optuna, by the clock of the database: heartbeats are in local time in some databases, in UTC in others.
    now: datetime.datetime = connection.execute(sql.select(sql.func.now())).scalar_one().replace(tzinfo=None)
    query = sql.select(heartbeats.c.trial_id, heartbeats.c.heartbeat).where(heartbeats.c.trial_id.in_(ids))
    return {trial_id: (now - heartbeat).total_seconds() for trial_id, heartbeat in connection.execute(query)}


def requeue(connection: sql.Connection, trial_ids: Sequence[int]) -> None:
    """Set trials to waiting, with their numbers, parameters, attributes and intermediate values.

    The results of their last run are deleted: values, constraints, dates, owner and heartbeat.
    """
    trials, values, heartbeats = tables().trials, tables().values, tables().heartbeats
    attrs = tables().system_attrs
    is_result = (
        (attrs.c.key == OWNER_KEY)
        | (attrs.c.key == _CONSTRAINTS)
        | attrs.c.key.startswith(f"{_CONSTRAINTS}:", autoescape=True)
    )
    for ids in _chunks(trial_ids):
        connection.execute(sql.delete(values).where(values.c.trial_id.in_(ids)))
        connection.execute(sql.delete(heartbeats).where(heartbeats.c.trial_id.in_(ids)))
        connection.execute(sql.delete(attrs).where(attrs.c.trial_id.in_(ids), is_result))
        waiting = {"state": TrialState.WAITING, "datetime_start": None, "datetime_complete": None}
        connection.execute(sql.update(trials).where(trials.c.trial_id.in_(ids)).values(waiting))


def mark_failed(connection: sql.Connection, trial_ids: Sequence[int]) -> None:
    """Set trials to failed, at the current time."""
    trials = tables().trials
    # Optuna stores dates in UTC without a time zone.
    failed = {"state": TrialState.FAIL, "datetime_complete": datetime.datetime.now(datetime.UTC).replace(tzinfo=None)}
    for ids in _chunks(trial_ids):
        connection.execute(sql.update(trials).where(trials.c.trial_id.in_(ids)).values(failed))


def delete_system_attrs(storage: BaseStorage, trial_id: int, names: Sequence[str]) -> None:
    """Delete system attributes of an unfinished trial; does nothing if the storage is not a relational database."""
    database = database_of(storage)
    if database is not None and names:
        attrs = tables().system_attrs
        with database.engine.begin() as connection:
            connection.execute(sql.delete(attrs).where(attrs.c.trial_id == trial_id, attrs.c.key.in_(names)))


def _chunks(trial_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(trial_ids), _CHUNK):
        yield trial_ids[first : first + _CHUNK]
