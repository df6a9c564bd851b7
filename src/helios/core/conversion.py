"""From what callers may pass to what code wants to work with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

from helios.errors import ConfigurationError

T = TypeVar("T")


def get_from_optional(opt: T | None, raise_on_empty: bool = False) -> T:
    """Return the value of an optional that holds one.

    Args:
        opt: a value or `None`.
        raise_on_empty: which error reports a `None`. `False`: the caller is sure that there is a value, so a `None` is
            a mistake in the program, an `AssertionError`. `True`: it may well be missing, a `ConfigurationError`.

    Raises:
        AssertionError: if `opt` is `None` and `raise_on_empty` is false.
        ConfigurationError: if `opt` is `None` and `raise_on_empty` is true.
    """
    if opt is not None:
        return opt
    message = "an optional was read that is None: set it before, or test it for None"
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
    """Return a new list of the elements of a sequence, or of `x` alone if it is none.

    Strings, bytes, tensors and arrays count as one value.

    >>> convert_to_list((1, 2)), convert_to_list(1), convert_to_list("ab")
    ([1, 2], [1], ['ab'])
    """
    return list(x) if isinstance(x, Sequence) and not isinstance(x, str | bytes | bytearray) else [x]
