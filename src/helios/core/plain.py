"""Plain data: what a checkpoint may hold.

Plain are `None`, numbers, strings, bytes, tensors, and lists, tuples, sets and dictionaries of them: what
`torch.load(..., weights_only=True)` reads without being told about any class. NumPy arrays and numbers are taken in and
given back through a tensor. Everything else is refused when it is *saved*, by its path, not when it is needed.
"""

from __future__ import annotations

import collections
import enum
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from helios.errors import ArgumentTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAVES: Final = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_ARRAY: Final = "__helios_numpy_array__"


def encode(value: Any, path: str = "state") -> Any:
    """Return `value` as plain data, sharing every part of it that is plain already.

    Args:
        value: anything.
        path: what to call `value` in an error.

    Raises:
        ArgumentTypeError: if a part is not plain data; the message has its path.
    """
    kind = type(value)
    if kind in _LEAVES or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, dict):
        return _encode_dict(value, path)
    if kind in (list, tuple, set):
        return _share(value, [encode(item, f"{path}[{i}]") for i, item in enumerate(value)], kind)
    if isinstance(value, np.ndarray) and _is_number(value.dtype):
        native = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("="))
        return {_ARRAY: torch.from_numpy(native), "dtype": value.dtype.str}
    if isinstance(value, np.generic) and _is_number(value.dtype):
        return value.item()
    raise ArgumentTypeError(
        f"{path} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold: a checkpoint is plain "
        f"data "
        "(None, numbers, strings, bytes, tensors, NumPy arrays, and lists, tuples, sets and dicts of them). "
        "Return plain data from state_dict() and rebuild the object in load_state_dict()",
    )


def _encode_dict(value: dict[Any, Any], path: str) -> Any:
    for key in value:
        if type(key) not in (str, int, float, bool, type(None), tuple):
            raise ArgumentTypeError(
                f"{path} has the key {key!r} of type {type(key).__name__}: use a string or a number"
            )
    items = {key: encode(item, f"{path}[{key!r}]") for key, item in value.items()}
    if type(value) in (dict, collections.OrderedDict, collections.Counter) and all(
        items[key] is value[key] for key in value
    ):
        return value  # As it is: a module's state_dict carries its version in an attribute.
    return items


def _share(value: Any, items: list[Any], kind: Callable[[list[Any]], Any]) -> Any:
    return value if all(new is old for new, old in zip(items, value, strict=True)) else kind(items)


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biufc" and dtype.char not in "gG"  # torch has no extended precision.


def decode(value: Any) -> Any:
    """Return what `encode` was given."""
    if isinstance(value, dict):
        if _ARRAY in value:
            return value[_ARRAY].numpy().astype(np.dtype(value["dtype"]))
        items = {key: decode(item) for key, item in value.items()}
        return value if all(items[key] is value[key] for key in value) else items
    if type(value) in (list, tuple, set):
        return _share(value, [decode(item) for item in value], type(value))
    return value


class Fingerprint:
    """Tells whether a piece of plain data has changed since it was taken.

    Numbers and strings are compared by value, tensors by identity and version, so that taking one copies no tensor.
    """

    def __init__(self, value: Any) -> None:
        """Take the fingerprint.

        Raises:
            ArgumentTypeError: if `value` is not plain data.
        """
        self._parts = _fingerprint(encode(value))

    def __eq__(self, other: object) -> bool:
        """Whether both were taken of equal numbers and strings and of the same, untouched tensors."""
        return isinstance(other, Fingerprint) and self._parts == other._parts

    __hash__ = None  # type: ignore[assignment]  # compared, never looked up


class _TensorMark:
    """A tensor as it was. It keeps the tensor alive: a new one at the same address is not mistaken for it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.version = None if tensor.is_inference() else tensor._version  # noqa: SLF001 - autograd's own counter.

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, _TensorMark) and other.tensor is self.tensor
        return same and self.version is not None and self.version == other.version  # type: ignore[attr-defined]  # same

    __hash__ = None  # type: ignore[assignment]  # compared, never looked up


def _fingerprint(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _TensorMark(value)
    if isinstance(value, dict):
        return dict, [(key, _fingerprint(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [_fingerprint(item) for item in value]
    if isinstance(value, set):
        return set, set(value)
    # The representation tells 1, 1.0 and True apart, and finds nan equal to itself.
    return type(value), repr(value) if isinstance(value, float | complex) else value


def is_plain(value: Any) -> bool:
    """Whether `value` is plain data, and no enumeration or class of its own."""
    if isinstance(value, enum.Enum):
        return False
    try:
        encode(value)
    except ArgumentTypeError:
        return False
    return True
