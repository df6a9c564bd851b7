from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helios.testing import are_equal


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (0.0, -0.0),
        (1, 1.0),
        (True, 1),
        ([1], (1,)),
        ([1], [1, 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1}, {"a": 2}),
        (torch.zeros(2), -torch.zeros(2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(1), [0.0]),
        (torch.zeros(1), torch.zeros(1, device="meta")),
        (np.zeros(2), np.zeros(2, dtype=np.float32)),
        ({1}, {2}),
    ],
)
def test_what_differs_in_a_bit_is_not_equal(first: Any, second: Any) -> None:
    """Values, types, order, shapes, dtypes, signs of zero and devices are compared; everything equals its copy."""
    assert not are_equal(first, second)
    assert not are_equal([second], [first])
    assert are_equal(first, first)


def test_nan_equals_itself() -> None:
    """A NaN is equal to a NaN of the same bits, in numbers, in tensors and in conjugated views."""
    assert are_equal(
        {"a": float("nan"), "b": torch.tensor(float("nan"))}, {"a": -float("nan"), "b": torch.tensor(torch.nan)}
    )
    assert are_equal(torch.tensor([1j]).conj(), torch.tensor([complex(0, -1)]))
    assert not are_equal(torch.tensor([1j]).conj(), torch.tensor([1j]))
    assert are_equal(torch.zeros(2, device="meta"), torch.zeros(2, device="meta"))
