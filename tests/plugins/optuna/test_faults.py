"""Databases that are locked or unreachable in the middle of a trial: no data are lost."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import sqlalchemy as sql
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from torch import nn

from helios import DataModule, Model, Trainer
from helios.plugins.optuna import OptunaPlugin, run_study
from helios.plugins.optuna.storage import retry as _retry
from helios.plugins.optuna.storage.retry import is_creation_conflict, is_locked, is_transient, retry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.postgres import Server

_LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


def lock(path: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Have another process lock a database for some seconds; it is locked when this returns."""
    process = subprocess.Popen([sys.executable, "-S", "-c", _LOCK, str(path), str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    return process


class Data(DataModule):
    def setup(self) -> None:
        """Prepare nothing: the batches are ready."""

    def train_dataloader(self) -> Any:
        return [0], None

    def valid_dataloader(self) -> Any:
        return [0], None


class Reporter(Model):
    """Reports the number of each validation, and calls `disturb` before the report."""

    def __init__(self, disturb: Callable[[int], None]) -> None:
        super().__init__("reporter")
        self._disturb = disturb

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        self._net = nn.Linear(1, 1)

    def train_step(self, batch: Any, state: Any) -> None:
        """Train nothing."""

    def valid_step(self, batch: Any, step: int) -> None:
        """Compute nothing: the metric is known."""

    def on_validation_end(self, validation_cycle: int) -> None:
        self.metrics["score"] = validation_cycle + 1.0
        self._disturb(validation_cycle)
        plugin = self.trainer.plugins[OptunaPlugin.plugin_id]
        assert isinstance(plugin, OptunaPlugin)
        plugin.report_metrics(validation_cycle)


def train(trial: optuna.Trial, disturb: Callable[[int], None]) -> float:
    """Report three values with disturbances before the second one and before the end, and return the last."""
    trial.suggest_float("x", 0, 1)
    trainer = Trainer(total_steps=3, valid_frequency=1, print_banner=False, use_cpu=True)
    plugin, model = OptunaPlugin(trial, "score"), Reporter(lambda cycle: disturb(cycle) if cycle == 1 else None)
    plugin.configure_trainer(trainer)
    plugin.configure_model(model)
    trainer.fit(model, Data())
    plugin.check_pruned()
    disturb(4)
    return float(model.metrics["score"])


def check(study: optuna.Study) -> None:
    """Check that the trial is complete, with all intermediate values."""
    (trial,) = study.get_trials(deepcopy=False)
    assert trial.state is TrialState.COMPLETE
    assert trial.value == 3.0
    assert trial.intermediate_values == {0: 1.0, 1: 2.0, 2: 3.0}


def make(url: str) -> optuna.Study:
    return optuna.create_study(storage=url, study_name="s", load_if_exists=True, pruner=optuna.pruners.MedianPruner())


def run_locked(path: Path, seconds: float, *, by_helios: bool) -> optuna.Study:
    lockers = []

    def disturb(_cycle: int) -> None:
        lockers.append(lock(path, seconds))

    url = f"sqlite:///{path}"
    study = make(url)
    if by_helios:
        run_study(lambda: make(url), lambda trial: train(trial, disturb), 1)
    else:
        study.optimize(lambda trial: train(trial, disturb), n_trials=1)
    for locker in lockers:
        locker.communicate(timeout=60)
        assert locker.returncode == 0
    assert len(lockers) == 2
    return study


@pytest.mark.parametrize("by_helios", [True, False], ids=["run_study", "optimize"])
def test_a_locked_database_is_waited_for(tmp_path: Path, by_helios: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Another process locks the file for longer than SQLite waits, during a report and the tell; both succeed."""
    with caplog.at_level(logging.WARNING):
        check(run_locked(tmp_path / "study.db", 6, by_helios=by_helios))
    assert caplog.text.count("database is locked") >= 2


@pytest.mark.soak
def test_a_database_is_locked_for_half_a_minute(tmp_path: Path) -> None:
    """The same with a lock of 30 s."""
    check(run_locked(tmp_path / "study.db", 30, by_helios=True))


def test_a_study_begins_while_its_database_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The creation of the study is retried as well."""
    path = tmp_path / "study.db"
    make(f"sqlite:///{path}")
    locker = lock(path, 2.0)
    tries: list[None] = []

    def make_with_short_timeout() -> optuna.Study:
        tries.append(None)
        storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 0.2}})
        return optuna.load_study(storage=storage, study_name="s")

    monkeypatch.setattr(_retry, "_LONGEST_PAUSE", 0.3)
    study = run_study(make_with_short_timeout, lambda _: 1.0, 1)
    assert len(tries) > 1
    assert len(study.trials) == 1
    locker.communicate(timeout=30)


