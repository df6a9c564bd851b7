"""Things in the place of a checkpoint that are none: passed over by name, and the older ones used."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios.checkpoint.archive import load_archive
from helios.checkpoint.format import FORMAT
from helios.errors import CheckpointError, CorruptCheckpointError, HeliosError
from helios.plugins.optuna import restore_sampler
from helios.testing import TinyDataModule, TinyModel, are_equal
from helios.trainer import find_last_checkpoint
from tests.faults.sealing import seal, seal_nested
from tests.trainer.parts import make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OPTIONS: dict[str, Any] = {"train_unit": "iteration", "chkpt_frequency": 2}


def train(root: Path, steps: int) -> TinyModel:
    model = TinyModel()
    assert make_trainer(root, total_steps=steps, **OPTIONS).fit(model, TinyDataModule())
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the state of a run that nobody disturbed."""
    return train(tmp_path_factory.mktemp("whole"), 6).state_dict()


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a checkpoint of such a run holds."""
    root = tmp_path_factory.mktemp("contents")
    train(root, 4)
    return load_archive(root / "tiny" / "tiny_epoch_2_iter_4.pth")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def put_folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)


def put_folder_of_devices(path: Path) -> None:
    path.mkdir()
    (path / "plain.pth").symlink_to("/dev/zero")


def put_shards(path: Path) -> None:
    seal(path / "plain.pth", {"data": [1], "shards": 3})


INTRUDERS: dict[str, Callable[[Path], None]] = {
    "a link to a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to a device without start": lambda path: path.symlink_to("/dev/null"),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": link_to_itself,
    "a pipe": os.mkfifo,
    "a folder": put_folder,
    "a folder of devices": put_folder_of_devices,
    "a folder whose archive holds other things": put_shards,
    "a list": lambda path: seal(path, [1]),
    "an empty dictionary": lambda path: seal(path, {}),
    "weights alone": lambda path: seal(path, torch.nn.Linear(1, 1).state_dict()),
    "numbers for names": lambda path: seal(path, {1: 2, "format": FORMAT, "model": 3}),
    "lists that are nested": lambda path: seal_nested(path, 100_000),
    "an array that is none": lambda path: seal(path, {"__helios_numpy_array__": 3, "dtype": 4}),
}


@pytest.mark.parametrize("what", INTRUDERS)
def test_an_intruder_is_passed_over_by_name(
    tmp_path: Path, whole: dict[str, Any], caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """The log names what stands in the place of the newest checkpoint; the older one is resumed, equal to the bit."""
    train(tmp_path, 4)
    path = tmp_path / "tiny" / "tiny_epoch_9_iter_900.pth"
    INTRUDERS[what](path)
    assert find_last_checkpoint(path.parent) == path.parent / "tiny_epoch_2_iter_4.pth"
    assert are_equal(train(tmp_path, 6).state_dict(), whole)
    skipped = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(skipped) >= 2  # One at least for each of the two calls.
    assert all(f"skipped the checkpoint {path}: " in line for line in skipped)


@pytest.mark.parametrize("what", INTRUDERS)
def test_an_intruder_alone_ends_the_run(tmp_path: Path, what: str) -> None:
    """Where there is nothing else, a run does not begin anew by itself: it says what is there."""
    path = tmp_path / "tiny" / "tiny_epoch_9_iter_900.pth"
    path.parent.mkdir()
    INTRUDERS[what](path)
    with pytest.raises(CheckpointError, match="none of the checkpoints in .* can be used: .*move them away"):
        train(tmp_path, 6)


def test_a_checkpoint_takes_the_place_of_what_has_its_name(tmp_path: Path, whole: dict[str, Any]) -> None:
    """A link or a folder under the name of a checkpoint to come is replaced by the checkpoint, and its target stays."""
    train(tmp_path / "a", 4)
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / "a" / "tiny" / "tiny_epoch_2_iter_6.pth").symlink_to(target)
    assert are_equal(train(tmp_path / "a", 6).state_dict(), whole)
    assert target.read_text() == "kept"
    assert not (tmp_path / "a" / "tiny" / "tiny_epoch_2_iter_6.pth").is_symlink()


@pytest.mark.parametrize("what", INTRUDERS)
def test_an_intruder_among_samplers_is_named(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """`restore_sampler` passes over what is no file, and refuses other files: with the path, and at once."""
    path = tmp_path / "sampler-000001_trial-0.pth"
    INTRUDERS[what](path)
    if path.is_file():
        with pytest.raises(CorruptCheckpointError, match="sampler-000001_trial-0.pth"):
            restore_sampler(tmp_path)
    else:
        assert restore_sampler(tmp_path) is None
        assert f"skipped the sampler in {path}, which cannot be read" in caplog.text


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Iterate over the places in a tree of dictionaries and lists."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_in(item, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of the tree with another value at one place."""
    if not path:
        return value
    tree = copy.copy(tree)
    tree[path[0]] = replaced(tree[path[0]], path[1:], value)
    return tree


OTHERS: list[Any] = [None, True, -1, 0.5, "text", b"bytes", [], {}, {"a": 1}, [1, "a"], (1,), torch.ones(2), 10**30]


# What is below the names in these is torch's own or the model's.
OPAQUE = [("model", "state"), ("model", "base", "attributes")]


def mutate(tmp_path: Path, contents: dict[str, Any], shift: int) -> list[str]:
    """Return what errors of Python's own were raised, and by what."""
    raised = []
    for number, path in enumerate(list(paths_in(contents))):
        other = OTHERS[(number + shift) % len(OTHERS)]
        seal(tmp_path / str(number) / "tiny" / "tiny_epoch_2_iter_4.pth", replaced(contents, path, other))
        try:
            train(tmp_path / str(number), 6)
        except HeliosError:
            pass
        except Exception as error:  # noqa: BLE001 - what there may be is what is found out.
            is_within = [path[: len(part)] == part and len(path) > len(part) + 1 for part in OPAQUE]
            if any(is_within):
                continue  # A value of torch's own or of the model's: only who uses it can tell that it makes no sense.
            raised.append(f"{path} with {other!r}: {error!r}")
    return raised


def test_values_of_other_kinds_never_raise_errors_of_python(tmp_path: Path, contents: dict[str, Any]) -> None:
    """A sealed checkpoint with a value of another kind, at every place, is trained from or refused with our errors."""
    assert mutate(tmp_path, contents, 0) == []


@pytest.mark.soak
@pytest.mark.parametrize("shift", range(1, len(OTHERS)))
def test_values_of_all_other_kinds_never_raise_errors_of_python(
    tmp_path: Path, contents: dict[str, Any], shift: int
) -> None:
    """As the test above, with every kind at every place."""
    assert mutate(tmp_path, contents, shift) == []
