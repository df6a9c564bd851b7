"""`resume_study` with SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState, create_trial

from helios.errors import (
    ArgumentTypeError,
    ConfigurationError,
    MissingArgumentError,
    StudyInUseError,
    StudyStorageError,
)
from helios.plugins.optuna import resume as resume_module
from helios.plugins.optuna import resume_study
from helios.plugins.optuna.optuna_internals import tables
from helios.plugins.optuna.storage import rdb
from helios.plugins.optuna.storage.owners import mark_owner, owner_of, this_process
from tests.plugins.optuna.old_studies import FORMER_BOOT, NAME, NUMBERS_BY_STATE, SPACE, args, describe, make, snapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from tests.postgres import Server

BOTH = (TrialState.FAIL, TrialState.RUNNING)

_RUNNER = """
import sys, time, optuna
from helios.plugins.optuna.storage import rdb
from helios.plugins.optuna.storage.owners import mark_owner
trial = optuna.load_study(study_name="mine", storage=sys.argv[1]).ask()
mark_owner(trial)
print(trial.number, flush=True)
time.sleep(100)
"""


_WRITER = """
import sys, optuna
study = optuna.load_study(study_name="other", storage=sys.argv[1])
reports = {step: float(step) for step in range(9)}
for number in range(3000):
    study.add_trial(optuna.trial.create_trial(values=[1.0, 2.0], intermediate_values=reports))
    print(number + 1, flush=True)
