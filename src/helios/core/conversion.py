"""Conversions of optional arguments and of single values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

from helios.errors import ConfigurationError

T = TypeVar("T")


def get_from_optional(opt: T | None, raise_on_empty: bool = False) -> T:
    """Return an optional value that is not `None`.

    Args:
        opt: a value or `None`.
        raise_on_empty: which error to raise for `None`. `False`, an `AssertionError`: `None` is a mistake in the
            program. `True`, a `ConfigurationError`: `None` is a mistake of the user.

    Raises:
        AssertionError: if `opt` is `None` and `raise_on_empty` is false.
        ConfigurationError: if `opt` is `None` and `raise_on_empty` is true.
    """
    if opt is not None:
        return opt
    message = "an optional value is None: set it before, or test it for None"
    raise ConfigurationError(message) if raise_on_empty else AssertionError(message)


@overload
def convert_to_list(x: str) -> list[str]: ...


@overload
def convert_to_list(x: bytes) -> list[bytes]: ...


@overload
def convert_to_list(x: Sequence[T]) -> list[T]: ...


@overload
def convert_to_list(x: T) -> list[T]: ...


def convert_to_list(x: object) -> object:
    """Return a new list of the elements of a sequence; of `x` alone if it is no sequence.

    Strings, bytes, tensors and arrays count as one value.

    >>> convert_to_list((1, 2)), convert_to_list(1), convert_to_list("ab")
    ([1, 2], [1], ['ab'])
    """
    return list(x) if isinstance(x, Sequence) and not isinstance(x, str | bytes | bytearray) else [x]
