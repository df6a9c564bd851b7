"""`RetryingStorage` and the storage that it derives from."""

from __future__ import annotations

import pickle
import sqlite3
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import sqlalchemy as sql
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage, fail_stale_trials
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState

from helios.errors import StudyStorageError
from helios.plugins.optuna.optuna_internals import storage_of, tables, trial_id_of
from helios.plugins.optuna.storage import retry as _retry
from helios.plugins.optuna.storage.delegating import DelegatingStorage, database_of
from helios.plugins.optuna.storage.retrying import RetryingStorage, retry_storage

if TYPE_CHECKING:
    from pathlib import Path


def database(tmp_path: Path, **options: Any) -> RDBStorage:
    return RDBStorage(f"sqlite:///{tmp_path / 'study.db'}", **options)


class TestDelegatingStorage(StorageTestCase):
    """A storage in memory that is wrapped meets Optuna's contract of a storage."""

    @pytest.fixture
    def storage(self) -> BaseStorage:
        """Return an empty storage."""
        return DelegatingStorage(InMemoryStorage())


class TestRetryingStorage(StorageTestCase):
    """A database that is wrapped meets Optuna's contract of a storage, in the form that a study gives it."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> BaseStorage:
        """Return the storage of a study after `retry_storage`, empty."""
        study = optuna.create_study(storage=database(tmp_path))
        retry_storage(study)
        storage = storage_of(study)
        assert isinstance(storage, RetryingStorage)
        optuna.delete_study(study_name=study.study_name, storage=storage)
        return storage


class TestRetryingDatabase(StorageTestCase):
    """A database without Optuna's cache that is wrapped meets Optuna's contract of a storage."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> BaseStorage:
        """Return an empty storage."""
        return RetryingStorage(database(tmp_path))


def test_every_method_of_a_storage_is_delegated() -> None:
    """`DelegatingStorage` passes on each public method of `BaseStorage`, also those with a default."""
    methods = {name for name, value in vars(BaseStorage).items() if callable(value) and not name.startswith("_")}
    assert len(methods) > 20
    assert methods <= set(vars(DelegatingStorage)), "pass the missing methods on in storage/delegating.py"


def _fail_first(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> list[str]:
    """Have the first call of each test fail in the database, and return the list of calls."""
    calls: list[str] = []
    original = getattr(RDBStorage, name)

    def call(self: RDBStorage, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == 1:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RDBStorage, name, call)
    return calls


@pytest.mark.parametrize(
    ("method", "in_database"),
    [
        ("create_new_trial", "_create_new_trial"),
        ("get_all_trials", "_get_trials"),
        ("get_study_user_attrs", "get_study_user_attrs"),
        ("record_heartbeat", "record_heartbeat"),
        ("_get_stale_trial_ids", "_get_stale_trial_ids"),
    ],
)
def test_a_transient_error_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, in_database: str
) -> None:
    """A call that finds the database locked is repeated; an error that will stay is raised once, as one of ours."""
    monkeypatch.setattr(_retry, "_FIRST_PAUSE", 0.001)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        storage = database(tmp_path, heartbeat_interval=60)
    study = optuna.create_study(storage=storage)
    retry_storage(study)
    locked = sql.exc.OperationalError("statement", {}, sqlite3.OperationalError("database is locked"))
    with monkeypatch.context() as context:
        calls = _fail_first(context, in_database, locked)
        getattr(storage_of(study), method)(1)
        assert len(calls) == 2
    full = StorageInternalError("outer")
    full.__cause__ = sql.exc.OperationalError("statement", {}, sqlite3.OperationalError("database or disk is full"))
    calls = _fail_first(monkeypatch, in_database, full)
    with pytest.raises(StudyStorageError, match="its disk is full"):
        getattr(storage_of(study), method)(1)
    assert len(calls) == 1


def test_creating_a_study_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's error is raised as it is: a second attempt could find the study of the first."""
    locked = sql.exc.OperationalError("statement", {}, sqlite3.OperationalError("database is locked"))
    calls = _fail_first(monkeypatch, "create_new_study", locked)
    with pytest.raises(sql.exc.OperationalError, match="is locked"):
        RetryingStorage(database(tmp_path)).create_new_study([StudyDirection.MINIMIZE])
    assert len(calls) == 1


def test_a_state_is_set_once_if_the_answer_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit arrived and the connection broke: the second attempt returns True. A second `tell` still raises."""
    monkeypatch.setattr(_retry, "_FIRST_PAUSE", 0.001)
    study = optuna.create_study(storage=database(tmp_path))
    retry_storage(study)
    trial = study.ask()
    original = RDBStorage.set_trial_state_values
    broken: list[bool] = []

    def break_once(self: RDBStorage, *args: Any, **kwargs: Any) -> bool:
        done = original(self, *args, **kwargs)
        if not broken:
            broken.append(True)
            raise sql.exc.OperationalError("commit", {}, ConnectionError("lost"))
        return done

    monkeypatch.setattr(RDBStorage, "set_trial_state_values", break_once)
    study.tell(trial, 2.5)
    assert broken
    assert study.trials[0].value == 2.5
    with pytest.raises(UpdateFinishedTrialError):
        storage_of(study).set_trial_state_values(trial_id_of(trial), TrialState.COMPLETE, [1.0])


def test_a_storage_is_wrapped_once(tmp_path: Path) -> None:
    """A second call changes nothing; a trial that was created before gets the study's storage, and keeps working."""
    study = optuna.create_study(storage=database(tmp_path))
    trial = study.ask()
    retry_storage(study, trial)
    storage = storage_of(study)
    assert trial.storage is storage
    retry_storage(study, trial)
    assert storage_of(study) is storage
    assert trial.suggest_float("x", 0, 1) == study.trials[0].params["x"]
    study.tell(trial, 1.0)
    assert study.best_value == 1.0


def test_storages_without_a_database_are_left_alone(tmp_path: Path) -> None:
    """A study in memory or in a journal keeps its storage."""
    for storage in (InMemoryStorage(), JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))):
        study = optuna.create_study(storage=storage)
        retry_storage(study, study.ask())
        assert storage_of(study) is storage
        assert database_of(storage) is None


def test_a_study_is_pickled_with_its_storage(tmp_path: Path) -> None:
    """The copy of a study has a storage that retries as well, and reads the same database."""
    study = optuna.create_study(storage=database(tmp_path))
    retry_storage(study)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    copy = pickle.loads(pickle.dumps(study))
    assert isinstance(storage_of(copy), RetryingStorage)
    assert copy.trials == study.trials


def test_optuna_sends_heartbeats_through_the_storage(tmp_path: Path) -> None:
    """With `heartbeat_interval`, Optuna records a heartbeat for each trial, and fails trials whose heartbeat is old."""
    failed = []
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        storage = database(
            tmp_path,
            heartbeat_interval=60,
            heartbeat_stale_trial_callback=lambda _study, trial: failed.append(trial.number),
        )
    study = optuna.create_study(storage=storage)
    retry_storage(study)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.warns(UserWarning, match="supposed to be used with Study.optimize"):
        stale = study.ask()
    storage.record_heartbeat(trial_id_of(stale))
    heartbeats = tables().heartbeats
    with storage.engine.begin() as connection:
        assert len(connection.execute(sql.select(heartbeats)).all()) == 2
        connection.execute(heartbeats.update().values(heartbeat=sql.text("datetime('now', '-1 hour')")))
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        fail_stale_trials(study)
    assert failed == [stale.number]
    assert study.trials[stale.number].state is TrialState.FAIL