"""


@contextlib.contextmanager
def running_elsewhere(url: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a trial of the study in another process until the end of the context; yield process and number."""
    process = subprocess.Popen([sys.executable, "-c", _RUNNER, url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def former_process() -> dict[str, Any]:
    """Return the owner record of a process that ran on this host before a reboot."""
    return dataclasses.asdict(dataclasses.replace(this_process(), boot=FORMER_BOOT))


def process_elsewhere() -> dict[str, Any]:
    """Return the owner record of a process on another host."""
    return dataclasses.asdict(dataclasses.replace(this_process(), host="far-away"))


def backups(tmp_path: Path) -> list[str]:
    """Return the names of all files except the study's, its lock file and SQLite's journal."""
    own = ("study.db", "study.db.helios-lock", "study.db-journal")
    return sorted(path.name for path in tmp_path.iterdir() if path.name not in own)


def states(study: optuna.Study) -> dict[TrialState, list[int]]:
    """Return the numbers of a study's trials, by state."""
    found: dict[TrialState, list[int]] = {}
    for trial in study.trials:
        found.setdefault(trial.state, []).append(trial.number)
    return found


def test_finished_trials_stay_as_they_are(url: str) -> None:
    """Complete, pruned and waiting trials do not change."""
    make(url, former_process())
    before = snapshot(url)[NAME]
    resume_study(args(url))
    after = snapshot(url)[NAME]
    kept = [*NUMBERS_BY_STATE[TrialState.COMPLETE], *NUMBERS_BY_STATE[TrialState.PRUNED], 5]
    assert [after[1 + number] for number in kept] == [before[1 + number] for number in kept]
    assert len(after) == len(before)


def test_study_keeps_directions_names_and_attributes(url: str) -> None:
    """Directions, metric names and attributes are kept; sampler and pruner are those of the call."""
    make(url)
    before = snapshot(url)[NAME][0]
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.HyperbandPruner()
    study = resume_study(args(url, sampler=sampler, pruner=pruner, direction="minimize"))
    assert snapshot(url)[NAME][0] == before
    assert study.direction is optuna.study.StudyDirection.MAXIMIZE
    assert study.user_attrs == {"made by": {"name": "somebody", "year": 2031}}
    assert study.metric_names == ["accuracy"]
    assert study.sampler is sampler
    assert study.pruner is pruner


def test_failed_trials_wait_in_their_own_slots(url: str) -> None:
    """A failed trial waits with its number, parameters and reports; the results of its last run are deleted."""
    make(url, former_process())
    (_, _, old, *_) = optuna.load_study(study_name=NAME, storage=url).trials
    study = resume_study(args(url))
    assert states(study)[TrialState.WAITING] == [2, 5, 7]
    new = study.trials[2]
    assert old.constraints == {"memory": -2.5, "time": 0.0}
    old.state, old.datetime_start, old.datetime_complete = TrialState.WAITING, None, None
    old.system_attrs = {"grid": 2}
    assert describe(new) == describe(old)


def test_value_of_a_failed_trial_is_deleted(url: str) -> None:
    """A trial that failed with a value, which Optuna permits, waits without one."""
    study = optuna.create_study(storage=url, study_name=NAME)
    trial = create_trial(state=TrialState.FAIL)
    trial.values = [0.5]
    study._storage.create_new_trial(study._study_id, trial)
    assert optuna.load_study(study_name=NAME, storage=url).trials[0].value == 0.5
    assert resume_study(args(url)).trials[0].value is None


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsgaii"])
def test_waiting_trial_suggests_its_own_parameters(url: str, sampler: str) -> None:
    """The next run gets the failed trial's parameters and reports exactly, and can set its constraints."""
    make(url)
    params = {
        number: trial.params for number, trial in enumerate(optuna.load_study(study_name=NAME, storage=url).trials)
    }
    samplers = {
        "random": optuna.samplers.RandomSampler(seed=1),
        "tpe": optuna.samplers.TPESampler(seed=1, n_startup_trials=1),
        "nsgaii": optuna.samplers.NSGAIISampler(seed=1, population_size=2),
    }
    study = resume_study(args(url, sampler=samplers[sampler]), BOTH)
    for number in (2, 3, 5, 6):
        trial = study.ask(SPACE)
        assert trial.number == number
        assert trial.params == params[number]
        assert 10 in study.trials[number].intermediate_values
        trial.set_constraint("memory", 1.0)
        study.tell(trial, 0.25)
        assert study.trials[number].constraints["memory"] == 1.0
        assert study.trials[number].value == 0.25
    assert study.ask(SPACE).number == 7
    assert study.ask(SPACE).number == 9, "a new trial follows the last"


def test_running_trials_without_a_process_fail(url: str) -> None:
    """A running trial whose process is gone, or without an owner, is marked as failed now, and nothing else changes."""
    make(url, former_process())
    before = [optuna.load_study(study_name=NAME, storage=url).trials[number] for number in (3, 6)]
    study = resume_study(args(url))
    assert states(study)[TrialState.FAIL] == [3, 6]
    for old, number in zip(before, (3, 6), strict=True):
        new = study.trials[number]
        ended = new.datetime_complete
        assert ended is not None
        assert abs((datetime.datetime.now() - ended).total_seconds()) < 60  # noqa: DTZ005 - as Optuna gives it.
        old.state, old.datetime_complete = new.state, ended
        assert describe(new) == describe(old)


def test_running_trials_may_count_as_failed(url: str) -> None:
    """With RUNNING among the failed states, such trials wait, without an owner."""
    make(url, former_process())
    study = resume_study(args(url), BOTH)
    assert states(study)[TrialState.WAITING] == [2, 3, 5, 6, 7]
    assert TrialState.RUNNING not in states(study)
    assert owner_of(study.trials[3]) is None


def test_other_studies_are_not_changed(url: str) -> None:
    """Other studies in the database do not change."""
    make(url)
    before = snapshot(url)
    resume_study(args(url), BOTH)
    after = snapshot(url)
    assert {name: after[name] for name in ("mine too", "other")} == {
        name: before[name] for name in ("mine too", "other")
    }
    assert after[NAME] != before[NAME]


def test_study_with_several_objectives(url: str) -> None:
    """A study with two objectives keeps its directions and values."""
    make(url)
    before = snapshot(url)["other"]
    study = resume_study({**args(url), "study_name": "other"})
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert snapshot(url)["other"][:2] == before[:2]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "WAITING", "FAIL"]


def test_second_resume_changes_nothing(url: str) -> None:
    """A second call changes nothing."""
    make(url)
    resume_study(args(url), BOTH, backup_study=False)
    once = snapshot(url)
    resume_study(args(url), BOTH, backup_study=False)
    assert snapshot(url) == once


@pytest.mark.parametrize("is_made", [False, True])
def test_empty_study_returns_at_once(url: str, tmp_path: Path, is_made: bool) -> None:
    """A study without trials is created or loaded without a backup."""
    if is_made:
        optuna.create_study(storage=url, study_name=NAME)
    study = resume_study(args(url, direction="maximize"))
    assert study.trials == []
    assert study.study_name == NAME
    assert backups(tmp_path) == []
    assert list(snapshot(url)) == [NAME]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"storage": None}, TypeError),
        ({"storage": optuna.storages.InMemoryStorage()}, TypeError),
        ({"load_if_exists": False}, KeyError),
        ({"storage": "study.db"}, ValueError),
        ({"storage": "sqlite"}, ValueError),
        ({"storage": "journal.log"}, ValueError),
        ({"storage": "sqlite:///{study}.db"}, ValueError),
        ({"storage": "ftp://somebody:secret@somewhere/study"}, ValueError),
        ({"storage": "sqlite:////no/such/folder/study.db"}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(sqlite_url: str, tmp_path: Path, change: Any, error: type[Exception]) -> None:
    """Each wrong argument raises the builtin error and ours; no file is created, and no password is shown."""
    with pytest.raises(error) as caught:
        resume_study({**args(sqlite_url), **change})
    assert isinstance(caught.value, (ArgumentTypeError, ConfigurationError, MissingArgumentError))
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["storage", "load_if_exists"])
def test_missing_arguments_are_refused(sqlite_url: str, missing: str) -> None:
    """A missing argument is named."""
    study_args = args(sqlite_url)
    del study_args[missing]
    with pytest.raises(TypeError if missing == "storage" else KeyError, match=missing):
        resume_study(study_args)