@pytest.mark.parametrize("seconds", [0.0, 1.5], ids=["back at once", "away for a while"])
def test_postgresql_restarts_in_the_middle_of_a_trial(
    postgres_server: Server, postgres_url: str, seconds: float
) -> None:
    """The server is stopped between two reports, and again before the tell: the trial continues and is complete."""
    is_over = threading.Event()
    starters: list[threading.Thread] = []

    def start_later() -> None:
        time.sleep(seconds)
        postgres_server.start()
        is_over.wait()  # The server ends with the thread that started it.

    def disturb(_cycle: int) -> None:
        postgres_server.stop()
        if seconds:
            starters.append(threading.Thread(target=start_later))
            starters[-1].start()
        else:
            postgres_server.start()

    try:
        study = run_study(lambda: make(postgres_url), lambda trial: train(trial, disturb), 1)
        check(study)
    finally:
        if seconds:
            postgres_server.stop()
            is_over.set()
            for starter in starters:
                starter.join()
            postgres_server.start()
    assert len(starters) == (2 if seconds else 0)


def test_transient_errors() -> None:
    """Locked SQLite files, and operational errors or lost connections of servers are transient; others are not."""

    def wrapped(error: Exception, kind: type[sql.exc.DBAPIError] = sql.exc.OperationalError) -> StorageInternalError:
        outer = StorageInternalError("outer")
        outer.__cause__ = kind("statement", {}, error)
        return outer

    locked = wrapped(sqlite3.OperationalError("database is locked"))
    assert is_locked(locked)
    assert is_transient(locked)
    assert not is_transient(wrapped(sqlite3.OperationalError("no such table: trials")))
    assert not is_transient(wrapped(sqlite3.OperationalError("database or disk is full")))
    assert is_transient(wrapped(ConnectionError("gone")))
    assert not is_locked(wrapped(ConnectionError("gone")))
    assert not is_transient(wrapped(ValueError("too long"), sql.exc.DataError))
    assert not is_transient(ValueError("is locked"))


def test_creation_conflicts() -> None:
    """Conflicts with processes that also create the tables or the study are retried; other errors are not."""
    assert is_creation_conflict(
        sql.exc.OperationalError("s", {}, sqlite3.OperationalError("table trials already exists"))
    )
    assert is_creation_conflict(sql.exc.IntegrityError("s", {}, sqlite3.IntegrityError("UNIQUE constraint failed")))
    assert is_creation_conflict(sql.exc.OperationalError("s", {}, sqlite3.OperationalError("database is locked")))
    assert not is_creation_conflict(sql.exc.OperationalError("s", {}, ConnectionError("no such server")))
    assert not is_creation_conflict(optuna.exceptions.DuplicatedStudyError("already exists"))


def test_retries_end_after_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transient error is raised after the time limit, any other error at once."""
    monkeypatch.setattr(_retry, "RETRY_TIMEOUT", 0.5)
    calls = []

    def fail(error: Exception) -> None:
        calls.append(error)
        raise error

    away = sql.exc.OperationalError("statement", {}, ConnectionError("away"))
    with pytest.raises(sql.exc.OperationalError, match="away"):
        retry(lambda: fail(away))
    assert len(calls) == 3  # At 0, 0.1 and 0.3 seconds.
    calls.clear()
    with pytest.raises(sql.exc.DataError):
        retry(lambda: fail(sql.exc.DataError("statement", {}, ValueError("too long"))))
    assert len(calls) == 1
