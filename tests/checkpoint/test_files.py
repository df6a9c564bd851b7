from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from helios.checkpoint import files
from helios.checkpoint.files import atomic_folder, atomic_write, check_length, ensure_writable, remove_temporaries
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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
    """Temporary files and folders and probes go; files of anybody else stay, however alike their names."""
    left = tmp_path / ".a.pth.0123456789abcdef.tmp"
    probe = tmp_path / ".probe.0123456789abcdef.tmp"
    others = [tmp_path / name for name in ("a.pth", ".a.pth.tmp", "a.pth.0123456789abcdef.tmp", ".hidden")]
    for path in (left, probe, *others):
        path.touch()
    folder, link = tmp_path / ".b.pth.0123456789abcdef.tmp", tmp_path / ".c.pth.0123456789abcdef.tmp"
    fill(folder, "half")
    fill(tmp_path / "b.pth", "whole")
    link.symlink_to(tmp_path / "b.pth")
    assert sorted(remove_temporaries(tmp_path)) == [left, folder, link, probe]
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "b.pth"])
    assert content_of(tmp_path / "b.pth") == "whole"
    assert remove_temporaries(tmp_path / "missing") == []


def test_a_temporary_is_one_that_can_be_removed(tmp_path: Path) -> None:
    """The names that files and folders have while they are written are those that remove_temporaries knows."""
    names = list[str]()
    atomic_write(tmp_path / "a.bin", lambda _: names.extend(names_in(tmp_path)))
    assert len(names) == 1
    (tmp_path / names[0]).touch()
    assert remove_temporaries(tmp_path) == [tmp_path / names[0]]
    with atomic_folder(tmp_path / "b.pth") as folder:
        assert folder.parent == tmp_path
    folder.mkdir()
    assert remove_temporaries(tmp_path) == [folder]


def fill(folder: Path, content: str) -> None:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.txt").write_text(content)


def content_of(path: Path) -> str:
    return (path / "inner" / "a.txt" if path.is_dir() else path).read_text()


def make_old(path: Path, kind: str) -> None:
    if kind == "folder":
        fill(path, "old")
    elif kind == "file":
        path.write_text("old")


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("old", ["nothing", "file", "folder"])
def test_a_folder_takes_its_name_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, can_exchange: bool
) -> None:
    """Until the context ends, what had the name is there; then the folder is, and nothing is beside it."""
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    path = tmp_path / "place" / "a.pth"
    if old != "nothing":
        path.parent.mkdir()
    make_old(path, old)
    with atomic_folder(path) as folder:
        fill(folder, "new")
        assert path.exists() == (old != "nothing")
        assert old == "nothing" or content_of(path) == "old"
    assert content_of(path) == "new"
    assert names_in(path.parent) == ["a.pth"]


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", ["nothing", "file", "folder"])
def test_a_folder_that_is_not_finished_leaves_no_trace(tmp_path: Path, old: str, error: BaseException) -> None:
    """Whatever is raised half-way leaves what was there, or nothing, and nothing beside it."""
    path = tmp_path / "a.pth"
    make_old(path, old)
    with pytest.raises(type(error)), atomic_folder(path) as folder:
        fill(folder, "half")
        raise error
    assert names_in(tmp_path) == ([] if old == "nothing" else ["a.pth"])
    assert old == "nothing" or content_of(path) == "old"


@pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged on Linux alone")
def test_there_is_no_moment_without_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old folder gives way in one step: neither it nor the new one is renamed."""
    path = tmp_path / "a.pth"
    fill(path, "old")
    monkeypatch.delattr(Path, "rename")
    with atomic_folder(path) as folder:
        fill(folder, "new")
    assert content_of(path) == "new"


def test_a_folder_that_cannot_have_the_name_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where names cannot be exchanged and the second renaming fails, the old folder has its name back."""
    path = tmp_path / "a.pth"
    fill(path, "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == path and content_of(self) == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no"), atomic_folder(path) as folder:
        fill(folder, "new")
    assert content_of(path) == "old"
    assert names_in(tmp_path) == ["a.pth"]


def test_a_folder_is_on_the_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is forced to the disk, then exchanged, then the one around it is, and only then the old one goes."""
    path, events = tmp_path / "a.pth", list[tuple[str, str, int]]()
    fill(path, "old")
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        events.append(("around" if name == tmp_path.name else "inside", content_of(path), len(names_in(tmp_path))))

    monkeypatch.setattr(os, "fsync", note)
    with atomic_folder(path) as folder:
        fill(folder, "new")
    assert events == [("inside", "old", 2), ("around", "new", 2), ("around", "new", 1)]


def test_a_file_replaces_a_folder_only_if_it_is_told_to(tmp_path: Path) -> None:
    """`atomic_write` refuses the name of a folder, and with `over_folder` takes it, of a file as well."""
    path = tmp_path / "a.pth"
    fill(path, "old")
    with pytest.raises(IsADirectoryError):
        atomic_write(path, writer(b"new"))
    assert content_of(path) == "old"
    assert names_in(tmp_path) == ["a.pth"]
    for content in (b"new", b"newer"):
        atomic_write(path, writer(content), over_folder=True)
        assert path.read_bytes() == content
        assert names_in(tmp_path) == ["a.pth"]


def test_a_place_that_is_no_folder_is_not_writable(tmp_path: Path) -> None:
    """`ensure_writable` makes a folder and leaves nothing in it; a file in its place is an OSError."""
    ensure_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="file"):
            ensure_writable(place)


def test_the_longest_name_is_told_to_the_byte(tmp_path: Path) -> None:
    """What `check_length` allows can be written, and with one byte more it cannot: in names and in whole paths."""
    longest = "ü" * 116 + "x"  # 233 bytes, and 22 more while it is written.
    for folder in (tmp_path, tmp_path / "missing"):
        check_length(folder / longest)
        with pytest.raises(ConfigurationError, match="the name of the file .* is 1 bytes too long: .* shorten"):
            check_length(folder / f"{longest}x")
    atomic_write(tmp_path / longest, writer(b"x"))
    with pytest.raises(OSError, match="File name too long"):
        atomic_write(tmp_path / f"{longest}x", writer(b"x"))
    room = 4096 - 1 - len(os.fsencode(tmp_path)) - 22
    folder = tmp_path / "/".join(["f" * 100] * (room // 101 - 1))
    path = folder / ("x" * (4096 - 1 - 22 - len(os.fsencode(folder)) - 1))
    check_length(path)
    atomic_write(path, writer(b"x"))
    with pytest.raises(ConfigurationError, match="the path of the file .* is 1 bytes too long"):
        check_length(path.with_name(f"{path.name}x"))
    with pytest.raises(OSError, match="File name too long"):
        atomic_write(path.with_name(f"{path.name}x"), writer(b"x"))


def test_a_probe_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """When the disk takes no byte, `ensure_writable` raises, and its empty probe does not stay."""
    with limited_file_size(0), pytest.raises(OSError, match="File too large"):
        ensure_writable(tmp_path)
    assert names_in(tmp_path) == []


@contextlib.contextmanager
def limited_file_size(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
