from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helios.checkpoint import lock
from helios.checkpoint.lock import LOCK_NAME, FolderLock
from helios.checkpoint.owner import Owner
from helios.errors import FolderInUseError
from tests.checkpoint import owners

if TYPE_CHECKING:
    from collections.abc import Iterator


def describe(folder: Path, **changes: Any) -> Owner:
    """Leave a lock file behind as an owner would that was killed."""
    owner = dataclasses.replace(Owner.here(), **changes)
    folder.mkdir(exist_ok=True)
    (folder / LOCK_NAME).write_text(json.dumps(dataclasses.asdict(owner)))
    return owner


@pytest.fixture
def processes() -> Iterator[list[int]]:
    """A list of processes that are killed when the test ends, if they still live: pytest would wait for them."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_one_owner_at_a_time_and_the_other_is_told_who_it_is(tmp_path: Path) -> None:
    """A second owner in the same process is refused and told pid, host and time; afterwards the folder is free."""
    with FolderLock(tmp_path / "a") as first:
        assert first.is_certain
        with pytest.raises(FolderInUseError) as refused, FolderLock(tmp_path / "a"):
            pass
        said = rf"this very process {os.getpid()} on {re.escape(socket.gethostname())}, since 20..-..-..T"
        assert re.search(said, str(refused.value))
        assert "use another save_name or chkpt_root" in str(refused.value)
        with FolderLock(tmp_path / "b"):
            pass
    for _ in range(2):
        with FolderLock(tmp_path / "a"):
            assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / LOCK_NAME]
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    with FolderLock(tmp_path / "a"):
        pass
    assert list((tmp_path / "a").iterdir()) == []


def test_a_killed_owner_gives_way_at_once(
    tmp_path: Path, processes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Another process is refused while the owner lives; after SIGKILL a forked worker that lives on holds none."""
    process, worker = owners.start(owners.own, tmp_path)
    processes += [process.pid, worker]
    for _ in range(2):
        with pytest.raises(FolderInUseError, match=f"process {process.pid}.* on .*, since "), FolderLock(tmp_path):
            pass
        # A backup opens and closes every file: with POSIX locks, one in the owner's process would release the lock.
        (tmp_path / LOCK_NAME).read_bytes()
    process.kill()
    process.join()
    os.kill(worker, 0)
    caplog.set_level("INFO")
    with FolderLock(tmp_path) as taken:
        assert taken.is_certain
    assert f"from process {process.pid}, started by {os.getpid()}, on " in caplog.text
    assert "which has ended without releasing it" in caplog.text


def test_reading_the_file_does_not_release_the_lock(tmp_path: Path) -> None:
    """A copy of the whole folder, made by the owner's process, leaves the lock held."""
    with FolderLock(tmp_path / "a"):
        shutil.copytree(tmp_path / "a", tmp_path / "copy")
        with pytest.raises(FolderInUseError), FolderLock(tmp_path / "a"):
            pass
    with FolderLock(tmp_path / "copy"):
        pass


def test_a_rank_that_is_about_to_end_is_waited_for(tmp_path: Path, processes: list[int]) -> None:
    """When the process that called fit is killed, its rank ends a moment later: the next owner waits for that."""
    process, rank = owners.start(owners.own_as_rank, tmp_path, 0.5)
    processes += [process.pid, rank]
    started_by = f"process {rank}, started by {process.pid}, on "  # Whoever wants to stop the run stops that one.
    with pytest.raises(FolderInUseError, match=started_by), FolderLock(tmp_path):
        pass
    process.kill()
    process.join()
    with FolderLock(tmp_path):
        pass


