"""Batches of every kind, each with tensors somewhere inside."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

if TYPE_CHECKING:
    from collections.abc import Callable

META = torch.device("meta")


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Sample:
    image: Any
    label: Any = 0
    derived: Any = dataclasses.field(init=False, default=None)


@dataclasses.dataclass(frozen=True)
class Frozen:
    image: Any
    derived: Any = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "derived", [self.image])


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    image: Any
    label: Any = 0


class TaggedList(list[Any]):
    """A list with an attribute."""

    tag: Any = None


class TaggedDict(dict[str, Any]):
    """A dictionary with an attribute."""

    tag: Any = None


class Tokens:
    """A batch class of somebody's, which knows how to move."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.ids.to(device))


def tensor() -> torch.Tensor:
    return torch.arange(3.0)


def with_tag(container: Any) -> Any:
    container.tag = "kept"
    return container


def default_dict() -> Any:
    batch: collections.defaultdict[str, list[int]] = collections.defaultdict(list)
    batch["a"] = tensor()  # type: ignore[assignment]  # a batch of mixed content
    return batch


def tensors_in(batch: Any) -> list[torch.Tensor]:
    """Return all tensors of a batch, wherever they are."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    if isinstance(batch, PackedSequence):
        return [batch.data]
    if isinstance(batch, Tokens):
        return [batch.ids]
    if isinstance(batch, dict):
        batch = list(batch.values())
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        batch = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return [found for part in batch for found in tensors_in(part)] if isinstance(batch, list | tuple) else []


CONTAINERS: dict[str, Callable[[], Any]] = {
    "tensor": tensor,
    "list": lambda: [tensor(), 3, "text"],
    "tuple": lambda: (tensor(), None),
    "dict": lambda: {"a": tensor(), "b": 3, 5: tensor()},
    "nested": lambda: {"a": [(tensor(), {"b": tensor()})], "c": "text"},
    "named tuple": lambda: Pair(tensor(), [tensor()]),
    "what torch returns": lambda: torch.max(torch.rand(3, 2), dim=0),
    "dataclass": lambda: Sample(tensor(), [tensor()]),
    "frozen dataclass": lambda: Frozen(tensor()),
    "slotted dataclass": lambda: Slotted(tensor(), "text"),
    "default dict": default_dict,
    "ordered dict": lambda: collections.OrderedDict([("z", tensor()), ("a", 1)]),
    "list of its own": lambda: with_tag(TaggedList([tensor()])),
    "dict of its own": lambda: with_tag(TaggedDict(a=tensor())),
    "packed sequence": lambda: pack_sequence([tensor(), tensor()[:2]]),
    "list of packed sequences": lambda: [pack_sequence([tensor()])],
    "object with to": lambda: Tokens(tensor()),
    "dict of objects with to": lambda: {"tokens": Tokens(tensor())},
}