@pytest.mark.parametrize(
    ("failed_states", "error"),
    [
        ([TrialState.PRUNED], ValueError),
        ([TrialState.FAIL, TrialState.COMPLETE], ValueError),
        (["FAIL"], TypeError),
    ],
)
def test_wrong_states_are_refused(sqlite_url: str, failed_states: Any, error: type[Exception]) -> None:
    """States of finished trials and values that are not states are rejected."""
    with pytest.raises(error, match="failed_states"):
        resume_study(args(sqlite_url), failed_states)


@pytest.mark.parametrize("failed_states", [(TrialState.FAIL,), BOTH])
def test_live_process_keeps_its_trial_on_sqlite(
    sqlite_url: str, tmp_path: Path, failed_states: Collection[TrialState]
) -> None:
    """If a live process runs a trial, the call raises an error that names it, and changes nothing."""
    make(sqlite_url)
    with running_elsewhere(sqlite_url) as (process, number):
        before = snapshot(sqlite_url)
        with pytest.raises(StudyInUseError, match=f"trial {number} by process {process.pid} on host"):
            resume_study(args(sqlite_url), failed_states)
        assert snapshot(sqlite_url) == before
        assert backups(tmp_path) == []
    study = resume_study(args(sqlite_url), failed_states)
    assert number in states(study)[TrialState.WAITING if TrialState.RUNNING in failed_states else TrialState.FAIL]


@pytest.mark.parametrize("failed_states", [(TrialState.FAIL,), BOTH])
def test_live_process_keeps_its_trial_on_postgres(postgres_url: str, failed_states: Collection[TrialState]) -> None:
    """A trial of a live process is skipped and others are changed; without the process, its trial is changed too."""
    make(postgres_url)
    gone = TrialState.WAITING if TrialState.RUNNING in failed_states else TrialState.FAIL
    with running_elsewhere(postgres_url) as (_, number):
        before = snapshot(postgres_url)[NAME][1 + number]
        study = resume_study(args(postgres_url), failed_states)
        assert states(study)[TrialState.RUNNING] == [number]
        assert snapshot(postgres_url)[NAME][1 + number] == before
        assert {3, 6} <= set(states(study)[gone])
    study = resume_study(args(postgres_url), failed_states)
    assert number in states(study)[gone]


