"""A study whose workers were killed or stopped where that cannot be seen: nobody waits for ever, nor without a word."""

from __future__ import annotations

import datetime
import itertools
import logging
import os
import re
import socket
import time
import types
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage

from helios.errors import ArgumentTypeError, ConfigurationError, StudyTimeoutError
from helios.plugins.optuna import run_study, runner
from helios.plugins.optuna.optuna_internals import tables
from helios.plugins.optuna.storage import heartbeat as _heartbeat
from helios.plugins.optuna.storage import locks as _locks
from helios.plugins.optuna.storage import wait_timer as _wait_timer
from helios.plugins.optuna.storage.locks import study_lock
from helios.plugins.optuna.storage.orphans import requeue_orphans, requeue_trial
from helios.plugins.optuna.storage.owners import mark_owner, owner_of
from helios.plugins.optuna.storage.rdb import find_heartbeat_ages
from tests.faults.stopping import stopped
from tests.plugins.optuna.conftest import closed_connections, postgres_server, postgres_url
from tests.plugins.optuna.storage.test_locks import KINDS, Holder, load, place
from tests.plugins.optuna.studies import StudySpec, finish, make_objective, make_study, start, table, url_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["closed_connections", "place", "postgres_server", "postgres_url"]  # Fixtures.


def age_heartbeats(storage: Any, seconds: float) -> None:
    """Have all heartbeats in a database be older than they are."""
    with storage.engine.begin() as connection:
        for trial_id, beat in connection.execute(
            sqlalchemy.select(tables().heartbeats.c.trial_id, tables().heartbeats.c.heartbeat)
        ).all():
            older = tables().heartbeats.update().values(heartbeat=beat - datetime.timedelta(seconds=seconds))
            connection.execute(older.where(tables().heartbeats.c.trial_id == trial_id))


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have 0.3 s pass between two looks of who waits, and warnings come every 0.2 s, however fast the machine is."""
    clock = itertools.count()
    monkeypatch.setattr(_wait_timer, "time", types.SimpleNamespace(monotonic=lambda: 0.3 * next(clock)))
    monkeypatch.setattr(_wait_timer, "_WARNING_INTERVAL", 0.2)
    monkeypatch.setattr(_locks, "_FIRST_WARNING", 0.1)


def suggest(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


# ------------------------------------------------------------------------------------------------- a worker is killed


def test_a_worker_is_killed_and_the_host_gets_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next worker warns of the trial that it cannot see, takes it up in the end, and the study ends exactly."""
    spec = StudySpec("random", "median", trials=2, epochs=2, host="pod-a")
    assert not finish(spec, tmp_path / "whole" / "study")
    folder = tmp_path / "killed" / "study"
    assert finish(spec, folder, kill_at=20)  # In the second trial.
    assert [row["state"] for row in table(spec, folder)] == ["COMPLETE", "RUNNING"]
    naps = []

    def nap(seconds: float) -> None:
        # Nobody needs to wait for five minutes here: the heartbeat grows old.
        naps.append(seconds)
        age_heartbeats(RDBStorage(url_of(spec, folder)), 200)

    monkeypatch.setattr(runner, "time", types.SimpleNamespace(sleep=nap))
    with caplog.at_level(logging.INFO):
        run_study(lambda: make_study(spec, folder), make_objective(spec, folder), spec.trials)
    assert table(spec, folder) == table(spec, tmp_path / "whole" / "study")
    assert len(naps) == 2
    told = (
        r"trial 1 is run by process \d+ on host 'pod-a', whose last heartbeat is 2\d\d s old: it is run here after 300"
    )
    assert re.search(told, caplog.text)
    assert "the process of trial 1 is gone" in caplog.text


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_limit_for_who_cannot_be_seen(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting for a trial of another host: warned of repeatedly with host and remedy, and given up at the limit."""
    study = load(place)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        mark_owner(study.ask())  # As before there were heartbeats.
    monkeypatch.setattr(runner, "_POLL", 0.01)
    with pytest.raises(StudyTimeoutError, match="given up after 1 s") as caught:
        run_study(lambda: load(place), suggest, 1, give_up_after=1)
    assert isinstance(caught.value, TimeoutError)
    named = f"trial 0 is run by process {os.getpid()} on host 'elsewhere', which cannot be seen from here"
    remedy = "study.tell(0, state=TrialState.FAIL)" if place.endswith(".log") else "call resume_study"
    assert named in str(caught.value)
    assert remedy in str(caught.value)
    assert len([text for text in caplog.messages if named in text and remedy in text]) >= 2
    assert [trial.state.name for trial in study.trials] == ["RUNNING"]


@pytest.mark.usefixtures("ticking")
def test_a_limit_counts_from_the_last_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial on another host that still reports is waited for beyond the limit, and so is one that this host sees."""
    place = str(tmp_path / "study.log")
    study = load(place)
    unseen, seen = study.ask(), study.ask()
    mark_owner(seen)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        mark_owner(unseen)
    steps = 0

    def report(_seconds: float) -> None:
        nonlocal steps
        steps += 1
        if steps < 30:  # Which are 9 s.
            unseen.report(1.0, steps)
        else:
            for trial in (unseen, seen):
                study.tell(trial, 1.0)

    monkeypatch.setattr(runner, "time", types.SimpleNamespace(sleep=report))
    run_study(lambda: load(place), suggest, 2, give_up_after=2)
    assert steps == 30
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2


@pytest.mark.parametrize("limit", [True, "60", [1]])
def test_a_limit_that_is_no_number_is_refused(limit: Any) -> None:
    """`give_up_after` must be a number, or None."""
    with pytest.raises(ArgumentTypeError, match="give_up_after is"):
        run_study(optuna.create_study, suggest, 1, give_up_after=limit)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_that_is_not_above_zero_is_refused(limit: float) -> None:
    """`give_up_after` must be above 0."""
    with pytest.raises(ConfigurationError, match="give_up_after is"):
        run_study(optuna.create_study, suggest, 1, give_up_after=limit)


# --------------------------------------------------------------------------------------------------------- heartbeats


def test_a_heartbeat_is_recorded_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database receives a heartbeat while a trial runs, though its storage was created without one."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    monkeypatch.setattr(_heartbeat, "HEARTBEAT_INTERVAL", 0.1)
    beats: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        deadline = time.monotonic() + 30
        storage, study_id = trial.study._storage, trial.study._study_id
        while len(beats) < 3 and time.monotonic() < deadline:
            (silence,) = find_heartbeat_ages(storage, study_id).values()
            if not beats or silence < 50:
                beats.append(silence)
                age_heartbeats(RDBStorage(url), 100)
            time.sleep(0.02)
        return suggest(trial)

    run_study(lambda: load(url), objective, 1)
    assert len(beats) == 3


def test_a_database_in_memory_has_no_heartbeat() -> None:
    """Each connection to a database in memory is another database: there is nobody to be told, and nothing fails."""
    study = run_study(lambda: load("sqlite:///:memory:"), suggest, 2)
    assert len(study.trials) == 2


def test_a_trial_that_was_taken_over_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that was away while another took its trial: its result is dropped, and the next trial begins."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    numbers = []

    def objective(trial: optuna.Trial) -> float:
        numbers.append(trial.number)
        if len(numbers) == 1:
            age_heartbeats(RDBStorage(url), 1000)
            other = load(url)
            # As from another host, which cannot see this process.
            elsewhere = pytest.MonkeyPatch()
            elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
            requeue_orphans(other)
            taken = other.ask()
            assert taken.number == trial.number
            mark_owner(taken)
            elsewhere.undo()
            value = suggest(trial)
            other.tell(taken, 2.0)
            return value
        return suggest(trial)

    study = run_study(lambda: load(url), objective, 2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    assert study.trials[0].value == 2.0
    assert numbers == [0, 1]
    assert "trial 0 was taken over by process" in caplog.text


def test_the_next_owner_is_not_taken_for_the_last(tmp_path: Path) -> None:
    """A trial that waits again has lost the heartbeat of its last run: the next one is not silent from the start."""
    study = load(f"sqlite:///{tmp_path / 'study.db'}")
    trial = study.ask()
    storage: Any = study._storage
    storage.record_heartbeat(trial._trial_id)
    assert len(find_heartbeat_ages(storage, study._study_id)) == 1
    requeue_trial(study, trial)
    assert study.ask().number == trial.number
    assert find_heartbeat_ages(storage, study._study_id) == {}


# ------------------------------------------------------------------------------------------------ a worker is stopped


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_stopped_process_keeps_the_lock(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """While a stopped process holds the study's lock, others warn with its name, and give up at the limit."""
    study = load(place)
    other = Holder(place)
    other.continue_()
    assert other.receives("locked", 30)
    with (
        stopped(other.process.pid),
        pytest.raises(StudyTimeoutError, match="given up after 1 s") as caught,
    ):
        run_study(lambda: load(place), suggest, 1, give_up_after=1)
    name = f"the lock of study 'study' is held by process {other.process.pid} on host '{socket.gethostname()}'"
    assert name in str(caught.value)
    if not place.startswith("postgres"):
        assert f"which is stopped: 'kill -CONT {other.process.pid}' continues it" in str(caught.value)
    assert len([text for text in caplog.messages if name in text]) >= 2
    other.continue_()
    with study_lock(study, give_up_after=30):
        pass
    other.end()


def test_a_thread_that_keeps_the_lock_is_given_up(tmp_path: Path) -> None:
    """A thread of the same process that holds the lock is waited for as long as is asked for."""
    study = load(f"sqlite:///{tmp_path / 'study.db'}")
    with (
        study_lock(study),
        pytest.raises(StudyTimeoutError, match="another thread"),
        study_lock(study, give_up_after=0.05),
    ):
        pass
    with study_lock(study, give_up_after=0.05):
        pass


def test_a_worker_is_stopped_in_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No process takes over a trial of a stopped process on this host; the others warn, and end once it continues."""
    spec = StudySpec("random", "median", trials=1, epochs=4, sleep=0.1)
    folder = tmp_path / "study"
    process = start(spec, folder)
    while not list(folder.glob("checkpoints/*/*.pth")):
        time.sleep(0.01)
    with stopped(process.pid):
        age_heartbeats(RDBStorage(url_of(spec, folder)), 1000)
        monkeypatch.setattr(runner, "_POLL", 0.05)
        with pytest.raises(StudyTimeoutError) as caught:
            run_study(lambda: make_study(spec, folder), suggest, 1, give_up_after=1)
    assert f"trial 0 is run by process {process.pid} on host" in str(caught.value)
    assert f"which is stopped: 'kill -CONT {process.pid}' continues it" in str(caught.value)
    assert f"'kill -KILL {process.pid}' ends it" in str(caught.value)
    assert "waiting for 0 s so far; given up after 1 s (give_up_after): trial 0" in caplog.text
    (trial,) = run_study(lambda: make_study(spec, folder), suggest, 1).trials
    process.join()
    assert process.exitcode == 0
    assert trial.state is optuna.trial.TrialState.COMPLETE
    owner = owner_of(trial)
    assert owner is not None
    assert owner.pid == process.pid
