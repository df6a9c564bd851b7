"""The lock of a study, between threads and between processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from helios.plugins.optuna.storage.locks import study_lock
from helios.plugins.optuna.storage.retrying import retry_storage
from tests.plugins.optuna import studies

if TYPE_CHECKING:
    from pathlib import Path

    from tests.postgres import Server

KINDS = ("sqlite", "journal", "postgres")


def storage_of(place: str) -> Any:
    if place.endswith(".log"):
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place))
    return place


def load(place: str, name: str = "study") -> optuna.Study:
    return optuna.create_study(storage=storage_of(place), study_name=name, load_if_exists=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return url
    return str(tmp_path / "study.log") if request.param == "journal" else f"sqlite:///{tmp_path / 'study.db'}"


def hold(place: str, pipe: Any, name: str) -> None:
    """Acquire the lock, report that, and hold it until the other process sends a message."""
    study = load(place, name)
    pipe.send("ready")
    pipe.recv()
    with study_lock(study):
        pipe.send("locked")
        pipe.recv()
    pipe.send("free")
    pipe.recv()


class Holder:
    """Another process that acquires the lock when it gets a message."""

    def __init__(self, place: str, name: str = "study") -> None:
        self.pipe, theirs = studies._context.Pipe()
        self.process = studies._context.Process(target=hold, args=(place, theirs, name), daemon=True)
        self.process.start()
        theirs.close()
        assert self.receives("ready", 30)

    def receives(self, word: str, seconds: float = 10) -> bool:
        return bool(self.pipe.poll(seconds)) and self.pipe.recv() == word

    def continue_(self) -> None:
        self.pipe.send(None)

    def end(self) -> None:
        self.process.kill()
        self.process.join()


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_the_lock_excludes_other_processes(place: str) -> None:
    """While this process holds the lock another one waits, and acquires it as soon as it is released."""
    study = load(place)
    other = Holder(place)
    with study_lock(study):
        other.continue_()
        assert not other.receives("locked", 0.4)
        begin = time.monotonic()
        study.ask()  # Optuna breaks a journal's own lock file after 30 s.
        assert time.monotonic() - begin < 20
    assert other.receives("locked")
    other.end()


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_killed_process_releases_the_lock(place: str) -> None:
    """After SIGKILL of its process, the lock is released immediately."""
    study = load(place)
    other = Holder(place)
    other.continue_()
    assert other.receives("locked")
    other.process.kill()
    begin = time.monotonic()
    with study_lock(study):
        assert time.monotonic() - begin < 5
    other.process.join()


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_threads_exclude_each_other(place: str) -> None:
    """Two threads never hold the lock at the same time, with the same or with different connections."""
    inside, seen = 0, []

    def enter(study: optuna.Study) -> None:
        nonlocal inside
        for _ in range(5):
            with study_lock(study):
                inside += 1
                seen.append(inside)
                time.sleep(0.002)
                inside -= 1

    shared = load(place)
    threads = [threading.Thread(target=enter, args=(study,)) for study in (shared, shared, load(place))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == [1] * 15


def test_studies_of_one_file_share_its_lock(tmp_path: Path) -> None:
    """Two studies in one SQLite file exclude each other, as their transactions do."""
    place = f"sqlite:///{tmp_path / 'study.db'}"
    study, other = load(place, "mine"), Holder(place, "theirs")
    with study_lock(study):
        other.continue_()
        assert not other.receives("locked", 0.3)
    assert other.receives("locked")
    other.end()


def test_a_relative_path_means_the_directory_it_was_opened_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has changed its working directory since it opened the study uses the same lock."""
    monkeypatch.chdir(tmp_path)
    study = load("sqlite:///study.db")
    other = Holder(f"sqlite:///{tmp_path / 'study.db'}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with study_lock(study):
        other.continue_()
        assert not other.receives("locked", 0.3)
    assert other.receives("locked")
    other.end()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_forked_child_does_not_keep_the_lock(place: str) -> None:
    """A data loader worker that is forked while the lock is held does not keep the lock."""
    study = load(place)
    other = Holder(place)
    with study_lock(study):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        other.continue_()
        assert other.receives("locked", 5)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        other.end()


def test_a_child_forked_by_another_thread_can_lock(tmp_path: Path) -> None:
    """A child that is forked while a thread of its parent holds the lock can acquire it."""
    study = load(f"sqlite:///{tmp_path / 'study.db'}")
    is_held, may_end = threading.Event(), threading.Event()

    def keep() -> None:
        with study_lock(study):
            is_held.set()
            may_end.wait(30)

    thread = threading.Thread(target=keep)
    thread.start()
    assert is_held.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # Ends a child that is stuck.
        with study_lock(load(f"sqlite:///{tmp_path / 'study.db'}")):
            os._exit(0)
    may_end.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_other_storages_lock_threads_alone() -> None:
    """The lock of a study in memory needs no file, and is released after an error."""
    study = optuna.create_study()
    with pytest.raises(KeyError), study_lock(study):
        raise KeyError
    with study_lock(study):
        pass
    with study_lock(load("sqlite:///:memory:")):
        pass


def test_a_server_that_restarts_takes_the_lock_away(
    postgres_server: Server, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After a restart of the PostgreSQL server, the release raises nothing, and the lock can be acquired again."""
    study = load(postgres_url)
    retry_storage(study)
    with study_lock(study):
        postgres_server.stop()
        postgres_server.start()
    assert "lost" in caplog.text
    with study_lock(study):
        assert study.trials == []
