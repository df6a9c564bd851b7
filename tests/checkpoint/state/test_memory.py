"""Memory that arrays and tensors share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from helios.checkpoint.state.capture import AttributeCapture

if TYPE_CHECKING:
    from collections.abc import Callable


class Owner:
    """An object with an array."""

    other: Any

    def __init__(self) -> None:
        self.states = AttributeCapture(self, ignore=frozenset({"states"}))
        self.array = np.zeros((4, 4))
        self.view = self.array[1:]
        self.tensor = torch.from_numpy(self.array)
        self.states.mark()

    def find(self) -> dict[str, str]:
        """Return what a checkpoint cannot hold."""
        self.states.collect()
        return self.states.findings


@pytest.mark.parametrize(
    "share", [lambda array: array[0], lambda array: array.T[1:2], torch.from_numpy, lambda array: array.view(np.int64)]
)
def test_memory_shared_during_training_is_named(share: Callable[[Any], Any]) -> None:
    """An array or a tensor that is made of a constructed array during training is named, with the array."""
    owner = Owner()
    assert owner.find() == {}
    owner.other = share(owner.array)
    ((path, reason),) = owner.find().items()
    assert path == "Owner.other"
    assert reason.startswith("shares its memory with Owner.")


@pytest.mark.parametrize("copy", [np.copy, torch.tensor, lambda array: array[:0]])
def test_memory_of_its_own_is_not_named(copy: Callable[[Any], Any]) -> None:
    """A copy shares nothing, nor does what has no elements."""
    owner = Owner()
    owner.other = copy(owner.array)
    assert owner.find() == {}


def test_columns_side_by_side_share_nothing() -> None:
    """Views whose bytes lie between each other's are not the same memory."""
    owner = Owner()
    table = np.zeros((4, 4))
    owner.view, owner.other = table[:, :1], table[:, 1:2]
    owner.array, owner.tensor = np.zeros((1, 1)), torch.zeros(1)
    assert owner.find() == {}


def test_a_view_of_a_constructed_tensor_is_one_again() -> None:
    """A tensor made during training of a constructed one has its memory after a restore, with any dtype and layout."""
    owner, twin = Owner(), Owner()
    for each in (owner, twin):
        each.tensor = torch.zeros(2, 3)
        each.states = AttributeCapture(each, ignore=frozenset({"states"}))
        each.states.mark()
    owner.other = [
        owner.tensor.T[1:],
        torch.nn.Parameter(owner.tensor[0], requires_grad=False),
        owner.tensor.view(torch.int32),
    ]
    owner.tensor.add_(1)
    twin.states.restore(owner.states.collect())
    assert [each.tolist() for each in twin.other] == [each.tolist() for each in owner.other]
    twin.tensor.add_(1)
    owner.tensor.add_(1)
    assert [each.tolist() for each in twin.other] == [each.tolist() for each in owner.other]
    assert isinstance(twin.other[1], torch.nn.Parameter)
