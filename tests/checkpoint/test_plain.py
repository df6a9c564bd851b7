from __future__ import annotations

import collections
import enum
import io
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.checkpoint.plain import decode, dump, encode, load
from helios.errors import ArgumentTypeError
from helios.testing import are_equal

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
NUMPY_TYPES = ["<f4", "<f8", ">f8", "<f2", "<i8", ">i4", "u1", "<u2", "<u8", "?", "<c8", "<c16"]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    return torch.arange(int(np.prod(shape))).reshape(shape).to(draw(st.sampled_from(DTYPES)))


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(draw(st.sampled_from(NUMPY_TYPES)))
    return array.T if draw(st.booleans()) else array


KEYS = st.recursive(
    st.text(max_size=5) | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none(),
    lambda keys: st.tuples(keys, keys),
    max_leaves=3,
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from([torch.float16, torch.device("cpu"), torch.Size([2, 3])])
    | st.sets(st.integers() | st.text(max_size=3), max_size=3)
    | tensors()
)
PLAIN = st.recursive(
    LEAVES | arrays(),
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.tuples(parts, parts)
        | st.dictionaries(KEYS, parts, max_size=3)
        | st.dictionaries(KEYS, parts, max_size=3).map(collections.OrderedDict)
    ),
    max_leaves=8,
)


def are_same(first: Any, second: Any) -> bool:
    """Whether two values are alike, NumPy arrays by type, shape and bytes."""
    if isinstance(first, np.ndarray):
        same = isinstance(second, np.ndarray) and first.dtype == second.dtype and first.shape == second.shape
        return same and first.tobytes() == second.tobytes()
    if isinstance(first, dict):
        return isinstance(second, dict) and are_same(list(first.items()), list(second.items()))
    if isinstance(first, list | tuple) and type(first) is not torch.Size:
        return type(first) is type(second) and len(first) == len(second) and all(map(are_same, first, second))
    return are_equal(first, second)


@settings(max_examples=60)
@given(PLAIN)
def test_what_is_accepted_can_be_read_back(value: Any) -> None:
    """Whatever `encode` lets through is read by `weights_only` loading and decoded to the same, to the bit."""
    file = io.BytesIO()
    torch.save(encode({"value": value}), file)
    file.seek(0)
    loaded = decode(torch.load(file, weights_only=True))["value"]
    assert are_same(loaded, value)


@given(
    st.recursive(
        LEAVES.filter(lambda leaf: not isinstance(leaf, bytes)),
        lambda parts: st.lists(parts) | st.dictionaries(KEYS, parts),
        max_leaves=5,
    )
)
def test_plain_parts_are_shared(value: Any) -> None:
    """Data without NumPy arrays is passed on as it is: nothing is copied for a checkpoint but what must be."""
    assert encode(value) is value
    assert decode(value) is value


def test_a_module_keeps_its_version() -> None:
    """The state of a module stays the OrderedDict with the version attribute that it is."""
    state = torch.nn.BatchNorm1d(2).state_dict()
    assert encode({"net": state})["net"] is state
    assert state._metadata[""] == {"version": 2}


class Colour(enum.IntEnum):
    RED = 1


class Tagged(torch.Tensor):
    """A subclass that weights_only loading does not know."""


def with_attribute(value: Any) -> Any:
    value.note = pathlib.Path("x")
    return value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, (2, object())]}, r"state\['a'\]\[1\]\[1\] is a builtins.object"),
        ({"a": pathlib.Path("x")}, r"state\['a'\] is a pathlib"),
        ({pathlib.Path("x"): 1}, "state has the key .* of type PosixPath"),
        ({"a": {(1, (pathlib.Path("x"),)): 1}}, r"state\['a'\] has the key"),
        ({"a": Colour.RED}, "Colour"),
        ({"a": {Colour.RED: 1}}, "of type Colour"),
        ({"a": frozenset()}, "frozenset"),
        ({"a": {b""}}, r"state\['a'\] has the member"),
        ({"a": {torch.float16}}, r"state\['a'\] has the member torch.float16"),
        ({"a": np.array(["x"])}, "numpy.ndarray"),
        ({"a": np.array([1, None])}, "numpy.ndarray"),
        ({"a": np.longdouble(1)}, "longdouble"),
        ({"a": np.ma.masked_array([1, 2], [True, False])}, "MaskedArray"),
        ({"a": lambda: 0}, "function"),
        ({"a": torch.ones(1).as_subclass(Tagged)}, "Tagged"),
        ({"a": with_attribute(torch.ones(1))}, r"state\['a'\].note is a pathlib"),
        ({"a": with_attribute(collections.OrderedDict(b=1))}, r"state\['a'\].note is a pathlib"),
        ({"__helios_numpy_array__": 1}, "use another one"),
        (torch.nn.LazyLinear(1).state_dict(), "run a batch through the lazy module"),
    ],
)
def test_what_is_not_plain_is_refused_by_its_path(value: Any, path: str) -> None:
    """What could not be read back is refused when it would be saved, with the path to it."""
    with pytest.raises(ArgumentTypeError, match=path):
        encode(value)


def test_numpy_numbers_become_numbers() -> None:
    """NumPy's scalars are saved as Python's, which metrics computed with NumPy need."""
    encoded = encode([np.float64(0.5), np.int32(3), np.int32(1) == 1])
    assert encoded == [0.5, 3, True]
    assert [type(item) for item in encoded] == [float, int, bool]


@given(PLAIN)
def test_plain_data_travels_as_bytes(value: Any) -> None:
    """What one process has dumped, another loads as it was."""
    assert are_equal(load(dump(value)), value)
