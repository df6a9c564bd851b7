"""Writes immutable values of NumPy, `datetime`, `decimal` and similar modules as plain data.

Each becomes a dictionary with the name of its kind under `TAG`. Reading one calls constructors that are listed here,
and nothing that a file names.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import pathlib
import re
import uuid
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from helios.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

_FEW: Final = 1024
TAG: Final = "$"  # This key distinguishes a description from a user's dictionary.

PLAIN: Final = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size)
_TORCH_NAMES: Final = (torch.layout, torch.memory_format)
_SINGLETONS: Final = {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}
_PATHS: Final = (pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath)


def encode_value(value: Any) -> Any | None:  # noqa: C901, PLR0911 - one return for each kind.
    """Return an immutable value as plain data; `None` if its type is not known here.

    `None` and values of the types in `PLAIN` are plain already, and must not be passed.
    """
    kind = type(value)
    if kind is bytes:
        return value or {TAG: "bytes"}  # `weights_only` reads bytes, but not b"".
    if isinstance(value, np.generic):
        return _encode_scalar(value)
    if isinstance(value, np.dtype):
        return {TAG: "numpy.dtype", "of": _describe(value)}
    if kind in (decimal.Decimal, fractions.Fraction, uuid.UUID):
        return {TAG: kind.__name__, "of": str(value)}
    if kind in _PATHS:
        return {TAG: "path", "class": kind.__name__, "of": str(value)}
    if kind in (datetime.datetime, datetime.date, datetime.time):
        return _encode_time(value)
    if kind is datetime.timedelta:
        return {TAG: "timedelta", "of": [value.days, value.seconds, value.microseconds]}
    if kind is datetime.timezone:
        return {TAG: "timezone", "of": encode_value(value.utcoffset(None)), "name": value.tzname(None)}
    if kind in (range, slice):
        parts = [value.start, value.stop, value.step]
        return {TAG: kind.__name__, "of": parts} if all(type(part) in (int, type(None)) for part in parts) else None
    if kind is re.Pattern:
        return {
            TAG: "pattern",
            "of": encode_value(value.pattern) if type(value.pattern) is bytes else value.pattern,
            "flags": value.flags,
        }
    if kind in _TORCH_NAMES:
        return {TAG: "torch", "of": str(value).removeprefix("torch.")}
    return next(({TAG: name} for name, one in _SINGLETONS.items() if value is one), None)


def encode_array(array: np.ndarray[Any, Any]) -> dict[str, Any] | None:
    """Return an array of any dtype but `object` as plain data; `None` for an array of objects.

    Args:
        array: an `ndarray`; for a subclass, the array that it is a view of.
    """
    if array.dtype.hasobject:
        return None
    is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    data = np.ascontiguousarray(array.T if is_fortran else array)
    # Small arrays are written as bytes, because each tensor takes a record in the file.
    content: Any = data.tobytes()
    if data.nbytes > _FEW or not content:
        content = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0)
    return {
        TAG: "array",
        "dtype": _describe(array.dtype),
        "shape": list(array.shape),
        "fortran": is_fortran,
        "of": content,
    }


def decode_array(node: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the array that `encode_array` got, with its own memory."""
    dtype, shape = _read_dtype(node["dtype"]), tuple(node["shape"])
    data = np.empty(shape[::-1] if node["fortran"] else shape, dtype=dtype)
    if data.nbytes:
        content = node["of"]
        flat = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else content.numpy()
        data.reshape(-1).view(np.uint8)[...] = flat
    return data.T if node["fortran"] else data


def is_value(node: dict[str, Any]) -> bool:
    """Return whether this is a result of `encode_value`."""
    return node.get(TAG) in _DECODERS


def decode_value(node: dict[str, Any]) -> Any:
    """Return the value that `encode_value` got.

    Raises:
        CheckpointMismatchError: if this is not its result.
    """
    try:
        return _DECODERS[node[TAG]](node)
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointMismatchError(
            f"{node!r} describes no value: the checkpoint is not as it was written"
        ) from error


def _encode_scalar(value: np.generic) -> dict[str, Any] | None:
    node = encode_array(np.asarray(value))
    return None if node is None else {**node, TAG: "numpy.scalar"}


