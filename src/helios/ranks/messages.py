"""Messages that ranks leave for each other in a key-value store: plain data, as JSON.

Whoever reaches the port of a store can write to it, under every key. So nothing that is read from one is unpickled. A
message holds numbers, strings and containers of them, and objects of the classes that were registered here, each made
by a function that takes plain data. No class is looked up by a name that stands in a message.
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

_JSON: Final = (type(None), bool, int, float, str)  # Exactly these: what is derived from them would arrive as them.

_names: dict[type, tuple[str, Callable[[Any], Any]]] = {}
_readers: dict[str, Callable[[Any], Any]] = {}


def register_message_type(
    kind: type, to_plain: Callable[[Any], Any], from_plain: Callable[[Any], Any], name: str | None = None
) -> None:
    """Let messages hold the objects of a class.

    Args:
        kind: the class; objects of classes derived from it are refused as before.
        to_plain: returns what `from_plain` needs; may hold anything that messages can hold.
        from_plain: makes an equal object. Strangers choose what it is given.
        name: what stands in messages; the name of the class by default.
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
        what: what to call it in an error.

    Raises:
        ArgumentTypeError: if a message cannot hold a part of it; the error has its path.
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
    """Return what `encode_message` was given. Nothing in the message is run.

    Args:
        message: what stands in the store.
        key: under which key it stands, for the error.

    Raises:
        StoreContentError: if this is no such message.
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
    """Return the error about what no rank has written."""
    return StoreContentError(
        f"the store of the run holds {content[:40]!r} under {key!r}, which no rank of this run writes: find out who "
        "else reaches its port, and start the run again"
    )
