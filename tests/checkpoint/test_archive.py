from __future__ import annotations

import os
import pickle
import random
import resource
import signal
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios.checkpoint.archive import load_archive, save_archive, verify_archive
from helios.errors import ArgumentTypeError, CheckpointError, CorruptCheckpointError
from helios.testing import are_equal

if TYPE_CHECKING:
    from pathlib import Path

DATA = {"weights": torch.arange(40.0).reshape(5, 8), "name": "x" * 50, "counts": [1, {"a": None}]}


class Bomb:
    """Unpickled carelessly, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "a.pth"
    save_archive(path, DATA)
    return path


def test_an_archive_comes_back(archive: Path) -> None:
    """What was saved is loaded, to the bit, and the file is the only one in its folder."""
    verify_archive(archive)
    assert are_equal(load_archive(archive), DATA)
    assert list(archive.parent.iterdir()) == [archive]


def test_torch_reads_an_archive_without_helios(archive: Path) -> None:
    """A checkpoint is an ordinary file by torch.save: `torch.load(weights_only=True)` and a zip tool read it."""
    assert are_equal(torch.load(archive, weights_only=True), DATA)
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        assert file.comment.startswith(b"helios-sha256:")


def test_a_flipped_bit_anywhere_is_noticed(archive: Path) -> None:
    """One flipped bit is refused, wherever it is: tried are all bytes at both ends and many between."""
    numbers, whole = random.Random(3), archive.read_bytes()
    positions = {*range(150), *range(len(whole) - 150, len(whole)), *numbers.sample(range(len(whole)), 200)}
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << numbers.randrange(8)
        archive.write_bytes(damaged)
        with pytest.raises(CorruptCheckpointError):
            verify_archive(archive)
    with pytest.raises(CorruptCheckpointError, match="a.pth"):
        load_archive(archive)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.data())
def test_a_cut_or_longer_file_is_noticed(archive: Path, data: st.DataObject) -> None:
    """A file that is truncated anywhere, or has bytes after its end, is refused, and the error says which."""
    whole = archive.read_bytes()
    try:
        cut = data.draw(st.integers(0, len(whole) - 1))
        archive.write_bytes(whole[:cut])
        with pytest.raises(CorruptCheckpointError, match="truncated or not by Helios"):
            load_archive(archive)
        archive.write_bytes(whole + data.draw(st.binary(min_size=1, max_size=100)))
        with pytest.raises(CorruptCheckpointError):
            load_archive(archive)
    finally:
        archive.write_bytes(whole)


def test_a_file_by_torch_alone_is_refused(tmp_path: Path) -> None:
    """A file without a checksum is not taken on trust, however intact."""
    path = tmp_path / "plain.pth"
    torch.save(DATA, path)
    with pytest.raises(
        CorruptCheckpointError, match="plain.pth was written by torch.save without the checksum of Helios"
    ):
        load_archive(path)


def seal(path: Path, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an archive with a valid checksum that holds anything at all."""
    with monkeypatch.context() as patch:
        patch.setattr("helios.checkpoint.archive.encode", lambda value, _path: value)
        save_archive(path, value)


def test_code_in_an_archive_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle bomb under a valid checksum is refused and not run; the same bytes do run when loaded carelessly."""
    mark, path = tmp_path / "ran", tmp_path / "bomb.pth"
    seal(path, {"a": Bomb(mark)}, monkeypatch)
    verify_archive(path)
    with pytest.raises(CorruptCheckpointError, match="code in it is never run"):
        load_archive(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the bomb itself is a dud"


def test_an_archive_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that holds no dictionary is no checkpoint."""
    seal(tmp_path / "list.pth", [1], monkeypatch)
    with pytest.raises(CorruptCheckpointError, match="list.pth holds a list, not a dictionary"):
        load_archive(tmp_path / "list.pth")


def test_what_is_not_plain_leaves_no_file(tmp_path: Path) -> None:
    """Saving an object that is not plain data names its path, and what stands there already is left alone."""
    path = tmp_path / "a.pth"
    save_archive(path, DATA)
    with pytest.raises(ArgumentTypeError, match=r"checkpoint\['a'\]\['b'\] is a builtins.object"):
        save_archive(path, {"a": {"b": object()}})
    assert list(tmp_path.iterdir()) == [path]
    assert are_equal(load_archive(path), DATA)


def test_a_full_disk_is_an_oserror_and_leaves_the_old_file(archive: Path) -> None:
    """When the disk takes no more in the middle of a write, the old archive stays whole and no rest is left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_archive(archive, {"big": torch.rand(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(archive.parent.iterdir()) == [archive]
    assert are_equal(load_archive(archive), DATA)


def test_the_checksum_is_of_the_bytes_however_they_are_written(tmp_path: Path) -> None:
    """Many small and large parts, empty tensors and views are hashed as they lie in the file."""
    numbers = random.Random(1)
    data = {f"t{i}": torch.rand(numbers.choice([0, 1, 7, 5000])) for i in range(40)} | {"view": torch.rand(50)[::7]}
    save_archive(tmp_path / "many.pth", data)
    assert are_equal(load_archive(tmp_path / "many.pth"), data)


def test_a_foreign_pickle_is_no_archive(tmp_path: Path) -> None:
    """Errors of archives are checkpoint errors, which is how the store that skips them knows them."""
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps(DATA, protocol=2))
    with pytest.raises(CheckpointError):
        load_archive(path)
    with pytest.raises(FileNotFoundError):
        load_archive(tmp_path / "missing.pth")
