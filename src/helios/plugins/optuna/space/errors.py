"""`SpaceErrors`, which collects all errors in the definition of a search space and raises them as one."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Final

from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

_TYPE_NAMES: Final = {
    "str": "a string",
    "int": "an integer",
    "bool": "a boolean",
    "NoneType": "None",
    "dict": "a table",
}


class SpaceErrors:
    """The errors in the definition of a search space.

    Args:
        source: the origin of the definition; the message begins with it.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._messages: list[str] = []
        self._all_are_types = True

    def __len__(self) -> int:
        """Return the number of errors so far."""
        return len(self._messages)

    def add(self, name: object, message: str, *, of_type: bool = False) -> None:
        """Add an error in the definition of a parameter; `of_type` states that a value has the wrong type."""
        self._messages.append(f"parameter {quote(name)}: {message}")
        self._all_are_types &= of_type

    def raise_if_any(self) -> None:
        """Raise one exception with the messages of all errors, if there are any.

        Raises:
            ArgumentTypeError: if every error is a wrong type.
            ConfigurationError: if there are other errors.
        """
        if not self._messages:
            return
        if len(self._messages) == 1:
            text = f"{self._source}: {self._messages[0]}"
        else:
            text = "\n  - ".join([f"{self._source}: {len(self._messages)} errors:", *self._messages])
        raise ArgumentTypeError(text) if self._all_are_types else ConfigurationError(text)


def quote(value: object) -> str:
    """Return a value as TOML if TOML can express it, and as Python otherwise."""
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(quote, value))}]"
    return repr(value)


def type_name(value: object) -> str:
    """Return "a string", "an integer", ..."""
    kind = type(value)
    if kind.__module__ == "builtins":
        return _TYPE_NAMES.get(kind.__name__, f"a {kind.__name__}")
    return f"a {kind.__module__}.{kind.__qualname__}"


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" if a known name is similar to the given one, and an empty string otherwise."""
    close = difflib.get_close_matches(str(given), known, n=1)
    return f"; did you mean {quote(close[0])}?" if close else ""
