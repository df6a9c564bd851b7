"""Names and paths that no file can have are refused before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import pytest

from helios import Trainer
from helios.errors import ArgumentTypeError, ConfigurationError
from helios.plugins.optuna import SearchSpace, restore_sampler, write_report
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def refuse(root: Path, model: CountingModel, match: str) -> None:
    """Check that a run is refused before its first batch, and has written nothing."""
    with pytest.raises(ConfigurationError, match=match):
        make_trainer(root).fit(model, ListData())
    assert model.seen == []
    assert not any(root.rglob("*") if len(str(root)) < 4096 else ())


@pytest.mark.parametrize("length", [196, 255, 300, 5000])
def test_a_save_name_that_is_too_long_is_refused_at_the_start(tmp_path: Path, length: int) -> None:
    """A name that leaves no room for counts and suffixes is refused with its length; one that leaves some is used."""
    refuse(tmp_path, CountingModel("m" * length), "bytes too long: the file system takes 255, .* shorten the name")
    assert make_trainer(tmp_path).fit(CountingModel("m" * 195), ListData())


def test_a_path_that_is_too_long_is_refused_at_the_start(tmp_path: Path) -> None:
    """Folders that leave no room for the checkpoint's name are refused, though each name is short."""
    refuse(tmp_path / "/".join(["f" * 200] * 20), CountingModel(), "the path of the file .* too long")


class Wordy(CountingModel):
    """Adds more and more to the names of its checkpoints."""

    def __init__(self, *words: str) -> None:
        super().__init__("m")
        self.words = words

    def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
        return f"{chkpt_name}_{self.metrics['word'] if not self.words else self.words[0]}"

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.metrics["word"] = "x" * 300 if current_epoch == 1 else "short"


def test_metadata_that_is_too_long_is_refused_at_the_start(tmp_path: Path) -> None:
    """What a model adds to a name is asked for before training, and refused if the name becomes too long."""
    refuse(tmp_path, Wordy("x" * 200), "the name of the file .* too long")


def test_metadata_that_becomes_too_long_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A score that is not there yet is no error; text that is too long later on is left out, and training continues."""
    assert make_trainer(tmp_path, chkpt_frequency=1).fit(Wordy(), ListData())
    names = sorted(path.name for path in (tmp_path / "m").glob("*.pth"))
    assert names == ["m_epoch_1_iter_3.pth", "m_epoch_2_iter_6_short.pth"]
    assert caplog.text.count("a checkpoint is saved without what the model adds to its name: the name of the file") == 1


PATHS = ("chkpt_root", "log_path", "run_path", "src_root")
BAD_PATHS: list[tuple[Any, str]] = [
    ("~nosuchuser/x", "no home folder"),
    ("a\0b", "NUL"),
    ("a\ud800", "no file system can hold"),
    (b"x", "pass a path"),
    (5, "pass a path"),
]


@pytest.mark.parametrize(("path", "message"), BAD_PATHS, ids=["user", "NUL", "half a character", "bytes", "number"])
@pytest.mark.parametrize(
    "take",
    [
        *(
            lambda path, name=name: Trainer(**{name: path})
            for name in ("chkpt_root", "log_path", "run_path", "src_root")
        ),
        find_last_checkpoint,
        restore_sampler,
        SearchSpace.from_toml,
        lambda path: write_report(optuna.create_study(), path),
    ],
)
def test_every_path_is_checked(take: Callable[[Any], object], path: Any, message: str) -> None:
    """Every argument that is a path gets one clear error of ours for what no file can have."""
    with pytest.raises((ArgumentTypeError, ConfigurationError), match=message):
        take(path)


def test_a_run_works_in_a_folder_that_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With absolute paths a run trains and resumes where the working folder is gone; a relative one is refused."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for steps in (1, 2):
        options: dict[str, Any] = {"enable_file_logging": True, "log_path": tmp_path, "total_steps": steps}
        assert make_trainer(tmp_path / "root", **options).fit(CountingModel(), ListData())
    with pytest.raises(ConfigurationError, match="in which ranks are started is '.', and the working folder"):
        make_trainer(num_processes=2).fit(CountingModel(), ListData())
    with pytest.raises(ConfigurationError, match="chkpt_root is 'root', and the working folder cannot be found"):
        Trainer(chkpt_root="root")
    with pytest.raises(ConfigurationError, match="working folder cannot be found"):
        SearchSpace.from_toml("space.toml")


def test_names_of_half_characters_are_refused(tmp_path: Path) -> None:
    """A half of a surrogate pair, which no file's name can hold, is refused in save names, run names and metadata."""
    with pytest.raises(ConfigurationError, match="cannot be a folder's name"):
        CountingModel("m\ud800")
    with pytest.raises(ConfigurationError, match="run_name .* cannot be the name of a folder"):
        Trainer(run_name="m\ud800")
    refuse(tmp_path, Wordy("\ud800"), "append_metadata_to_chkpt_name")
