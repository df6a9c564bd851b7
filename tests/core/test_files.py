from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from helios.core.files import as_path, atomic_write, ensure_writable, remove_temporaries

if TYPE_CHECKING:
    from collections.abc import Callable


def writer(content: bytes) -> Callable[[BinaryIO], object]:
    return lambda file: file.write(content)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def write_half(error: BaseException) -> Callable[[BinaryIO], object]:
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        raise error

    return write


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    """The content is there under the name alone, folders are made, and an old file is replaced."""
    path = tmp_path / "new" / "folder" / "a.bin"
    for content in (b"first", b"second"):
        atomic_write(path, writer(content))
        assert path.read_bytes() == content
        assert names_in(path.parent) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), KeyboardInterrupt(), SystemExit()])
def test_a_write_that_raises_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    """Whatever is raised half-way leaves the old file, or none, and nothing beside it."""
    path = tmp_path / "a.bin"
    for old in (None, b"old"):
        with pytest.raises(type(error)):
            atomic_write(path, write_half(error))
        assert names_in(tmp_path) == ([] if old is None else ["a.bin"])
        atomic_write(path, lambda file: file.write(b"old"))
    assert path.read_bytes() == b"old"


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is forced to the disk, then renamed, then the folder is: the order that survives a loss of power."""
    path, events = tmp_path / "a.bin", list[tuple[str, bool]]()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        kind = "folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file"
        events.append((kind, path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    atomic_write(path, lambda file: file.write(b"x"))
    assert events == [("file", False), ("folder", True)]


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    """Temporary files of atomic_write and probes go; files of anybody else stay, however alike their names."""
    left = tmp_path / ".a.pth.0123456789abcdef.tmp"
    probe = tmp_path / ".probe.0123456789abcdef.tmp"
    others = [tmp_path / name for name in ("a.pth", ".a.pth.tmp", "a.pth.0123456789abcdef.tmp", ".hidden")]
    for path in (left, probe, *others):
        path.touch()
    assert sorted(remove_temporaries(tmp_path)) == [left, probe]
    assert sorted(tmp_path.iterdir()) == sorted(others)
    assert remove_temporaries(tmp_path / "missing") == []


def test_a_temporary_is_one_that_can_be_removed(tmp_path: Path) -> None:
    """The names that atomic_write uses while it writes are those that remove_temporaries knows."""
    names = list[str]()
    atomic_write(tmp_path / "a.bin", lambda _: names.extend(names_in(tmp_path)))
    assert len(names) == 1
    (tmp_path / names[0]).touch()
    assert remove_temporaries(tmp_path) == [tmp_path / names[0]]


def test_a_place_that_is_no_folder_is_not_writable(tmp_path: Path) -> None:
    """`ensure_writable` makes a folder and leaves nothing in it; a file in its place is an OSError."""
    ensure_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="file"):
            ensure_writable(place)


def test_a_path_does_not_move_with_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is fixed when it is given; "~" is the home folder; `None` stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert as_path("a/b") == tmp_path / "a" / "b"
    assert as_path("~/x") == tmp_path / "home" / "x"
    assert as_path(None) is None