def test_process_that_cannot_be_seen_on_sqlite(sqlite_url: str, tmp_path: Path) -> None:
    """A trial of another host raises an error that names the host, unless RUNNING is among the failed states."""
    make(sqlite_url, process_elsewhere())
    before = snapshot(sqlite_url)
    with pytest.raises(StudyInUseError, match=r"trial 3 by process \d+ on host 'far-away'.*RUNNING to failed_states"):
        resume_study(args(sqlite_url))
    assert snapshot(sqlite_url) == before
    assert backups(tmp_path) == []
    assert 3 in states(resume_study(args(sqlite_url), BOTH))[TrialState.WAITING]


def test_process_that_cannot_be_seen_on_postgres(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A trial of another host is skipped with a warning, unless RUNNING is among the failed states."""
    make(postgres_url, process_elsewhere())
    with caplog.at_level(logging.WARNING, "helios"):
        study = resume_study(args(postgres_url))
    assert states(study)[TrialState.RUNNING] == [3]
    assert states(study)[TrialState.FAIL] == [6]
    assert "far-away" in caplog.text
    assert 3 in states(resume_study(args(postgres_url), BOTH))[TrialState.WAITING]


def test_own_trial_counts_as_failed_if_the_caller_says_so(sqlite_url: str) -> None:
    """A running trial of this process is only changed with RUNNING among the failed states."""
    study = optuna.create_study(storage=sqlite_url, study_name=NAME)
    mark_owner(study.ask(SPACE))
    with pytest.raises(StudyInUseError):
        resume_study(args(sqlite_url))
    assert states(resume_study(args(sqlite_url), BOTH)) == {TrialState.WAITING: [0]}


@pytest.mark.parametrize("mark", [None, process_elsewhere()])
@pytest.mark.parametrize("silence", [0, 3600])
def test_heartbeat_tells_where_the_process_cannot_be_seen(url: str, mark: Any, silence: int) -> None:
    """A recent heartbeat means a live process, an old one means that the process is gone."""
    make(url, mark)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        storage = optuna.storages.RDBStorage(url, heartbeat_interval=60)
    storage.record_heartbeat(storage.get_trial_id_from_study_id_trial_number(1, 3))
    table = tables().heartbeats
    with storage.engine.begin() as connection:
        beat = connection.execute(sqlalchemy.select(table.c.heartbeat)).scalar_one()
        connection.execute(table.update().values(heartbeat=beat - datetime.timedelta(seconds=silence)))
    if silence == 0 and url.startswith("sqlite"):
        with pytest.raises(StudyInUseError, match="trial 3"):
            resume_study(args(url), BOTH)
        return
    study = resume_study(args(url))
    assert study.trials[3].state is (TrialState.RUNNING if silence == 0 else TrialState.FAIL)


def test_heartbeat_of_the_last_run_is_deleted(url: str) -> None:
    """A waiting trial has no heartbeat: otherwise Optuna would immediately take its next run for stale."""
    make(url)
    storage = optuna.storages.RDBStorage(url)
    storage.record_heartbeat(storage.get_trial_id_from_study_id_trial_number(1, 2))
    resume_study(args(url))
    with storage.engine.connect() as connection:
        assert connection.execute(sqlalchemy.select(tables().heartbeats)).all() == []


def test_postgres_backup_is_the_study_as_it_was(postgres_url: str) -> None:
    """The backup in the database has the content of the study, and is numbered and never overwritten."""
    make(postgres_url, former_process())
    before = snapshot(postgres_url)
    resume_study(args(postgres_url))
    first = snapshot(postgres_url)
    assert set(first) == {*before, f"{NAME}-backup-1"}
    assert first[f"{NAME}-backup-1"] == before[NAME]
    resume_study(args(postgres_url))
    resume_study(args(postgres_url), backup_study=False)
    second = snapshot(postgres_url)
    assert set(second) == {*first, f"{NAME}-backup-2"}
    assert second[f"{NAME}-backup-1"] == first[f"{NAME}-backup-1"]
    assert second[f"{NAME}-backup-2"] == first[NAME]


def test_sqlite_backup_is_the_database_as_it_was(sqlite_url: str, tmp_path: Path) -> None:
    """The backup beside the file has the content of all studies, and is numbered and never overwritten."""
    make(sqlite_url, former_process())
    before = snapshot(sqlite_url)
    (tmp_path / "study.db").chmod(0o640)
    resume_study(args(sqlite_url))
    assert backups(tmp_path) == ["study-backup-1.db"]
    first = (tmp_path / "study-backup-1.db").read_bytes()
    assert snapshot(f"sqlite:///{tmp_path / 'study-backup-1.db'}") == before
    assert (tmp_path / "study-backup-1.db").stat().st_mode & 0o777 == 0o640
    between = snapshot(sqlite_url)
    (tmp_path / "study-backup-7.db").write_bytes(b"somebody's")
    (tmp_path / ".study-backup-8.db.0123456789abcdef.tmp").write_bytes(b"left by a killed call")
    resume_study(args(sqlite_url))
    resume_study(args(sqlite_url), backup_study=False)
    assert backups(tmp_path) == ["study-backup-1.db", "study-backup-7.db", "study-backup-8.db"]
    assert snapshot(f"sqlite:///{tmp_path / 'study-backup-8.db'}") == between
    assert (tmp_path / "study-backup-1.db").read_bytes() == first
    assert (tmp_path / "study-backup-7.db").read_bytes() == b"somebody's"


def test_backup_of_a_file_in_use_is_whole(sqlite_url: str, tmp_path: Path) -> None:
    """The backup includes what another connection has written to the write-ahead log (WAL)."""
    study = make(sqlite_url)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as other:
        other.execute("PRAGMA journal_mode = WAL")
        study.add_trial(create_trial(value=9.0))
        assert (tmp_path / "study.db-wal").stat().st_size > 0
        before = snapshot(sqlite_url)
        resume_study(args(sqlite_url))
        assert [trial.value for trial in optuna.load_study(study_name=NAME, storage=sqlite_url).trials][9] == 9.0
    assert snapshot(f"sqlite:///{tmp_path / 'study-backup-1.db'}") == before


def test_backup_while_others_write_is_consistent(sqlite_url: str, tmp_path: Path) -> None:
    """While another process writes trials, the backup has no incomplete trial, and no trial is lost."""
    study = make(sqlite_url)
    with subprocess.Popen([sys.executable, "-c", _WRITER, sqlite_url], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        for _ in range(4):
            resume_study(args(sqlite_url))
        writer.kill()
        written = int(["1", *writer.stdout.read().split()][-1])
    assert len(optuna.load_study(study_name="other", storage=sqlite_url).trials) >= 3 + written
    assert backups(tmp_path) == [f"study-backup-{number}.db" for number in (1, 2, 3, 4)]
    for number in (1, 2, 3, 4):
        path = tmp_path / f"study-backup-{number}.db"
        with contextlib.closing(sqlite3.connect(path)) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        trials = optuna.load_study(study_name="other", storage=f"sqlite:///{path}").trials
        assert all(len(trial.intermediate_values) == 9 and len(trial.values) == 2 for trial in trials[3:])
    assert len(study.trials) == 9


@pytest.mark.parametrize("seconds", [6, pytest.param(30, marks=pytest.mark.soak)])
def test_locked_file_is_waited_for(sqlite_url: str, tmp_path: Path, seconds: int) -> None:
    """The call waits for a locked file for longer than the default of SQLite."""
    make(sqlite_url)
    holder = sqlite3.connect(tmp_path / "study.db", check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(seconds, holder.rollback)
    began = time.monotonic()
    release.start()
    study = resume_study(args(sqlite_url), BOTH)
    release.join()
    assert time.monotonic() - began >= seconds
    holder.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(seconds, holder.rollback)
    release.start()
    trial = study.ask(SPACE)
    release.join()
    holder.close()
    assert trial.number == 2
    assert states(study)[TrialState.WAITING] == [3, 5, 6, 7]


def test_timeout_in_the_url_is_used(sqlite_url: str, tmp_path: Path) -> None:
    """A timeout in the URL is used for locked files."""
    make(sqlite_url)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(StudyStorageError, match="database is locked"):
            resume_study(args(f"{sqlite_url}?timeout=0.2"))
        assert time.monotonic() - began < 5


def test_postgres_restarted_between_calls(postgres_server: Server, postgres_url: str) -> None:
    """After a restart of the server, the current study object runs the first waiting trial."""
    make(postgres_url)
    study = resume_study(args(postgres_url), BOTH)
    assert len(study.trials) == 9
    postgres_server.stop()
    postgres_server.start()
    assert study.ask(SPACE).number == 2
    assert states(study)[TrialState.WAITING] == [3, 5, 6, 7]


@pytest.mark.parametrize("statement", ["INSERT INTO trial_params", "DELETE FROM trial_values", "UPDATE trials"])
def test_postgres_restarted_during_a_call(postgres_server: Server, postgres_url: str, statement: str) -> None:
    """A server that stops in the middle leaves the old study and no backup; the next call succeeds."""
    make(postgres_url)
    before = snapshot(postgres_url)

    def restart(_connection: object, _cursor: object, sql: str, *_rest: object) -> None:
        if sql.startswith(statement):
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", restart)
            postgres_server.stop()
            postgres_server.start()

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", restart)
    with pytest.raises(StudyStorageError, match="the database of the study cannot be used"):
        resume_study(args(postgres_url))
    assert snapshot(postgres_url) == before
    assert states(resume_study(args(postgres_url)))[TrialState.WAITING] == [2, 5, 7]
    assert f"{NAME}-backup-1" in snapshot(postgres_url)


def test_many_trials_are_changed_in_one_step(url: str) -> None:
    """More trials than one statement can name are set to waiting."""
    study = optuna.create_study(storage=url, study_name=NAME)
    trials = tables().trials
    with study._storage._backend.engine.begin() as connection:  # type: ignore[attr-defined]  # It is an RDB storage.
        rows = [{"study_id": 1, "number": number, "state": TrialState.FAIL} for number in range(1201)]
        connection.execute(trials.insert(), rows)
    study = resume_study(args(url))
    assert states(study) == {TrialState.WAITING: list(range(1201))}


@pytest.mark.parametrize("has_lock", [True, False])
def test_concurrent_callers_wait_for_each_other(url: str, has_lock: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent calls give the result of a single one, also with the database's own locks only."""
    if not has_lock:
        monkeypatch.setattr(resume_module, "study_lock", contextlib.nullcontext)
    make(url)
    threads = [threading.Thread(target=resume_study, args=(args(url), BOTH)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = optuna.load_study(study_name=NAME, storage=url)
    assert states(study)[TrialState.WAITING] == [2, 3, 5, 6, 7]


def test_trial_that_is_being_created_is_waited_for(postgres_url: str) -> None:
    """A trial that another process is adding under the lock of the study's row, as Optuna does, is included."""
    study = make(postgres_url)
    resumed: list[optuna.Study] = []
    call = threading.Thread(target=lambda: resumed.append(resume_study(args(postgres_url), backup_study=False)))
    studies, trials = tables().studies, tables().trials
    with rdb.open_storage(postgres_url).engine.begin() as other:
        other.execute(sqlalchemy.select(studies).where(studies.c.study_name == NAME).with_for_update())
        call.start()
        call.join(1.0)
        assert call.is_alive()
        row = {"study_id": study._study_id, "number": 9, "state": TrialState.RUNNING}
        other.execute(trials.insert().values(datetime_start=datetime.datetime(2031, 1, 1), **row))  # noqa: DTZ001 - UTC.
    call.join(30)
    assert states(resumed[0])[TrialState.FAIL] == [3, 6, 9]
