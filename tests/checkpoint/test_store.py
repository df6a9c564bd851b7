"""The store of checkpoints: names, the newest, and damage."""

from __future__ import annotations

import os
import string
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios import TrainingState
from helios.checkpoint.names import CheckpointName
from helios.checkpoint.store import CheckpointStore
from helios.errors import (
    CheckpointError,
    ConfigurationError,
)
from helios.trainer import find_last_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


COUNT = st.integers(0, 10**12)
SAVE_NAME = st.text(string.ascii_letters + string.digits + "_-.ü ", min_size=1).filter(lambda name: name.strip(" ."))
METADATA = st.text(string.printable.replace("/", "").replace("\\", "") + "ü").filter(
    lambda text: not text[:1].isdigit()
)


@given(st.sampled_from(["m", "epoch", "my_epoch_1_iter_1", "x.pth"]) | SAVE_NAME, COUNT, COUNT, METADATA)
def test_parsing_a_name_inverts_writing_it(save_name: str, epoch: int, iteration: int, metadata: str) -> None:
    """`parse` gives back what `str` wrote, whatever the save name and the metadata hold."""
    name = CheckpointName(save_name, epoch, iteration, metadata)
    assert CheckpointName.parse(str(name), save_name) == name
    assert CheckpointName(save_name, epoch, iteration).with_stem(name.stem, "M") == name


@pytest.mark.parametrize(
    "file_name",
    ["", "m", "m.pth", "m_epoch_1_iter_.pth", "m_epoch_1_iter_1.pt", "m_epoch_-1_iter_1.pth", "n_epoch_1_iter_1.pth"],
)
def test_other_files_are_no_checkpoints(file_name: str) -> None:
    """What does not have the form of a name is not taken for a checkpoint."""
    assert CheckpointName.parse(file_name, "m") is None
    assert CheckpointName.parse(".m_epoch_1_iter_1.pth.0123456789abcdef.tmp", "m") is None


@pytest.mark.parametrize("stem", ["other", "", None, "m_epoch_1_iter_23", "m_epoch_1_iter_2/x", "x_m_epoch_1_iter_2"])
def test_metadata_that_hides_the_counts_is_refused(stem: Any) -> None:
    """A model may add to a name, and not change it, nor begin with a digit, nor leave the folder."""
    with pytest.raises(ConfigurationError, match=r"M.append_metadata_to_chkpt_name made .*; return chkpt_name \+"):
        CheckpointName("m", 1, 2).with_stem(stem, "M")


def data_of(number: float, **state: int) -> dict[str, Any]:
    """Return what a checkpoint of a run holds, and a number that tells it from others."""
    return {
        "number": number,
        "format": 1,
        "model": {"class": "M", "state": {}, "book": {"metrics": {}, "running_losses": {}}},
        "plugins": {},
        "training": {"state": TrainingState(**state).dict(), "stopped": False, "feed": {}},
        "gradients": {},
    }


def fill(root: Path, *names: CheckpointName) -> CheckpointStore:
    store = CheckpointStore(root, "m")
    for number, name in enumerate(names):
        store.save(name, data_of(number))
    return store


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: len(content) // 2] if how == "truncated" else content if how == "flipped" else b"")


def test_the_newest_goes_by_its_counts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs and iterations are compared as numbers; directory order and times of files mean nothing."""
    names = [CheckpointName("m", 9, 900), CheckpointName("m", 10, 1000), CheckpointName("m", 10, 999)]
    store = fill(tmp_path, *names)
    for age, name in enumerate([names[1], names[2], names[0]]):
        os.utime(store.folder / str(name), (1000 + age, 1000 + age))
    newest = store.folder / str(names[1])
    for reverse in (False, True):
        entries = sorted(store.folder.iterdir(), reverse=reverse)
        with monkeypatch.context() as patch:
            patch.setattr(type(tmp_path), "glob", lambda _self, _pattern, entries=entries: iter(entries))
            patch.setattr(type(tmp_path), "iterdir", lambda _self, entries=entries: iter(entries))
            assert store.find_newest() == newest
            loaded = store.load_newest()
            assert loaded is not None
            assert loaded[0] == newest


def test_of_equal_counts_the_one_that_is_further_wins(tmp_path: Path) -> None:
    """When only metadata tells two files apart, the batches that were trained decide, not the alphabet."""
    store = CheckpointStore(tmp_path, "m")
    store.save(CheckpointName("m", 1, 2, "_z"), data_of(1, global_iteration=4, dataset_iter=1))
    store.save(CheckpointName("m", 1, 2, "_b"), data_of(2, global_iteration=5, dataset_iter=2))
    store.save(CheckpointName("m", 1, 2, "_a"), data_of(3, global_iteration=5, dataset_iter=0))
    store.save(CheckpointName("m", 1, 2, "_c"), data_of(4, global_iteration=3, dataset_iter=0))
    loaded = store.load_newest()
    assert loaded is not None
    assert loaded[1]["number"] == 3
    assert find_last_checkpoint(tmp_path / "m") == loaded[0] == tmp_path / "m" / "m_epoch_1_iter_2_a.pth"


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_is_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """A damaged newest checkpoint is named in the log with the reason, and the next one is used."""
    store = fill(tmp_path, CheckpointName("m", 1, 1), CheckpointName("m", 2, 2))
    damaged = tmp_path / "m" / "m_epoch_2_iter_2.pth"
    damage(damaged, how)
    loaded = store.load_newest()
    assert loaded is not None
    assert loaded[1]["number"] == 0
    assert find_last_checkpoint(tmp_path / "m") == tmp_path / "m" / "m_epoch_1_iter_1.pth"
    skipped = [record.getMessage() for record in caplog.records]
    assert len(skipped) == 2
    assert all(str(damaged) in line and "checksum" in line for line in skipped)


def test_only_damaged_ones_are_an_error(tmp_path: Path) -> None:
    """A run whose checkpoints are all damaged does not begin anew by itself."""
    store = fill(tmp_path, CheckpointName("m", 1, 1), CheckpointName("m", 2, 2))
    for path in store.folder.iterdir():
        damage(path, "truncated")
    with pytest.raises(
        CheckpointError, match="none of the checkpoints in .* can be used: .*iter_2.*iter_1.*begin anew"
    ):
        store.load_newest()
    assert find_last_checkpoint(store.folder) is None


def test_where_there_is_nothing_nothing_is_found(tmp_path: Path) -> None:
    """A missing folder and one with other files have no newest checkpoint."""
    assert find_last_checkpoint(tmp_path / "missing") is None
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").touch()
    assert find_last_checkpoint(str(tmp_path / "m")) is None
    assert CheckpointStore(tmp_path, "m").load_newest() is None
