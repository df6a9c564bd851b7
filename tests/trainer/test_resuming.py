"""Checkpoints of whole runs: what is written, what is resumed, and what is refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios.checkpoint.archive import load_archive, save_archive
from helios.checkpoint.format import FORMAT
from helios.errors import (
    ArgumentTypeError,
    CheckpointError,
    CheckpointMismatchError,
    ConfigurationError,
)
from helios.testing import TinyDataModule, TinyModel, are_equal
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: len(content) // 2] if how == "truncated" else content if how == "flipped" else b"")


def run(root: Path, epochs: float = 1, model: CountingModel | None = None, **options: Any) -> CountingModel:
    model = CountingModel() if model is None else model
    assert make_trainer(root, total_steps=epochs, **options).fit(model, ListData())
    return model


def newest(root: Path, save_name: str = "counting") -> Path:
    path = find_last_checkpoint(root / save_name)
    assert path is not None
    return path


def test_one_checkpoint_is_written_per_save(tmp_path: Path) -> None:
    """Names count epochs and iterations; without a frequency there is one checkpoint, at the end."""
    run(tmp_path / "often", 3, chkpt_frequency=1)
    run(tmp_path / "once", 3)
    run(tmp_path / "steps", 7, train_unit="iteration", chkpt_frequency=2)
    names = {
        which.name: sorted(path.name for path in (which / "counting").iterdir()) for which in sorted(tmp_path.iterdir())
    }
    assert names == {
        "often": [f"counting_epoch_{e}_iter_{3 * e}.pth" for e in (1, 2, 3)],
        "once": ["counting_epoch_3_iter_9.pth"],
        "steps": [f"counting_epoch_{e}_iter_{i}.pth" for e, i in ((1, 2), (2, 4), (2, 6), (3, 7))],
    }


def test_a_truncated_newest_beside_a_good_one_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`fit` resumes from the last intact checkpoint, names the damaged one, and ends with the same weights."""
    expected = run(tmp_path / "whole", 3).weight
    run(tmp_path / "damaged", 2, chkpt_frequency=1)
    damaged = newest(tmp_path / "damaged")
    damage(damaged, "truncated")
    model = run(tmp_path / "damaged", 3)
    assert model.weight == expected
    assert len(model.seen) == 3 + 3 + 3, "the batches seen are saved in the checkpoint of epoch 1"
    assert any(f"skipped the checkpoint {damaged}" in record.getMessage() for record in caplog.records)


def test_a_finished_run_trains_no_further_step(tmp_path: Path) -> None:
    """`fit` on a complete run trains nothing and changes no weight; with more steps it continues."""
    for unit, steps in (("epoch", 2), ("iteration", 4)):
        root = tmp_path / unit
        first = run(root, steps, train_unit=unit)
        before = newest(root).read_bytes()
        again = run(root, steps, train_unit=unit)
        assert (again.weight, again.seen) == (first.weight, first.seen)
        assert newest(root).read_bytes() == before
        assert len(run(root, steps + 1, train_unit=unit).seen) == len(first.seen) + (3 if unit == "epoch" else 1)


def test_a_checkpoint_on_the_last_batch_of_an_epoch_resumes(tmp_path: Path) -> None:
    """A step checkpoint that falls on an epoch's last batch does not hang, and the next epoch is whole."""
    expected = run(tmp_path / "whole", 7, train_unit="iteration").weight
    run(tmp_path / "parts", 3, train_unit="iteration", chkpt_frequency=3)
    model = run(tmp_path / "parts", 7, train_unit="iteration")
    assert model.seen == [100.0, 101.0, 102.0] * 2 + [100.0]
    assert model.weight == expected