def _decode_scalar(node: dict[str, Any]) -> np.generic:
    scalar: Any = decode_array(node)[()]
    return scalar  # type: ignore[no-any-return]  # what `()` reads is a scalar


def _describe(dtype: np.dtype[Any]) -> Any:
    return _as_lists(np.lib.format.dtype_to_descr(dtype))


def _as_lists(descr: Any) -> Any:
    return [_as_lists(part) for part in descr] if isinstance(descr, list | tuple) else descr


def _read_dtype(descr: Any) -> np.dtype[Any]:
    def as_field(field: list[Any]) -> tuple[Any, ...]:
        name, kind, *shape = field
        names = tuple(name) if isinstance(name, list) else name
        inner = [as_field(each) for each in kind] if isinstance(kind, list) else kind
        return (names, inner, *(tuple(each) for each in shape))

    return np.lib.format.descr_to_dtype([as_field(each) for each in descr] if isinstance(descr, list) else descr)


def _encode_time(value: datetime.datetime | datetime.date | datetime.time) -> dict[str, Any] | None:
    zone = getattr(value, "tzinfo", None)
    if zone is not None and type(zone) is not datetime.timezone:
        return None  # Named time zones come from a database, which may be another one when the checkpoint is read.
    naive = value.replace(tzinfo=None) if zone is not None else value  # type: ignore[call-arg]  # it has a zone
    fold = getattr(value, "fold", 0)
    return {
        TAG: type(value).__name__,
        "of": naive.isoformat(),
        "zone": None if zone is None else encode_value(zone),
        "fold": fold,
    }


def _decode_time(node: dict[str, Any]) -> datetime.datetime | datetime.date | datetime.time:
    kinds: dict[str, Any] = {"datetime": datetime.datetime, "date": datetime.date, "time": datetime.time}
    value: Any = kinds[node[TAG]].fromisoformat(node["of"])
    if isinstance(value, datetime.datetime | datetime.time):
        zone = None if node["zone"] is None else decode_value(node["zone"])
        return value.replace(tzinfo=zone, fold=node["fold"])
    return value  # type: ignore[no-any-return]  # `value` is one of the three.


def _decode_zone(node: dict[str, Any]) -> datetime.timezone:
    offset = decode_value(node["of"])
    zone = datetime.timezone(offset)
    return zone if zone.tzname(None) == node["name"] else datetime.timezone(offset, node["name"])


def _decode_path(node: dict[str, Any]) -> pathlib.PurePath:
    kinds = {kind.__name__: kind for kind in _PATHS}
    path: pathlib.PurePath = kinds[node["class"]](node["of"])
    return path


def _decode_pattern(node: dict[str, Any]) -> re.Pattern[Any]:
    pattern = node["of"]
    return re.compile(decode_value(pattern) if isinstance(pattern, dict) else pattern, node["flags"])


def _decode_torch(node: dict[str, Any]) -> Any:
    value = getattr(torch, node["of"])
    if type(value) not in _TORCH_NAMES:
        raise TypeError(node["of"])
    return value


_DECODERS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "bytes": lambda _: b"",
    "long": lambda node: int(node["of"], 16),
    "numpy.scalar": _decode_scalar,
    "numpy.dtype": lambda node: _read_dtype(node["of"]),
    "Decimal": lambda node: decimal.Decimal(node["of"]),
    "Fraction": lambda node: fractions.Fraction(node["of"]),
    "UUID": lambda node: uuid.UUID(node["of"]),
    "path": _decode_path,
    "datetime": _decode_time,
    "date": _decode_time,
    "time": _decode_time,
    "timedelta": lambda node: datetime.timedelta(*node["of"]),
    "timezone": _decode_zone,
    "range": lambda node: range(*(0 if part is None else part for part in node["of"])),
    "slice": lambda node: slice(*node["of"]),
    "pattern": _decode_pattern,
    "torch": _decode_torch,
    **dict.fromkeys(_SINGLETONS, lambda node: _SINGLETONS[node[TAG]]),
}
FACTORIES: Final[dict[str, Any]] = {
    kind.__name__: kind
    for kind in (
        list,
        dict,
        set,
        int,
        float,
        str,
        bool,
        bytes,
        bytearray,
        tuple,
        frozenset,
        complex,
        collections.Counter,
        collections.OrderedDict,
        collections.deque,
    )
}
