"""`run_study` in one process; test_study_kills.py has kills and several processes."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from helios.errors import ArgumentTypeError, ConfigurationError
from helios.plugins.optuna import run_study, runner
from helios.plugins.optuna.optuna_internals import tables
from helios.plugins.optuna.plugin import TrialInterrupted
from helios.plugins.optuna.storage import locks
from helios.plugins.optuna.storage.orphans import requeue_orphans
from helios.plugins.optuna.storage.owners import OWNER_KEY, mark_owner, owner_of, this_process
from tests.plugins.optuna import studies

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(params=["memory", "sqlite", "journal"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], optuna.Study]:
    """Return a function that creates or loads the study, with each kind of storage."""
    memory = optuna.storages.InMemoryStorage()
    kinds: dict[str, Callable[[], Any]] = {
        "memory": lambda: memory,
        "sqlite": lambda: f"sqlite:///{tmp_path / 'study.db'}",
        "journal": lambda: optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
        ),
    }
    return lambda: optuna.create_study(storage=kinds[request.param](), study_name="s", load_if_exists=True)


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def suggest(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def test_the_number_is_a_total(make: Callable[[], optuna.Study]) -> None:
    """A study runs to its number of trials; a later call runs the difference, or none for a smaller number."""
    calls: list[int] = []

    def objective(trial: optuna.Trial) -> float:
        calls.append(trial.number)
        return suggest(trial)

    assert states(run_study(make, objective, 3)) == ["COMPLETE"] * 3
    run_study(make, objective, 3)
    run_study(make, objective, 2)
    assert calls == [0, 1, 2]
    assert states(run_study(make, objective, 5)) == ["COMPLETE"] * 5
    assert calls == [0, 1, 2, 3, 4]


def test_pruned_trials_count(make: Callable[[], optuna.Study]) -> None:
    """Pruned trials count as finished."""

    def objective(trial: optuna.Trial) -> float:
        if trial.number % 2:
            raise optuna.TrialPruned
        return suggest(trial)

    assert states(run_study(make, objective, 4)) == ["COMPLETE", "PRUNED"] * 2


def test_a_study_continues_after_an_error(make: Callable[[], optuna.Study]) -> None:
    """The trial fails, `run_study` raises the error, and the next call runs another trial instead."""

    def fail(trial: optuna.Trial) -> float:
        if trial.number == 1:
            raise ZeroDivisionError("trial 1")
        return suggest(trial)

    with pytest.raises(ZeroDivisionError, match="trial 1"):
        run_study(make, fail, 3)
    assert states(make()) == ["COMPLETE", "FAIL"]
    assert states(run_study(make, fail, 3)) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), SystemExit(3)], ids=["ctrl-c", "exit"])
def test_an_interrupt_lets_the_trial_wait(make: Callable[[], optuna.Study], reason: BaseException) -> None:
    """`run_study` raises Ctrl-C and `sys.exit` unchanged; the trial is resumed with its number and parameters."""

    def leave(trial: optuna.Trial) -> float:
        suggest(trial)
        raise reason

    with pytest.raises(type(reason)) as caught:
        run_study(make, leave, 2)
    assert caught.value is reason
    (left,) = make().trials
    assert left.state is TrialState.WAITING
    study = run_study(make, suggest, 2)
    assert states(study) == ["COMPLETE"] * 2
    assert study.trials[0].params == left.params


def test_an_interrupted_trial_waits(make: Callable[[], optuna.Study]) -> None:
    """After `TrialInterrupted`, `run_study` returns the study; the trial has no owner, and is resumed later."""

    def interrupted(trial: optuna.Trial) -> float:
        trial.report(suggest(trial), 1)
        raise TrialInterrupted("SIGTERM")

    study = run_study(make, interrupted, 2)
    (left,) = study.trials
    assert left.state is TrialState.WAITING
    assert owner_of(left) is None
    study = run_study(make, suggest, 2)
    assert states(study) == ["COMPLETE"] * 2
    assert study.trials[0].params == left.params
    assert study.trials[0].intermediate_values == left.intermediate_values


@pytest.mark.parametrize("number", [0, -1])
def test_no_trials_are_refused(number: int) -> None:
    """A number of trials below 1 is rejected."""
    with pytest.raises(ConfigurationError, match=f"n_trials is {number}: pass at least 1"):
        run_study(optuna.create_study, suggest, number)


@pytest.mark.parametrize("number", [True, 2.0, "3", None])
def test_no_integer_is_refused(number: Any) -> None:
    """A number that is not an integer is rejected before the study is created."""
    with pytest.raises(ArgumentTypeError, match="n_trials is"):
        run_study(lambda: sys.exit("made"), suggest, number)


def test_orphans_are_run_again(make: Callable[[], optuna.Study], caplog: pytest.LogCaptureFixture) -> None:
    """Running trials of a lost process, or without an owner, are run again with their numbers and parameters."""
    study = make()
    gone: dict[str, Any] = {"host": this_process().host, "boot": "another", "namespace": "", "pid": 1, "start": 1}
    marked, unsigned = study.ask(), study.ask()
    params = [suggest(marked), suggest(unsigned)]
    study._storage.set_trial_system_attr(marked._trial_id, OWNER_KEY, gone)
    with caplog.at_level(logging.INFO):
        study = run_study(make, suggest, 3)
    assert states(study) == ["COMPLETE"] * 3
    assert [trial.params["x"] for trial in study.trials[:2]] == params
    assert "the process of trial 0 is gone" in caplog.text
    assert "the process of trial 1 is gone" in caplog.text


@pytest.mark.parametrize("silence", [0, 3600])
def test_a_heartbeat_tells_of_other_hosts(sqlite_url: str, silence: int) -> None:
    """A trial of a process that cannot be seen is requeued when its heartbeat is old; it is never marked as failed."""
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        storage = optuna.storages.RDBStorage(sqlite_url, heartbeat_interval=60)
    study = optuna.create_study(storage=storage)
    with pytest.warns(UserWarning, match="supposed to be used with Study.optimize"):
        trial = study.ask()
    elsewhere = dataclasses.replace(this_process(), host="elsewhere")
    study._storage.set_trial_system_attr(trial._trial_id, OWNER_KEY, dataclasses.asdict(elsewhere))
    study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]  # it is a database's
    with study._storage._backend.engine.begin() as connection:  # type: ignore[attr-defined]  # as above
        beat = connection.execute(sqlalchemy.select(tables().heartbeats.c.heartbeat)).scalar_one()
        connection.execute(tables().heartbeats.update().values(heartbeat=beat - datetime.timedelta(seconds=silence)))
    requeue_orphans(study)
    assert states(study) == ["WAITING" if silence else "RUNNING"]


def test_trials_of_live_processes_are_waited_for(
    make: Callable[[], optuna.Study], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A trial of a live process is not touched; the study ends after it, and logs once that it waits."""
    study = make()
    alive = study.ask()
    mark_owner(alive)
    sleeps = []

    def sleep(_seconds: float) -> None:
        # The lock is not held during the wait.
        assert locks._threads.lock.acquire(blocking=False)
        locks._threads.lock.release()
        sleeps.append(states(study))
        if len(sleeps) == 3:
            study.tell(alive, 1.0)

    monkeypatch.setattr(runner, "time", types.SimpleNamespace(sleep=sleep))
    with caplog.at_level(logging.INFO):
        assert states(run_study(make, suggest, 2)) == ["COMPLETE"] * 2
    assert sleeps == [["RUNNING", "COMPLETE"]] * 3
    assert caplog.text.count("waiting for them") == 1


