from __future__ import annotations

import ast
import contextlib
import datetime
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import helios
from helios.errors import ArgumentTypeError, StoreContentError, TrainingError
from helios.ranks import messages
from helios.ranks.messages import decode_message, encode_message, register_message_type

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary() | st.datetimes()
)
KEYS = st.none() | st.integers() | st.text() | st.tuples(st.integers(), st.booleans())
VALUES = st.recursive(
    LEAVES,
    lambda parts: (
        st.lists(parts)
        | st.lists(parts).map(tuple)
        | st.dictionaries(KEYS, parts)
        | st.sets(KEYS)
        | st.frozensets(KEYS)
    ),
)


def describe(value: Any) -> Any:
    """Return what tells 1, 1.0 and True apart, and finds nan equal to itself."""
    if isinstance(value, dict):
        return dict, [(describe(key), describe(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [describe(item) for item in value]
    if isinstance(value, datetime.datetime):
        value = value.replace(fold=0)  # It tells the two hours apart that a summer's end has, and is not kept.
    return type(value), value if isinstance(value, set | frozenset) else repr(value)


@given(VALUES)
def test_plain_data_is_read_back_equal(value: Any) -> None:
    """Every value that a message can contain is read back equal, with the same types, in the same order."""
    assert describe(decode_message(encode_message(value), "key")) == describe(value)


@given(st.binary() | VALUES.map(pickle.dumps) | st.text().map(str.encode) | VALUES.map(repr).map(str.encode))
def test_content_that_is_not_a_message_is_refused(content: bytes) -> None:
    """The content of a store is read as plain data, or refused with one error that names the key."""
    with contextlib.suppress(StoreContentError):
        value = decode_message(content, "key")
        assert json.loads(encode_message(value)) is not None or value is None


@pytest.mark.parametrize(
    "content",
    [
        b'{"object": []}',
        b'{"tuple": [], "list": []}',
        b'{"dict": [[[], 1]]}',
        b'{"bytes": 3}',
        b'{"datetime": "now"}',
        b"[" * 100_000,
        b"1" * 10_000,
    ],
)
def test_a_crafted_message_is_refused(content: bytes) -> None:
    """Unknown names, contents of the wrong type, deep nesting and long contents raise the same error."""
    with pytest.raises(StoreContentError, match="under 'key', which no rank of this run writes: find out") as caught:
        decode_message(content, "key")
    assert isinstance(caught.value, TrainingError)


class Colour(str):
    """Derived from what messages hold."""

    __slots__ = ()


class Point:
    def __init__(self, x: float) -> None:
        self.x = x


def test_values_of_other_types_are_refused() -> None:
    """Values that are not plain data, and subclasses, are refused with their path; NumPy scalars are accepted."""
    for value in (Colour("red"), Point(1), Ellipsis, 1j):
        with pytest.raises(ArgumentTypeError, match=r"^argument 1\[0\]\['a'\] is a .*, which ranks cannot send"):
            encode_message([{"a": value}], "argument 1")
    assert decode_message(encode_message([np.int64(3), np.float32(0.5), np.bool_(1)]), "key") == [3, 0.5, True]
    assert math.isnan(decode_message(encode_message(np.float64("nan")), "key"))
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ArgumentTypeError, match="^message contains itself, or is nested too deep"):
        encode_message(circle)


def test_a_class_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of a registered class are constructed from plain data, at any place in a message."""
    for table in ("_names", "_readers"):
        monkeypatch.setattr(messages, table, dict(getattr(messages, table)))
    register_message_type(Point, lambda point: point.x, Point)
    (arrived,) = decode_message(encode_message([Point(0.5)]), "key")
    assert type(arrived) is Point
    assert arrived.x == 0.5
    encoded = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    assert decode_message(encode_message(encoded), "key") == encoded


def test_nothing_that_uses_a_store_unpickles() -> None:
    """Modules that read from a store do not import pickle, except for pipes and values of their own process."""
    root = Path(helios.__file__).parent
    reading = [path for path in root.rglob("*.py") if "ranks.stores" in path.read_text(encoding="utf-8")]
    assert len(reading) >= 5
    unpickling = {path.name for path in reading if "pickle" in _imports(path)}
    assert unpickling == {"spawn.py", "rank.py"}, "these two read from the pipes between them, and from no store"


def _imports(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
