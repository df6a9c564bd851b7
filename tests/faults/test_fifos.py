"""A FIFO in the place of a file is passed over or refused by name: opening it would wait for a writer for ever."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from helios.checkpoint.archive import save_archive
from helios.checkpoint.shard_files import load_sharded_plain
from helios.core import safe_torch_load
from helios.core.discovery import update_all_registries
from helios.core.logging import logging_session
from helios.core.paths import open_regular
from helios.errors import ConfigurationError, CorruptCheckpointError
from helios.plugins.optuna import SearchSpace, checkpoint_sampler, restore_sampler
from helios.plugins.optuna.storage.locks import study_lock
from helios.testing import TinyDataModule, TinyModel
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import make_trainer

if TYPE_CHECKING:
    from pathlib import Path


def test_only_files_are_opened(tmp_path: Path) -> None:
    """What is no file is named for what it is; a file, and a link to one, is read."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"
    for name, kind in (("fifo", "a FIFO"), ("zero", "a character device")):
        with pytest.raises(OSError, match=f"it is {kind}, and not a file: '.*{name}'"):
            open_regular(tmp_path / name)
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")


def test_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A FIFO with the name of the newest checkpoint: the run is resumed from the one before, and the log names it."""
    assert make_trainer(tmp_path, total_steps=2).fit(TinyModel(), TinyDataModule())
    newest = find_last_checkpoint(tmp_path / "tiny")
    assert newest is not None
    fifo = newest.with_name("tiny_epoch_9_iter_99.pth")
    os.mkfifo(fifo)
    assert find_last_checkpoint(tmp_path / "tiny") == newest
    caplog.clear()
    assert make_trainer(tmp_path, total_steps=3).fit(TinyModel(), TinyDataModule())
    assert re.search(f"{re.escape(str(fifo))}: .*it is a FIFO, and not a file", caplog.text)


def test_a_folder_of_shards(tmp_path: Path) -> None:
    """A FIFO in place of a sharded checkpoint's plain data, or of its shards: the folder counts as damaged."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    os.mkfifo(folder / "plain.pth")
    with pytest.raises((CorruptCheckpointError, OSError), match="a FIFO, and not a file"):
        load_sharded_plain(folder)
    (folder / "plain.pth").unlink()
    shard = {"size": 0, "sha256": "0"}
    save_archive(folder / "plain.pth", {"data": {}, "shards": {"shard-00001.safetensors": shard}})
    os.mkfifo(folder / "shard-00001.safetensors")
    with pytest.raises((CorruptCheckpointError, OSError), match="a FIFO, and not a file"):
        load_sharded_plain(folder)


def test_a_sampler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A FIFO with the name of the newest sampler: the one before it is restored, and the log names the FIFO."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    checkpoint_sampler(study.ask(), tmp_path)
    os.mkfifo(tmp_path / "sampler-000009_trial-9.pth")
    assert isinstance(restore_sampler(tmp_path), optuna.samplers.RandomSampler)
    assert "sampler-000009_trial-9.pth" in caplog.text
    assert "it is a FIFO, and not a file" in caplog.text


def test_a_file_to_be_loaded(tmp_path: Path) -> None:
    """A FIFO in place of a file that `torch.save` wrote is an error that names it."""
    os.mkfifo(tmp_path / "weights.pth")
    with pytest.raises(OSError, match=r"it is a FIFO, and not a file: '.*weights\.pth'"):
        safe_torch_load(tmp_path / "weights.pth")


def test_a_search_space(tmp_path: Path) -> None:
    """A FIFO in place of a search space's TOML file is an error that names it."""
    os.mkfifo(tmp_path / "space.toml")
    with pytest.raises(OSError, match=r"it is a FIFO, and not a file: '.*space\.toml'"):
        SearchSpace.from_toml(tmp_path / "space.toml")


def test_a_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A FIFO among the sources that are searched for what registers itself is passed over, and the log names it."""
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "dangling.py").symlink_to("nothing")
    update_all_registries(tmp_path, import_prefix="anything")
    assert f"skipped '{tmp_path / 'pipe.py'}': it is no file" in caplog.text
    assert f"skipped '{tmp_path / 'dangling.py'}': it is no file" in caplog.text


def test_a_log_file(tmp_path: Path) -> None:
    """A FIFO in place of the log file is an error that names it."""
    os.mkfifo(tmp_path / "helios.log")
    with (
        pytest.raises(ConfigurationError, match=r"the log file '.*helios\.log' cannot be opened \(.*it is a FIFO"),
        logging_session(log_file=tmp_path / "helios.log", capture_warnings=False, rank=0),
    ):
        pass


def test_the_lock_of_a_study(tmp_path: Path) -> None:
    """A FIFO in place of the file that a study is locked by is an error that names it."""
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    os.mkfifo(tmp_path / "study.db.helios-lock")
    with contextlib.ExitStack() as stack, pytest.raises(OSError, match=r"a FIFO, and not a file: '.*\.helios-lock'"):
        stack.enter_context(study_lock(study))


_OPENINGS = {
    "resume": "hlpo.resume_study({'study_name': 's', 'storage': url, 'load_if_exists': True})",
    "report": "hlpo.write_report(url, 'report.html')",
}


@pytest.mark.parametrize("what", _OPENINGS)
def test_a_database(tmp_path: Path, what: str) -> None:
    """A FIFO in place of a study's SQLite file is an error that names it; SQLite itself could not be interrupted."""
    os.mkfifo(tmp_path / "study.db")
    script = f"import helios.plugins.optuna as hlpo; url = 'sqlite:///{tmp_path / 'study.db'}'; {_OPENINGS[what]}"
    command: list[Any] = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    *_, last = ended.stderr.strip().splitlines()
    assert re.match(r"helios\.errors\.ConfigurationError: .*study\.db", last), ended.stderr
