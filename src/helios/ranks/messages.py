"""Messages that ranks send each other through a key-value store: plain data, as JSON.

Anyone who can connect to the port of a store can write to it, under every key, so nothing that is read from it is
unpickled. A message contains numbers, strings, containers of these, and objects of registered classes. Each registered
class has a function that makes an object from plain data. A message cannot name any other class.
"""

from __future__ import annotations

import base64
import datetime
import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from helios.errors import ArgumentTypeError, StoreContentError

if TYPE_CHECKING:
    from collections.abc import Callable

_JSON: Final = (type(None), bool, int, float, str)  # Exactly these types: a subclass would arrive as its base class.

_names: dict[type, tuple[str, Callable[[Any], Any]]] = {}
_readers: dict[str, Callable[[Any], Any]] = {}


def register_message_type(
    kind: type, to_plain: Callable[[Any], Any], from_plain: Callable[[Any], Any], name: str | None = None
) -> None:
    """Allow objects of a class in messages.

    Args:
        kind: the class; objects of its subclasses are refused.
        to_plain: returns the argument of `from_plain`, which may be any value that messages can contain.
        from_plain: makes an equal object. Its argument is untrusted.
        name: the name in messages; by default the name of the class.
    """
    name = kind.__name__ if name is None else name
    _names[kind] = name, to_plain
    _readers[name] = from_plain


register_message_type(tuple, list, tuple)
register_message_type(set, list, set)
register_message_type(frozenset, list, frozenset)
register_message_type(dict, dict.items, dict)
register_message_type(bytes, lambda value: base64.b64encode(value).decode(), base64.b64decode)
register_message_type(datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat)


def encode_message(value: Any, what: str = "message") -> bytes:
    """Return a value as a message.

    Args:
        value: the value.
        what: the name of the value, for an error.

    Raises:
        ArgumentTypeError: if messages cannot contain a part of it; the error has the path of the part.
    """
    try:
        return json.dumps(_encode(value, what)).encode()
    except RecursionError:
        raise ArgumentTypeError(f"{what} contains itself, or is nested too deep to be sent to other ranks") from None


def _encode(value: Any, path: str) -> Any:
    kind = type(value)
    if kind in _JSON:
        return value
    if kind is list:
        return [_encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if kind is dict:
        return {"dict": [[_encode(key, path), _encode(item, f"{path}[{key!r}]")] for key, item in value.items()]}
    if kind in _names:
        name, to_plain = _names[kind]
        return {name: _encode(to_plain(value), path)}
    if isinstance(value, np.generic) and type(value.item()) in _JSON:
        return value.item()
    raise ArgumentTypeError(
        f"{path} is a {kind.__module__}.{kind.__qualname__}, which ranks cannot send each other over the store of "
        "torchrun: use None, booleans, numbers, strings, bytes, and lists, tuples, sets and dictionaries of them"
    )


def decode_message(message: bytes, key: str) -> Any:
    """Return the value that `encode_message` got. Nothing in the message is executed.

    Args:
        message: the content of the store.
        key: its key, for the error.

    Raises:
        StoreContentError: if it is not such a message.
    """
    try:
        return _decode(json.loads(message))
    except Exception as error:
        raise foreign_content(key, message) from error


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    return _readers[name](_decode(content))


def foreign_content(key: str, content: bytes) -> StoreContentError:
    """Return the error about content that no rank has written."""
    return StoreContentError(
        f"the store of the run holds {content[:40]!r} under {key!r}, which no rank of this run writes: find out who "
        "else reaches its port, and start the run again"
    )
