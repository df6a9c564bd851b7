"""Digests of plain data tell every change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios.checkpoint.state.digest import digest_of, holds_scalars_only
from helios.testing import are_equal

SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(width=16) | st.text(max_size=2)
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
)


@given(PLAIN, PLAIN)
def test_equal_data_have_equal_digests_and_other_data_others(first: Any, second: Any) -> None:
    """Types, signs and the order of keys count; nothing else does."""
    assert (digest_of(first) == digest_of(second)) is are_equal(first, second)


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, True), (1, 1.0), (0.0, -0.0), ([1], (1,)), ({"a": 1}, {"a": 2}), ({1}, {1, 2}), ("a", b"a"), (None, 0)],
)
def test_a_change_of_type_is_a_change(before: Any, after: Any) -> None:
    """Values that Python calls equal, and that are not, have other digests, in long lists as well."""
    assert digest_of(before) != digest_of(after)
    assert digest_of([before] * 100) != digest_of([*[before] * 99, after])


@pytest.mark.parametrize("size", [1, 1000, 200_000, 300_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.bfloat16, torch.complex64])
def test_every_element_of_a_tensor_counts(size: int, dtype: torch.dtype) -> None:
    """A change of any element shows, in large tensors too, and so do elements and rows that change places."""
    tensor = (torch.arange(size) % 101).to(dtype)
    before = digest_of(tensor)
    for place in {0, size // 3, size // 2, size - 1}:
        changed = tensor.clone()
        changed[place] += 1
        assert digest_of(changed) != before
    assert size == 1 or digest_of(tensor.flip(0)) != before
    assert digest_of(tensor.clone()) == before


def test_views_have_the_digests_of_their_copies() -> None:
    """Where a tensor lies in its memory does not count, and looking at it leaves the memory resizable."""
    memory = torch.arange(400_000, dtype=torch.float32)
    for view in (memory[1:-1], memory[::2], memory.reshape(2, -1).t(), memory.to(torch.complex64).conj()):
        assert digest_of(view) == digest_of(view.clone().resolve_conj())
    small = torch.zeros(2)
    digest_of(small)
    assert small.resize_(4).shape == (4,)


@given(st.lists(SCALARS | st.tuples(SCALARS, SCALARS) | st.lists(SCALARS, max_size=1), max_size=6))
def test_scalars_are_told_without_a_loop(items: list[Any]) -> None:
    """A list of numbers, strings and tuples of them is known as such; one with anything else is not."""
    assert holds_scalars_only(items) is not any(isinstance(item, list) for item in items)


@given(PLAIN)
def test_a_tensor_counts_wherever_it_is_among_plain_data(data: Any) -> None:
    """A tensor that changes within lists and dictionaries shows, and an equal one in its place does not."""
    before, equal, after = (
        digest_of([data, {"a": (data, tensor)}]) for tensor in (torch.zeros(2), torch.zeros(2), torch.ones(2))
    )
    assert before == equal != after
