"""Loading files of unknown origin."""

from __future__ import annotations

import functools
import io
import os
import pickle
import random
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios.core.safe_load import (
    get_trainer_safe_types_for_load,
    register_trainer_safe_types_for_load,
    safe_torch_load,
)
from helios.core.state import TrainingState, TrainingUnit
from helios.errors import ConfigurationError, CorruptCheckpointError, DeviceUnavailableError, FileAccessError

if TYPE_CHECKING:
    from pathlib import Path


class Bomb:
    """A pickle that makes a directory when it is loaded with `pickle.load`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@functools.cache
def saved(*, as_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(50.0), "b": [1, {"x": "y"}]}, buffer, _use_new_zipfile_serialization=as_zip)
    return buffer.getvalue()


@pytest.mark.parametrize("as_zip", [True, False])
def test_plain_data_comes_back(tmp_path: Path, *, as_zip: bool) -> None:
    """Tensors and plain containers load from a path, a string and an open file, to the device of `map_location`."""
    path = tmp_path / "data.pth"
    path.write_bytes(saved(as_zip=as_zip))
    with path.open("rb") as file:
        loaded = [safe_torch_load(path), safe_torch_load(str(path)), safe_torch_load(file)]
    for data in loaded:
        assert torch.equal(data["a"], torch.arange(50.0))
        assert data["b"] == [1, {"x": "y"}]
    assert safe_torch_load(path, map_location="meta")["a"].device.type == "meta"


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_refused_and_never_run(tmp_path: Path, form: str) -> None:
    """A pickle that would run code is a CorruptCheckpointError that names file and call; nothing runs."""
    mark, path = tmp_path / "ran", tmp_path / "bomb.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"a": Bomb(mark)}, protocol=2))
    else:
        torch.save({"a": Bomb(mark)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CorruptCheckpointError, match=r"bomb.pth' was refused \(UnpicklingError: .*mkdir") as caught:
        safe_torch_load(path)
    assert "weights_only" not in str(caught.value)
    assert not mark.exists()
    pickle.loads(path.read_bytes()) if form == "pickle" else torch.load(path, weights_only=False)
    assert mark.exists(), "the bomb itself is a dud"


def test_a_foreign_pickle_is_refused_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    """A pickle that torch did not write raises an error, without torch's warning about its protocol."""
    warnings.simplefilter("always")
    with pytest.raises(CorruptCheckpointError):
        safe_torch_load(io.BytesIO(pickle.dumps({"a": 1}, protocol=4)))
    assert recwarn.list == []


def test_a_class_of_ones_own_is_refused(tmp_path: Path) -> None:
    """An object that is not plain data is refused and named, even a harmless one."""
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(CorruptCheckpointError, match=r"torch.nn.modules.linear.Linear.* plain data only"):
        safe_torch_load(path)


@given(st.booleans(), st.data())
def test_a_truncated_file_is_corrupt(as_zip: bool, data: st.DataObject) -> None:
    """A file truncated anywhere raises CorruptCheckpointError, which is what `torch.load` raises, and a ValueError."""
    whole = saved(as_zip=as_zip)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CorruptCheckpointError) as caught:
        safe_torch_load(io.BytesIO(whole[:cut]))
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, pickle.UnpicklingError)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_damaged_file_never_raises_anything_else(*, as_zip: bool) -> None:
    """Of 600 files with one flipped bit, each loads or raises CorruptCheckpointError, and many raise."""
    numbers = random.Random(5)
    whole = saved(as_zip=as_zip)
    refused = 0
    for _ in range(600):
        damaged = bytearray(whole)
        damaged[numbers.randrange(len(damaged))] ^= 1 << numbers.randrange(8)
        try:
            safe_torch_load(io.BytesIO(damaged))
        except CorruptCheckpointError:
            refused += 1
    assert refused > 50


def test_a_missing_file_is_missing_not_corrupt(tmp_path: Path) -> None:
    """A missing file raises FileNotFoundError, a directory an OSError, and both are errors of Helios."""
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        safe_torch_load(tmp_path / "nothing.pth")
    with pytest.raises(FileAccessError, match="it is a folder, and not a file"):
        safe_torch_load(tmp_path)


def test_types_of_a_trainer_can_be_allowed(tmp_path: Path) -> None:
    """A file with a trainer's counters is refused at first, and loads once their types are registered."""
    path = tmp_path / "state.pth"
    torch.save({"state": TrainingState(current_iteration=3), "unit": TrainingUnit.ITERATION}, path)
    with pytest.raises(pickle.UnpicklingError, match="TrainingState"):
        safe_torch_load(path)
    before = torch.serialization.get_safe_globals()
    try:
        register_trainer_safe_types_for_load()
        loaded = safe_torch_load(path)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    assert loaded == {"state": TrainingState(current_iteration=3), "unit": TrainingUnit.ITERATION}
    assert get_trainer_safe_types_for_load() == [TrainingState, TrainingUnit]


def test_a_device_that_is_not_here_is_not_damage(tmp_path: Path) -> None:
    """The error for a file from a GPU on a machine without one names the remedy; a misspelt device is another error."""
    path = tmp_path / "gpu.pth"
    on_cpu, on_gpu = (b"X%c\x00\x00\x00%b" % (len(name), name) for name in (b"cpu", b"cuda:99"))
    assert on_cpu in saved(as_zip=False)
    path.write_bytes(saved(as_zip=False).replace(on_cpu, on_gpu))
    with pytest.raises(
        DeviceUnavailableError, match="gpu.pth' needs a device that this machine lacks: pass map_location='cpu'"
    ):
        safe_torch_load(path)
    assert torch.equal(safe_torch_load(path, map_location="cpu")["a"], torch.arange(50.0))
    with pytest.raises(ConfigurationError, match="map_location is 'cpuu'"):
        safe_torch_load(path, map_location="cpuu")