def test_a_file_that_is_removed_meanwhile_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between an owner's opening of the file and its locking, another may end and a third begin: it is the third's."""
    first, third, real_lock = FolderLock(tmp_path), contextlib.ExitStack(), lock._lock
    first.__enter__()

    def lock_late(descriptor: int) -> bool:
        monkeypatch.undo()
        first.__exit__(None, None, None)
        third.enter_context(FolderLock(tmp_path))
        return real_lock(descriptor)

    monkeypatch.setattr(lock, "_lock", lock_late)
    with third:
        with pytest.raises(FolderInUseError), FolderLock(tmp_path):
            pass
        assert (tmp_path / LOCK_NAME).exists()


def test_a_file_that_was_left_behind_is_harmless(tmp_path: Path) -> None:
    """A lock file that nobody holds is taken over, be its process alive by number, its content torn or empty."""
    describe(tmp_path, started="1")
    odd = [
        json.dumps({"pid": pid, "host": host, "since": "now"}) for pid, host in ((-1, "a"), ("1", "a"), (1, "\x1b[2J"))
    ]
    for content in (None, "", "{", "[" * 5000, "[1]", '{"pid": 1}', *odd):
        if content is not None:
            (tmp_path / LOCK_NAME).write_text(content)
            assert Owner.parse(content.encode()) is None
        with FolderLock(tmp_path) as taken:
            assert taken.is_certain


def test_only_a_file_is_locked(tmp_path: Path) -> None:
    """A link in the file's place is not followed and its target not overwritten; a FIFO and a folder do not hang."""
    (tmp_path / "precious").write_text("precious")
    places = [tmp_path / name / LOCK_NAME for name in ("link", "fifo", "folder")]
    for place in places:
        place.parent.mkdir()
    places[0].symlink_to(tmp_path / "precious")
    os.mkfifo(places[1])
    places[2].mkdir()
    for place in places:
        with pytest.raises(OSError, match=LOCK_NAME), FolderLock(place.parent):
            pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_an_owner_of_another_machine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a local disk it has ended; on a network one a warning says that this is not certain."""
    caplog.set_level("INFO")
    owner = describe(tmp_path, host="elsewhere")
    with FolderLock(tmp_path) as taken:
        assert taken.is_certain
    assert [record.levelname for record in caplog.records] == ["INFO"]
    describe(tmp_path, host="elsewhere")
    monkeypatch.setattr(lock, "_is_local", lambda _: False)
    with FolderLock(tmp_path) as taken:
        assert not taken.is_certain
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"last owned by process {owner.pid} on elsewhere, since {owner.since}" in warning
    assert "whether it still runs there cannot be seen from here" in warning


def test_what_file_systems_are_local(tmp_path: Path) -> None:
    """Disks and memory are; /proc, which stands for all others here, is not."""
    assert lock._is_local(tmp_path)
    assert not lock._is_local(Path("/proc/self"))


def test_without_locks_of_the_system_the_process_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there are no locks, a live owner of this machine is refused, one whose number was reused is not."""
    monkeypatch.setattr(lock, "_lock", lambda _: False)
    describe(tmp_path)
    with pytest.raises(FolderInUseError, match="this very process"), FolderLock(tmp_path):
        pass
    for changes in ({"started": "1"}, {"pid": 2**22 + 1}, {"host": "elsewhere"}):
        describe(tmp_path, **changes)
        caplog.clear()
        with FolderLock(tmp_path) as taken:
            assert not taken.is_certain
        assert "has no locks, so a second run in it from another machine would not be noticed" in caplog.text


def test_a_folder_that_was_deleted_is_owned_anew(tmp_path: Path) -> None:
    """If the folder is gone the owner takes the new one; if another run has that one, it is told so."""
    folder = tmp_path / "a"
    with FolderLock(folder) as first:
        first.ensure()
        shutil.rmtree(folder)
        first.ensure()
        with pytest.raises(FolderInUseError), FolderLock(folder):
            pass
        folder.rename(tmp_path / "moved")
        with FolderLock(folder):
            with pytest.raises(FolderInUseError):
                first.ensure()
            assert (folder / LOCK_NAME).exists()
        assert not (folder / LOCK_NAME).exists()
    FolderLock(folder).ensure()
    assert not folder.exists()
