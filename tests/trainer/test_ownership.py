"""One run at a time owns the folder of its checkpoints."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from helios.checkpoint import lock
from helios.checkpoint.files import atomic_write
from helios.checkpoint.lock import FolderLock
from helios.errors import FolderInUseError
from helios.testing import are_equal
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import CountingModel, Failing, ListData, make_trainer
from tests.trainer.rivals import run_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_second_start_does_not_disturb_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run writes a checkpoint another process is refused, may test, and leaves the half-written file alone."""
    expected = CountingModel()
    make_trainer(tmp_path / "alone", chkpt_frequency=1).fit(expected, ListData())
    answers: list[tuple[str, str]] = []

    def write_beside_others(path: Path, write: Callable[[BinaryIO], object], **options: Any) -> None:
        def write_slowly(file: BinaryIO) -> None:
            write(file)
            methods = ["fit", "test"] if find_last_checkpoint(path.parent) else ["fit"]
            answers.extend(run_elsewhere(tmp_path / "both", method) for method in methods)

        atomic_write(path, write_slowly, **options)

    monkeypatch.setattr("helios.checkpoint.archive.atomic_write", write_beside_others)
    model = CountingModel()
    assert make_trainer(tmp_path / "both", chkpt_frequency=1).fit(model, ListData())
    assert are_equal(model.state_dict(), expected.state_dict())
    assert [kind for kind, _ in answers] == ["FolderInUseError", "FolderInUseError", "True"]
    assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in answers[0][1]
    names = sorted(path.name for path in (tmp_path / "both" / "counting").iterdir())
    assert names == ["counting_epoch_1_iter_3.pth", "counting_epoch_2_iter_6.pth"]


def test_a_second_run_of_one_process_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """In one process, too, a second run is refused the folder and free to use another; a refused one trains nothing."""
    model = CountingModel()
    with FolderLock(tmp_path / "counting"):
        with pytest.raises(FolderInUseError, match="this very process"):
            make_trainer(tmp_path).fit(model, ListData())
        assert model.seen == []
        with pytest.raises(
            FolderInUseError
        ):  # Before setup, which may take the memory of the GPU that the other is on.
            make_trainer(tmp_path).fit(Failing("setup", ValueError("too late")), ListData())
        assert make_trainer(tmp_path).fit(CountingModel("other"), ListData())
    assert make_trainer(tmp_path).fit(model, ListData())


def test_a_run_that_fails_gives_its_folder_back(tmp_path: Path) -> None:
    """An error in training releases the folder, also while the exception is kept."""
    with pytest.raises(ValueError, match="no") as kept:
        make_trainer(tmp_path).fit(Failing("step", ValueError("no")), ListData())
    assert run_elsewhere(tmp_path, "fit") == ("True", "")
    assert kept.value.__traceback__ is not None


def test_temporary_files_are_left_where_a_writer_may_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not certain that the last owner has ended, its half-written file is left alone."""
    temporary = tmp_path / "counting" / ".counting_epoch_9_iter_9.pth.0123456789abcdef.tmp"
    temporary.parent.mkdir()
    temporary.write_bytes(b"half a checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr(lock, "_lock", lambda _: False)
        make_trainer(tmp_path).fit(CountingModel(), ListData())
    assert temporary.exists()
    make_trainer(tmp_path).fit(CountingModel(), ListData())
    assert not temporary.exists()