def test_a_failed_trial_of_another_process_is_replaced(
    make: Callable[[], optuna.Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the trial of another process fails, another trial is run instead."""
    study = make()
    alive = study.ask()
    mark_owner(alive)
    fail = types.SimpleNamespace(sleep=lambda _: study.tell(alive, state=TrialState.FAIL))
    monkeypatch.setattr(runner, "time", fail)
    assert states(run_study(make, suggest, 1)) == ["FAIL", "COMPLETE"]


def test_surplus_enqueued_trials_are_not_run(make: Callable[[], optuna.Study]) -> None:
    """Enqueued trials are run first, but not more than the given number of trials."""
    study = make()
    for value in (0.1, 0.2, 0.3):
        study.enqueue_trial({"x": value})
    study = run_study(make, suggest, 2)
    assert states(study) == ["COMPLETE", "COMPLETE", "WAITING"]
    assert [trial.value for trial in study.trials] == [0.1, 0.2, None]
    assert states(run_study(make, suggest, 2)) == states(study)


def test_the_objective_runs_without_the_lock(make: Callable[[], optuna.Study]) -> None:
    """While the objective runs, the lock is free, and the objective may run another study."""

    def objective(trial: optuna.Trial) -> float:
        with locks.study_lock(trial.study):
            value = suggest(trial)
        return value + run_study(optuna.create_study, suggest, 1).best_value

    assert states(run_study(make, objective, 2)) == ["COMPLETE"] * 2


def test_an_error_in_ask_releases_the_lock(make: Callable[[], optuna.Study]) -> None:
    """A sampler raises before the trial has an owner: the error is raised, and the next call runs the trial."""

    class Broken(optuna.samplers.RandomSampler):
        def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            raise LookupError(study.study_name, trial.number)

    def make_broken() -> optuna.Study:
        study = make()
        study.sampler = Broken()
        return study

    with pytest.raises(LookupError):
        run_study(make_broken, suggest, 1)
    assert states(run_study(make, suggest, 1)) == ["COMPLETE"]


def test_threads_share_a_study(make: Callable[[], optuna.Study]) -> None:
    """Three threads, each with its own study object: exactly the given number of trials, and no thread hangs."""
    numbers: list[int] = []

    def objective(trial: optuna.Trial) -> float:
        numbers.append(trial.number)
        return suggest(trial)

    threads = [threading.Thread(target=run_study, args=(make, objective, 7), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert sorted(numbers) == list(range(7))
    assert states(make()) == ["COMPLETE"] * 7


def _run_on_a_journal(path: str, trials: int) -> None:
    def make() -> optuna.Study:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
        return optuna.create_study(storage=storage, study_name="s", load_if_exists=True)

    run_study(make, suggest, trials)


def test_processes_share_a_journal(tmp_path: Path) -> None:
    """Two processes on one journal file: every trial once."""
    path = str(tmp_path / "study.log")
    processes = [studies._context.Process(target=_run_on_a_journal, args=(path, 8)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
    assert states(optuna.load_study(storage=storage, study_name="s")) == ["COMPLETE"] * 8