class Shuffled(TinyModel):
    """Keeps the samples of each epoch."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.epochs: list[list[float]] = []

    def on_training_epoch_start(self, current_epoch: int) -> None:
        del current_epoch
        self.epochs.append([])

    def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
        super().train_step(batch, state)
        self.epochs[-1].extend(batch[0][:, 0].tolist())


def test_a_resume_inside_an_epoch_keeps_its_order_and_the_next_ones_whole(tmp_path: Path) -> None:
    """Stopped at any batch, the current epoch continues in its own shuffle, and later ones have all samples."""
    whole, data = Shuffled(), TinyDataModule()
    make_trainer(tmp_path / "whole", total_steps=8, train_unit="iteration").fit(whole, data)
    assert [len(epoch) for epoch in whole.epochs] == [10, 10, 8]
    assert sorted(whole.epochs[0]) == sorted(whole.epochs[1])
    assert whole.epochs[0] != whole.epochs[1]
    for stop in range(1, 8):
        root = tmp_path / str(stop)
        make_trainer(root, total_steps=stop, train_unit="iteration").fit(Shuffled(), data)
        resumed = Shuffled()
        make_trainer(root, total_steps=8, train_unit="iteration").fit(resumed, data)
        assert resumed.epochs == whole.epochs
        assert are_equal(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("save_name", ["epoch", "my_epoch_1_iter_1", "a.pth", "iter_5_epoch", "ü x"])
def test_any_save_name_is_found_again(tmp_path: Path, save_name: str) -> None:
    """A save name that looks like a part of a checkpoint's name does not break the search."""
    expected = run(tmp_path / "whole", 12, CountingModel(save_name)).weight
    run(tmp_path / "parts", 11, CountingModel(save_name), chkpt_frequency=1)
    assert newest(tmp_path / "parts", save_name).name == f"{save_name}_epoch_11_iter_33.pth"
    assert run(tmp_path / "parts", 12, CountingModel(save_name)).weight == expected


class Named(CountingModel):
    """Writes a score into the names of its checkpoints."""

    addition = "_acc_0.5"

    def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
        return chkpt_name + self.addition


def test_metadata_is_part_of_the_name(tmp_path: Path) -> None:
    """What `append_metadata_to_chkpt_name` adds is in the name, and the checkpoint is found all the same."""
    run(tmp_path, 1, Named())
    assert newest(tmp_path).name == "counting_epoch_1_iter_3_acc_0.5.pth"
    assert len(run(tmp_path, 2, Named()).seen) == 6

    class Bad(Named):
        addition = "7"

    with pytest.raises(
        ConfigurationError, match="Bad.append_metadata_to_chkpt_name made 'counting_epoch_0_iter_07'"
    ):  # Before training.
        run(tmp_path / "bad", 1, Bad())


class Other(CountingModel):
    """Another class."""


class Deeper(CountingModel):
    """Has a network more than its checkpoint."""

    __qualname__ = "CountingModel"

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.head = torch.nn.Linear(1, 1)


def test_a_checkpoint_of_another_class_is_refused(tmp_path: Path) -> None:
    """A checkpoint of another class, or with other networks, is refused by name, in training and testing."""
    run(tmp_path)
    for method in ("fit", "test"):
        with pytest.raises(
            CheckpointMismatchError,
            match=r"iter_3.pth belongs to a CountingModel, and this model is a Other: give each its own save_name",
        ):
            getattr(make_trainer(tmp_path), method)(Other(), ListData())
    with pytest.raises(CheckpointMismatchError, match=r"Deeper is not what was saved: only .* \['head'\]"):
        make_trainer(tmp_path).fit(Deeper(), ListData())


def rewrite(path: Path, **changes: Any) -> None:
    save_archive(path, {**load_archive(path), **changes})


