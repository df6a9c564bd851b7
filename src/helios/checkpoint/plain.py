"""Plain data: what a checkpoint may hold.

Plain are `None`, numbers, strings, bytes, tensors, and lists, tuples, sets and dictionaries of them: what
`torch.load(..., weights_only=True)` reads without being told about any class. NumPy arrays and numbers are taken in and
given back through a tensor. Everything else is refused when it is *saved*, by its path, not when it is needed.
"""

from __future__ import annotations

import collections
import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from helios.checkpoint.shard_tree import is_sharded
from helios.errors import ArgumentTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAVES: Final = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_TENSORS: Final = (torch.Tensor, torch.nn.Parameter)  # No other subclass is read back by weights_only.
_KEYS: Final = (str, int, float, bool, type(None))
_ARRAY: Final = "__helios_numpy_array__"
_NO_BYTES: Final = "__helios_empty_bytes__"  # weights_only reads bytes, but not b"".


def encode(value: Any, path: str = "state") -> Any:  # noqa: PLR0911 - one return for each kind of data.
    """Return `value` as plain data, sharing every part of it that is plain already.

    Args:
        value: anything.
        path: what to call `value` in an error.

    Raises:
        ArgumentTypeError: if a part is not plain data; the message has its path.
    """
    kind = type(value)
    if kind in _LEAVES:
        return {_NO_BYTES: True} if value == b"" else value
    if kind in _TENSORS:
        _encode_attributes(value, path)
        return value
    if isinstance(value, dict):
        return _encode_dict(value, path)
    if kind in (list, tuple):
        return _share(value, [encode(item, f"{path}[{i}]") for i, item in enumerate(value)], kind)
    if kind is set:
        return _share(value, [_encode_key(encode(item, path), path, "member") for item in value], kind)
    if kind is np.ndarray and _is_number(value.dtype):  # A subclass (a masked array, say) holds more than numbers.
        native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        return {_ARRAY: torch.from_numpy(native), "dtype": value.dtype.str}
    if isinstance(value, np.generic) and _is_number(value.dtype):
        return value.item()
    if isinstance(value, torch.nn.UninitializedParameter | torch.nn.UninitializedBuffer):
        raise ArgumentTypeError(f"{path} has no shape yet: run a batch through the lazy module when it is made")
    if is_sharded(value):
        raise ArgumentTypeError(
            f"{path} is a sharded tensor (DTensor), of which this process has a part alone: save it with "
            "helios.checkpoint.shard_files.save_sharded on all ranks, or its full_tensor()",
        )
    raise ArgumentTypeError(
        f"{path} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold: a checkpoint is plain "
        "data (None, numbers, strings, bytes, tensors, NumPy arrays, and lists, tuples, sets and dicts of them). "
        "Return plain data from state_dict() and rebuild the object in load_state_dict()",
    )


def _encode_attributes(value: object, path: str) -> None:
    # They are pickled along with the object, and refused along with it.
    for name, attribute in vars(value).items():
        encode(attribute, f"{path}.{name}")


def _encode_dict(value: dict[Any, Any], path: str) -> Any:
    for key in value:
        if _encode_key(key, path, "key") in (_ARRAY, _NO_BYTES):
            raise ArgumentTypeError(f"{path} has the key {key!r}, which Helios uses for itself: use another one")
    items = {key: encode(item, f"{path}[{key!r}]") for key, item in value.items()}
    if type(value) in (dict, collections.OrderedDict, collections.Counter) and all(
        items[key] is value[key] for key in value
    ):
        if type(value) is not dict:
            _encode_attributes(value, path)
        return value  # As it is: a module's state_dict carries its version in an attribute.
    return items


def _encode_key(key: object, path: str, what: str) -> Any:
    if not _is_key(key):
        kind = type(key).__name__
        raise ArgumentTypeError(
            f"{path} has the {what} {key!r} of type {kind}: use a string, a number, or a tuple of them"
        )
    return key


def _is_key(key: object) -> bool:
    return all(_is_key(part) for part in key) if type(key) is tuple else type(key) in _KEYS


def _share(value: Any, items: list[Any], kind: Callable[[list[Any]], Any]) -> Any:
    return value if all(new is old for new, old in zip(items, value, strict=True)) else kind(items)


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biufc" and dtype.char not in "gG"  # torch has no extended precision.


def decode(value: Any) -> Any:
    """Return what `encode` was given."""
    if isinstance(value, dict):
        if _ARRAY in value:
            return value[_ARRAY].numpy().astype(np.dtype(value["dtype"]))
        if _NO_BYTES in value:
            return b""
        items = {key: decode(item) for key, item in value.items()}
        return value if all(items[key] is value[key] for key in value) else items
    if type(value) in (list, tuple, set):
        return _share(value, [decode(item) for item in value], type(value))
    return value


def dump(data: Any) -> bytes:
    """Return plain data as bytes, for another process: `pickle` by itself reads no tensor of every dtype back."""
    buffer = io.BytesIO()
    torch.save(encode(data), buffer)  # noqa: TID251 - it goes to no file.
    return buffer.getvalue()


def load(data: bytes) -> Any:
    """Return what `dump` was given. Never runs code."""
    return decode(torch.load(io.BytesIO(data), weights_only=True))
