"""What is moved, and how."""

from __future__ import annotations

import collections
import copy
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from helios.plugins.moving import move_to_device
from tests.plugins.batches import CONTAINERS, META, Frozen, Pair, Sample, TaggedList, Tokens, tensor, tensors_in


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_kind_of_batch_is_moved(name: str) -> None:
    """All tensors are on the device, the container has its type, and the batch that came in is untouched."""
    batch = CONTAINERS[name]()
    before = tensors_in(batch)
    shallow = copy.copy(batch)
    moved = move_to_device(batch, META)
    assert before
    assert type(moved) is type(batch)
    assert len(tensors_in(moved)) == len(before)
    assert all(part.device == META for part in tensors_in(moved))
    assert all(new is old for new, old in zip(tensors_in(batch), before, strict=True))
    assert all(part.device.type == "cpu" for part in before)
    if isinstance(batch, dict | list):
        assert len(batch) == len(shallow)


def test_what_containers_hold_besides_is_kept() -> None:
    """Factories, attributes, orders of keys and fields that no constructor takes survive the move."""
    moved = move_to_device(CONTAINERS["default dict"](), META)
    assert moved.default_factory is list
    assert move_to_device(CONTAINERS["list of its own"](), META).tag == "kept"
    assert move_to_device(CONTAINERS["dict of its own"](), META).tag == "kept"
    assert list(move_to_device(CONTAINERS["ordered dict"](), META)) == ["z", "a"]
    sample = Sample(1)
    sample.derived = tensor()
    assert move_to_device(sample, META).derived.device == META
    assert move_to_device(Frozen(tensor()), META).derived[0].device == META
    packed = pack_sequence([tensor(), tensor()[:1]])
    assert torch.equal(move_to_device(packed, META).batch_sizes, packed.batch_sizes)


STRANGERS = [None, 3, "text", b"x", 1.5, object(), {1, 2}, torch.float32, torch.Size([1]), Tokens, Sample, range(3)]


@pytest.mark.parametrize("thing", STRANGERS)
def test_everything_else_is_left_as_it_is(thing: Any) -> None:
    """What is no tensor and holds none is passed on as the very same object, also from inside a container."""
    assert move_to_device(thing, META) is thing
    assert move_to_device([thing], META)[0] is thing


LEAVES = st.integers() | st.text(max_size=3) | st.none() | st.builds(tensor) | st.builds(lambda: Tokens(tensor()))
BATCHES = st.recursive(
    LEAVES,
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.tuples(parts, parts)
        | st.dictionaries(st.text(max_size=3) | st.integers(), parts, max_size=3)
        | st.dictionaries(st.text(max_size=3), parts, max_size=3).map(collections.OrderedDict)
        | st.builds(Pair, parts, parts)
        | st.builds(Sample, parts, parts)
        | st.builds(Frozen, parts)
        | st.lists(parts, max_size=3).map(TaggedList)
    ),
    max_leaves=10,
)


def shape_of(batch: Any) -> Any:
    """Return the types and the plain leaves of a batch, with the identities of its tensors."""
    if isinstance(batch, torch.Tensor | Tokens):
        return type(batch)
    if isinstance(batch, dict):
        return type(batch), [(key, shape_of(value)) for key, value in batch.items()]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return type(batch), [shape_of(getattr(batch, field.name)) for field in dataclasses.fields(batch)]
    if isinstance(batch, list | tuple):
        return type(batch), [shape_of(part) for part in batch]
    return batch


@settings(max_examples=80)
@given(BATCHES)
def test_any_nesting_is_moved_and_never_changed(batch: Any) -> None:
    """To any depth, everything moves, nothing else changes, and the input keeps its tensors and its shape."""
    identities, shape = [id(part) for part in tensors_in(batch)], shape_of(batch)
    moved = move_to_device(batch, META)
    assert shape_of(moved) == shape
    assert all(part.device == META for part in tensors_in(moved))
    assert len(tensors_in(moved)) == len(identities)
    assert [id(part) for part in tensors_in(batch)] == identities
    assert shape_of(batch) == shape