@pytest.mark.parametrize(
    ("written", "remedy"), [(FORMAT + 1, "update Helios"), (FORMAT - 1, "finish the run with that version")]
)
def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, written: int, remedy: str) -> None:
    """What a later or an earlier version wrote, in another format, is not guessed at."""
    run(tmp_path)
    rewrite(newest(tmp_path), format=written, helios="99.0")
    model = CountingModel()
    with pytest.raises(
        CheckpointMismatchError, match=f"has format {written}, written by Helios 99.0; .* format {FORMAT}: {remedy}"
    ):
        make_trainer(tmp_path).fit(model, ListData())
    assert model.seen == []


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    """Plain data that is no run, under a checkpoint's name, is refused and says so."""
    path = tmp_path / "counting" / "counting_epoch_1_iter_1.pth"
    save_archive(path, {"weights": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="has no format number: it is no checkpoint of a run.* move them away"):
        run(tmp_path)


class Bomb:
    """Unpickled carelessly, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("sealed", [True, False])
def test_a_pickle_bomb_is_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, sealed: bool
) -> None:
    """A bomb as the only checkpoint, even under a valid checksum, ends `fit` with an error; nothing is run."""
    mark, path = tmp_path / "ran", tmp_path / "counting" / "counting_epoch_1_iter_1.pth"
    path.parent.mkdir()
    if sealed:
        with monkeypatch.context() as patch:
            patch.setattr("helios.checkpoint.archive.encode", lambda value, _path: value)
            save_archive(path, {"a": Bomb(mark)})
    else:
        torch.save({"a": Bomb(mark)}, path)
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        run(tmp_path)
    assert find_last_checkpoint(path.parent) is None
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the bomb itself is a dud"


def test_an_unwritable_root_is_known_before_training(tmp_path: Path) -> None:
    """Where checkpoints cannot be written, `fit` says so before the first batch."""
    (tmp_path / "file").touch()  # A file in place of a folder: this also stops those who may write anywhere.
    root, model = tmp_path / "file" / "root", CountingModel()
    with pytest.raises(CheckpointError, match=r"cannot be written to .*root.* choose another chkpt_root, or make it"):
        make_trainer(root).fit(model, ListData())
    assert model.seen == []


def test_a_disk_that_refuses_is_a_checkpoint_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that fails in the middle of a run is an error that names the file; earlier ones are intact."""

    def refuse(path: Path, write: object, **_: object) -> None:
        del path, write
        raise OSError(28, "No space left on device")

    run(tmp_path)
    before = newest(tmp_path).read_bytes()
    monkeypatch.setattr("helios.checkpoint.archive.atomic_write", refuse)
    with pytest.raises(
        CheckpointError, match="epoch_2_iter_6.pth could not be written .*No space.*earlier ones are intact"
    ):
        run(tmp_path, 2)
    assert newest(tmp_path).read_bytes() == before


class Unplain(CountingModel):
    """Has a state that is not plain data."""

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "extra": {"object": object()}}


class NotADict(CountingModel):
    """Has a state that is no dictionary."""

    def state_dict(self) -> dict[str, Any]:
        return [1]  # type: ignore[return-value]  # the point


def test_state_that_cannot_be_saved_is_known_before_training(tmp_path: Path) -> None:
    """A `state_dict` that is not plain, or no dictionary, is refused with its path before the first batch."""
    for model, message in (
        (Unplain(), r"Unplain.state_dict\(\)\['extra'\]\['object'\] is a builtins.object, which a checkpoint cannot"),
        (NotADict(), r"NotADict.state_dict\(\) returned a list: return a dict of plain data"),
    ):
        with pytest.raises(ArgumentTypeError, match=message):
            make_trainer(tmp_path).fit(model, ListData())
        assert model.seen == []
        assert find_last_checkpoint(tmp_path / "counting") is None


def test_leftovers_of_killed_writers_are_swept(tmp_path: Path) -> None:
    """Files of a killed writer are deleted when the run is resumed, and are never taken for a checkpoint."""
    run(tmp_path)
    left = tmp_path / "counting" / ".counting_epoch_9_iter_9.pth.0123456789abcdef.tmp"
    left.write_bytes(b"half a checkpoint")
    run(tmp_path, 2)
    assert not left.exists()


def test_a_checkpoint_is_read_without_helios(tmp_path: Path) -> None:
    """A checkpoint is plain data: `torch.load(weights_only=True)` reads the weights out of it."""
    model = run(tmp_path)
    data = torch.load(newest(tmp_path), weights_only=True)
    assert torch.equal(data["model"]["state"]["net"]["weight"], model.net.weight)
    assert data["training"]["state"]["global_iteration"] == 3
