"""Conversions of optional arguments and of single values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload

from helios.errors import ArgumentTypeError, EmptyOptionalError

T = TypeVar("T")


def get_from_optional(opt_var: T | None, raise_on_empty: bool = False) -> T:
    """Return an optional value that is not `None`.

    Args:
        opt_var: a value or `None`.
        raise_on_empty: which error to raise for `None`. `False`, an `AssertionError`: `None` is a mistake in the
            program. `True`, an `EmptyOptionalError`: `None` is a mistake of the user.

    Raises:
        AssertionError: if `opt_var` is `None` and `raise_on_empty` is false.
        EmptyOptionalError: if `opt_var` is `None` and `raise_on_empty` is true; it is a `RuntimeError`, too.
    """
    if opt_var is not None:
        return opt_var
    message = "an optional value is None: set it before, or test it for None"
    raise EmptyOptionalError(message) if raise_on_empty else AssertionError(message)


@overload
def convert_to_list(var: str) -> list[str]: ...


@overload
def convert_to_list(var: bytes) -> list[bytes]: ...


@overload
def convert_to_list(var: Sequence[T]) -> list[T]: ...


@overload
def convert_to_list(var: T) -> list[T]: ...


def convert_to_list(var: object) -> object:
    """Return a new list of the elements of a sequence; of `var` alone if it is no sequence.

    Strings, bytes, tensors and arrays count as one value.

    >>> convert_to_list((1, 2)), convert_to_list(1), convert_to_list("ab")
    ([1, 2], [1], ['ab'])
    """
    return list(var) if isinstance(var, Sequence) and not isinstance(var, str | bytes | bytearray) else [var]


def as_exception_types(types: type[BaseException] | Sequence[type[BaseException]]) -> list[type[BaseException]]:
    """Return exception types as a new list, also for a single one.

    Raises:
        ArgumentTypeError: if there is something else among them.
    """
    kinds: list[type[BaseException]] = convert_to_list(types)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ArgumentTypeError(f"{kind!r} is no exception type: pass classes derived from BaseException")
    return kinds
