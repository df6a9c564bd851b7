"""The recorded owners of trials, and whether their processes are alive."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from helios.plugins.optuna.storage import owners as _owners
from helios.plugins.optuna.storage.owners import OWNER_KEY, is_alive, mark_owner, owner_of, this_process

_SLEEP = "import sys, time; print('up', flush=True); time.sleep(60)"


def _mark_of(process: subprocess.Popen[bytes]) -> _owners.Owner:
    return dataclasses.replace(this_process(), pid=process.pid, start=_owners._start_of(process.pid))


def _start() -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-S", "-c", _SLEEP], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_owner_is_recorded_in_the_storage(url: str) -> None:
    """The owner that is read from the database is this process, which is alive."""
    study = optuna.create_study(storage=url, study_name="s")
    mark_owner(study.ask())
    (trial,) = optuna.load_study(storage=url, study_name="s").trials
    owner = owner_of(trial)
    assert owner == this_process()
    assert owner is not None
    assert owner.pid == os.getpid()
    assert is_alive(owner) is True
    assert str(os.getpid()) in str(owner)


def test_trial_without_a_storage_gets_no_owner() -> None:
    """Nothing is recorded for an object that is not an Optuna trial; a trial without a record has no owner."""
    fixed = optuna.trial.FixedTrial({"x": 1})
    mark_owner(fixed)
    assert fixed.system_attrs == {}
    mark_owner(object())
    assert owner_of(optuna.trial.create_trial(value=1.0)) is None


@pytest.mark.parametrize(
    "mark",
    [
        "text",
        {},
        {"host": "h"},
        {"host": 1, "boot": "", "namespace": "", "pid": 1, "start": None},
        {"host": "h", "boot": "", "namespace": "", "pid": "1", "start": None},
        {"host": "h", "boot": "", "namespace": "", "pid": 1, "start": None, "more": 1},
    ],
)
def test_an_invalid_record_names_no_owner(mark: Any) -> None:
    """A record of another form gives no owner."""
    assert owner_of(optuna.trial.create_trial(value=1.0, system_attrs={OWNER_KEY: mark})) is None


def test_killed_process_and_zombie_are_gone() -> None:
    """A process is alive until it is killed; a zombie is not alive."""
    process = _start()
    owner = _mark_of(process)
    assert is_alive(owner) is True
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert "Z" in Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
    assert is_alive(owner) is False
    process.communicate()
    assert is_alive(owner) is False


def test_later_process_with_the_same_id_is_another() -> None:
    """A live process with the owner's id and another start time is not the owner."""
    here = this_process()
    assert here.start is not None
    assert is_alive(dataclasses.replace(here, start=here.start - 1)) is False


def test_what_can_be_known_from_here() -> None:
    """A process of another boot is gone; a process on another host or in another container is unknown."""
    here = this_process()
    assert is_alive(dataclasses.replace(here, boot="another")) is False
    assert is_alive(dataclasses.replace(here, host="another")) is None
    assert is_alive(dataclasses.replace(here, namespace="pid:[1]")) is None


def test_system_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without start times, a missing process is gone, and an existing one is unknown."""
    process = _start()
    monkeypatch.setattr(_owners, "_PROC", tmp_path)
    owner = _mark_of(process)
    assert (owner.boot, owner.namespace, owner.start) == ("", "", None)
    assert is_alive(owner) is None
    process.kill()
    process.communicate()
    assert is_alive(owner) is False


def test_name_of_a_process_may_hold_blanks_and_brackets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The start time is read correctly for any name of the process."""
    (tmp_path / "7").mkdir()
    fields = " ".join(str(number) for number in range(4, 53))
    (tmp_path / "7" / "stat").write_text(f"7 (a) Z (b) S {fields}\n", encoding="utf-8")
    monkeypatch.setattr(_owners, "_PROC", tmp_path)
    assert _owners._start_of(7) == 22
