"""Optionals and lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios.core.conversion import convert_to_list, get_from_optional
from helios.errors import EmptyOptionalError


@pytest.mark.parametrize("raise_on_empty", [True, False])
@pytest.mark.parametrize("value", [0, "", [], False])
def test_a_value_comes_back_as_it_is(value: object, raise_on_empty: bool) -> None:
    """Every value but `None` is returned unchanged, values that are false included."""
    assert get_from_optional(value, raise_on_empty) is value


def test_an_empty_optional_is_an_error_either_way() -> None:
    """`None` raises an AssertionError or, with `raise_on_empty`, an EmptyOptionalError; both name the remedy."""
    with pytest.raises(AssertionError, match="optional value is None: set it before"):
        get_from_optional(None)
    with pytest.raises(EmptyOptionalError, match="optional value is None: set it before") as caught:
        get_from_optional(opt_var=None, raise_on_empty=True)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RuntimeError)


@given(st.lists(st.integers() | st.text()))
def test_a_sequence_becomes_a_new_list(items: list[int | str]) -> None:
    """Lists and tuples keep their elements and order, in a new list."""
    assert convert_to_list(items) == items
    assert convert_to_list(items) is not items
    assert convert_to_list(tuple(items)) == items


@pytest.mark.parametrize(
    "scalar",
    [1, None, "text", b"bytes", {"a": 1}, {1, 2}, torch.zeros(3), np.zeros(3)],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_one_value(scalar: object) -> None:
    """A string, a mapping, a set, a tensor and an array each become a list of one."""
    converted = convert_to_list(var=scalar)
    assert len(converted) == 1
    assert converted[0] is scalar


def test_a_range_is_a_sequence() -> None:
    """Every type of sequence is converted, not only lists and tuples."""
    assert convert_to_list(range(3)) == [0, 1, 2]
