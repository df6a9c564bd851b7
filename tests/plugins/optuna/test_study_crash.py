"""`resume_study` killed before each of its steps: the study is either the old or the new one."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import shutil
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final

import optuna
import pytest
import sqlalchemy

from helios.plugins.optuna import resume_study
from helios.plugins.optuna.storage.owners import this_process
from tests.plugins.optuna.old_studies import FORMER_BOOT, NAME, args, make
from tests.plugins.optuna.old_studies import snapshot as take_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.postgres import Server

_FILE_EVENTS: Final = ("open", "os.rename", "os.remove", "sqlite3.connect")
_QUESTIONS: Final = (
    "PRAGMA",
    "SELECT pg_catalog",
    "SELECT alembic",
    "SELECT version_info",
)  # By Optuna, of its tables.
_processes: Final = multiprocessing.get_context("forkserver")


class _Steps:
    """Kills its process at the step with the given number, or counts all steps."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.names: list[str] = []

    def step(self, name: str) -> None:
        if len(self.names) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)

    def watch(self, folder: str) -> None:
        """Count each SQL statement, commit and file change in a folder as a step; this cannot be undone."""

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if event in _FILE_EVENTS and folder in str(arguments[0]) and arguments[1:2] != ("r",):
                self.step(event)

        def statement(_connection: object, _cursor: object, text: str, *_rest: object) -> None:
            self.step(text)

        sys.addaudithook(audit)
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", statement)
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", lambda _connection: self.step("commit"))


def snapshot(url: str) -> dict[str, list[str]]:
    """Return the content of each study, without the time at which a trial was marked as failed."""
    now = re.compile(r"datetime\.datetime\((?!2031)[^)]*\)")
    return {name: [now.sub("now", text) for text in texts] for name, texts in take_snapshot(url).items()}


def _resume(url: str, folder: str, at: int | None, names: Any) -> None:
    """Resume the study in this process, which is killed at a step; otherwise send the names of the steps."""
    warnings.simplefilter("error")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    steps = _Steps(at)
    steps.watch(folder)
    resume_study(args(url))
    steps.step("done")
    names.put(steps.names)
    names.close()
    names.join_thread()


def _run(url: str, folder: Path, at: int | None) -> list[str] | None:
    """Return the names of the steps, or `None` if the process was killed."""
    names = _processes.Queue()
    process = _processes.Process(target=_resume, args=(url, str(folder), at, names))
    process.start()
    try:
        result: list[str] | None = names.get(timeout=60) if at is None else None
        process.join(60)
    finally:
        process.kill()
        names.close()
    assert process.exitcode == (0 if at is None else -signal.SIGKILL)
    return result


def _former_process() -> dict[str, Any]:
    return dataclasses.asdict(dataclasses.replace(this_process(), boot=FORMER_BOOT))


def _check_every_step(
    make_copy: Callable[[], str], folder: Path, check_backup: Callable[[str, Any, bool], None]
) -> None:
    url = make_copy()
    old = snapshot(url)
    steps = _run(url, folder, None)
    new = snapshot(url)
    assert steps is not None
    assert new[NAME] != old[NAME]
    # Before these, Optuna opens the database and loads the study.
    first = next(at for at, step in enumerate(steps) if step.startswith("BEGIN") or "FOR UPDATE" in step)
    seen = set()
    url = make_copy()
    for at in range(first, len(steps)):
        _run(url, folder, at)
        found = snapshot(url)
        where = f"killed at step {at}, {steps[at]!r}"
        assert found[NAME] in (old[NAME], new[NAME]), where
        assert found["other"] == old["other"], where
        is_new = found[NAME] == new[NAME]
        seen.add(is_new)
        check_backup(url, old, is_new)
        if is_new:  # Otherwise the next kill uses the database that this one has left.
            study = resume_study(args(url))
            assert [trial.number for trial in study.trials] == list(range(9)), where
            url = make_copy()
    assert seen == {True, False}, "kills before the change and after it were both tried"


@pytest.mark.timeout(400)
def test_killed_before_each_step_on_sqlite(tmp_path: Path) -> None:
    """Killed before each SQL statement and file operation; a new study has a backup, and every backup is complete."""
    template = tmp_path / "template" / "study.db"
    template.parent.mkdir()
    make(f"sqlite:///{template}", _former_process())
    folder = tmp_path / "work"

    def make_copy() -> str:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copyfile(template, folder / "study.db")
        return f"sqlite:///{folder / 'study.db'}"

    def check_backup(_url: str, old: object, is_new: bool) -> None:
        backup = folder / "study-backup-1.db"
        assert backup.exists() or not is_new
        if backup.exists():
            assert snapshot(f"sqlite:///{backup}") == old

    _check_every_step(make_copy, folder, check_backup)


@pytest.mark.timeout(400)
def test_killed_before_each_step_on_postgres(postgres_server: Server) -> None:
    """Killed before each SQL statement; the backup and the new study appear together."""
    source = postgres_server.create_database("crash_template")
    make(source, _former_process())

    def make_copy() -> str:
        # Only a database without connections can be copied.
        postgres_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'crash_template'"
        )
        postgres_server.drop_database("crash_copy")
        postgres_server.execute('CREATE DATABASE "crash_copy" TEMPLATE "crash_template"')
        return postgres_server.url("crash_copy")

    def check_backup(url: str, old: Any, is_new: bool) -> None:
        found = snapshot(url)
        copies = [name for name in found if re.search("backup", name)]
        assert copies == ([f"{NAME}-backup-1"] if is_new else [])
        if is_new:
            assert found[f"{NAME}-backup-1"] == old[NAME]

    _check_every_step(make_copy, postgres_server.folder, check_backup)
