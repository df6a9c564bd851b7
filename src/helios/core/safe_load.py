"""Loading files of `torch.save` without running code in them."""

from __future__ import annotations

import os
import pickle
import warnings
from typing import IO, TYPE_CHECKING, Any

import torch

from helios.core.paths import accessing, ensure_regular, to_path
from helios.core.state import TrainingState, TrainingUnit
from helios.errors import ArgumentTypeError, ConfigurationError, CorruptCheckpointError, DeviceUnavailableError

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION


def safe_torch_load(f: str | os.PathLike[str] | IO[bytes], *, map_location: MAP_LOCATION = None) -> Any:
    """Load what `torch.save` wrote; code in the file is never run.

    Args:
        f: a path, or a seekable binary file.
        map_location: where to put the tensors, as in `torch.load`.

    Raises:
        ArgumentTypeError: if `f` is neither a path nor a file, or `map_location` has a type that `torch.load` rejects.
        ConfigurationError: if no file can have this path, or `map_location` is not the name of a device.
        FileAccessError: if the file cannot be opened or read; it is an `OSError`.
        CorruptCheckpointError: if the file is truncated, damaged or not by `torch.save`, or holds anything but plain
            data (tensors, numbers, strings, and lists, tuples and dictionaries of them) and objects of types that
            `torch.serialization.add_safe_globals` allows. It is a `RuntimeError` and a `pickle.UnpicklingError`, the
            two that `torch.load` raises.
        DeviceUnavailableError: if the file's tensors were saved from a device that this machine lacks, and
            `map_location` is `None`.
    """
    map_location = _check_map_location(map_location)
    if isinstance(f, str | os.PathLike):
        f = to_path(f, "f")
    elif not (hasattr(f, "read") and hasattr(f, "seek")):
        raise ArgumentTypeError(f"f is {f!r}, a {type(f).__name__}: pass a path, or a seekable binary file")
    try:
        with accessing(getattr(f, "name", f) if hasattr(f, "read") else f), warnings.catch_warnings():
            # torch warns of every pickle that it did not write; the call below shows whether it can be loaded.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            if isinstance(f, os.PathLike):
                ensure_regular(f)
            return torch.load(f, map_location=map_location, weights_only=True)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # torch does not document what a damaged file raises; flipping bits gave ten different exception types.
        raise _explain(f, error) from error


def get_trainer_safe_types_for_load() -> list[type]:
    """Return the types of a trainer's counters, for `torch.serialization.add_safe_globals`.

    Checkpoints of Helios are plain data and need none of them. A file of your own may hold a `TrainingState`.
    """
    return [TrainingState, TrainingUnit]


def register_trainer_safe_types_for_load() -> None:
    """Allow files that `safe_torch_load` and `torch.load` read to hold the types of a trainer's counters."""
    torch.serialization.add_safe_globals([*get_trainer_safe_types_for_load()])


def _check_map_location(map_location: MAP_LOCATION) -> MAP_LOCATION:
    if isinstance(map_location, str):
        try:
            return torch.device(map_location)
        except RuntimeError as error:  # A mistake of the caller, not of the file.
            first_line = str(error).partition("\n")[0]
            raise ConfigurationError(f"map_location is {map_location!r}: {first_line}") from error
    if map_location is not None and not isinstance(map_location, torch.device | dict) and not callable(map_location):
        raise ArgumentTypeError(
            f"map_location is {map_location!r}, a {type(map_location).__name__}: pass a device, as in torch.load"
        )
    return map_location


def _explain(f: str | os.PathLike[str] | IO[bytes], error: Exception) -> Exception:
    name = os.fspath(f) if isinstance(f, str | os.PathLike) else getattr(f, "name", repr(f))
    reason: BaseException = error
    if isinstance(error, pickle.UnpicklingError) and error.__context__ is not None:
        reason = error.__context__  # torch's own message advises to load the file unsafely; the cause names the reason.
    first_line = next(iter(str(reason).splitlines()), "")
    if first_line.startswith("Attempting to deserialize object on"):
        return DeviceUnavailableError(
            f"'{name}' needs a device that this machine lacks: pass map_location='cpu'. {first_line}"
        )
    return CorruptCheckpointError(
        f"'{name}' was refused ({type(reason).__name__}: {first_line}): it must be an undamaged file of torch.save "
        "that holds plain data only; code in it is never run"
    )
