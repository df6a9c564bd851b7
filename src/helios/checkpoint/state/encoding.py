"""Writes objects as plain data, with their identities: an object that is held twice is written once.

The result is made of `None`, numbers, strings, bytes, tensors, lists, tuples and dictionaries. Common values are
written as they are; everything else is a dictionary with the name of its kind under `TAG`, which
`helios.checkpoint.state.decoding` reads. Three kinds are about identity:

- "same": an object that was written elsewhere, or that is constructed at the path `at`;
- "at": the object that is constructed at another path, with its current content;
- "new": an object that has replaced the one that is constructed at this path.
"""

from __future__ import annotations

import array
import collections
import enum
import functools
import types
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from helios.checkpoint.state.anchors import UncapturableError
from helios.checkpoint.state.classes import is_own, name_of, show
from helios.checkpoint.state.digest import holds_scalars_only, is_long
from helios.checkpoint.state.objects import (
    encode_array_of_any_kind,
    encode_class,
    encode_function,
    encode_generator,
    encode_object,
    encode_part,
    encode_partial,
)
from helios.checkpoint.state.parts import Stateful
from helios.checkpoint.state.tensors import encode_tensor
from helios.checkpoint.state.values import FACTORIES, PLAIN, TAG, encode_value
from helios.checkpoint.state.writing import DEEP, FLAT, Writer
from helios.core.context import RunMember

if TYPE_CHECKING:
    from collections.abc import Iterable

    from helios.checkpoint.state.anchors import Graph

_DEEPEST: Final = 80  # Levels of nesting: `pickle`, which torch uses for files, and Python fail at about 500.
_SCALARS: Final = (str, int, float, complex, bytes)
_DICTIONARIES: Final = (collections.OrderedDict, collections.defaultdict, collections.Counter, dict)
_SEQUENCES: Final = (collections.deque, list, set, frozenset, tuple)
# Attributes that every member of an enumeration has.
_OF_MEMBER: Final = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_", "_inverted_"})
_KEYS: Final = (str, int, bool, float, type(None))


def encode(value: Any, path: str, graph: Graph) -> Any:
    """Return a value as plain data, without references to constructed objects; for a state dictionary, for example.

    Raises:
        UncapturableError: if a checkpoint cannot hold a part of it.
    """
    return Encoder(graph, root=path).encode(value, path)


class Encoder(Writer):
    """Writes values of every kind."""

    # ----------------------------------------------------------------------------------------------------- values

    def encode(self, value: Any, path: str) -> Any:
        """Return a value as plain data.

        Raises:
            UncapturableError: if a checkpoint cannot hold it.
        """
        self.size += 1
        if type(value) in PLAIN:
            return {TAG: "long", "of": f"{value:x}"} if type(value) is int and is_long(value) else value
        if self.depth > _DEEPEST:
            raise UncapturableError(path, DEEP, FLAT)
        self.depth += 1
        try:
            return self._encode(value, path)
        finally:
            self.depth -= 1

    def _encode(self, value: Any, path: str) -> Any:  # noqa: PLR0911 - one return for each kind.
        kind = type(value)
        node = encode_value(value)
        if node is not None:
            return node
        if kind is tuple:
            return self._encode_tuple(value, path)
        if kind is frozenset:
            return {TAG: "frozenset", "items": self._items(value, path)}
        if isinstance(value, enum.Enum):
            return self._encode_member(value, path)
        if isinstance(value, type):
            return encode_class(self, value, path)
        if isinstance(value, types.MethodType | types.BuiltinMethodType) and not _is_function(value):
            return {TAG: "method", "of": self.encode(value.__self__, f"{path}.__self__"), "name": value.__name__}
        if isinstance(value, _SCALARS):
            return self._encode_scalar(value, path)
        if isinstance(value, tuple | frozenset):
            return self._encode_sequence(value, path)
        if isinstance(value, RunMember):
            return self.constant(value, path, f"is {show(kind)}, a part of the run", is_silent=True)
        return self._identify(value, path)

    def _identify(self, value: Any, path: str) -> Any:
        """Return an object that may have several holders as plain data."""
        graph, anchors = self.graph, self.graph.anchors
        anchor = anchors.path_of(value)
        seen = graph.seen.get(id(value))
        if seen is not None:
            return {TAG: "same", "as": seen[1]} if anchor is None else {TAG: "same", "at": anchor}
        if anchor is None and self.registers is not None and self.registers(value):
            anchors.add(path, value)
            anchor = path
        graph.seen[id(value)] = value, path
        node = self._describe(value, path, anchor)
        if anchor is not None and anchor != path:
            return node if node == {TAG: "same", "at": anchor} else {TAG: "at", "path": anchor, "of": node}
        is_other = anchor is None and anchors.type_at(path) is not None
        return {TAG: "new", "of": node} if is_other and not _is_stand_in(node) else node

    def _describe(self, value: Any, path: str, anchor: str | None) -> Any:  # noqa: C901, PLR0911 - one return for each kind.
        if isinstance(value, torch.Tensor):
            return encode_tensor(self, value, path, anchor)
        if isinstance(value, nn.Module | torch.optim.Optimizer):
            return encode_part(self, value, path, anchor)
        if (generator := encode_generator(self, value, path, anchor)) is not None:
            return generator
        if isinstance(value, Stateful) and (anchor is not None or not is_own(type(value))):
            return encode_part(self, value, path, anchor)
        if isinstance(value, np.ndarray):
            return encode_array_of_any_kind(self, value, path, anchor)
        if isinstance(value, bytearray):
            return {TAG: "bytearray", "of": encode_value(bytes(value)), **self.of_class(value, path, bytearray)}
        if type(value) is array.array:
            return {TAG: "array.array", "code": value.typecode, "of": encode_value(value.tobytes())}
        if isinstance(value, _DICTIONARIES):
            return self._encode_dictionary(value, path)
        if isinstance(value, _SEQUENCES):
            return self._encode_sequence(value, path)
        if type(value) is functools.partial:
            return encode_partial(self, value, path)
        if type(value) is memoryview and anchor is not None:
            return {TAG: "memoryview", "of": self.encode(value.obj, f"{path}.obj")}
        if isinstance(value, types.FunctionType):
            return encode_function(self, value, path, anchor)
        return encode_object(self, value, path, anchor)

    # -------------------------------------------------------------------------------------------------- containers

    def _items(self, values: Iterable[Any], path: str) -> list[Any]:
        return [self.encode(item, f"{path}[{index}]") for index, item in enumerate(values)]

    def _encode_tuple(self, value: tuple[Any, ...], path: str) -> Any:
        if holds_scalars_only(value):
            self.size += len(value)
            return value
        return {TAG: "tuple", "items": self._items(value, path)}

    def _encode_sequence(self, value: Any, path: str) -> Any:
        base = next(base for base in _SEQUENCES if isinstance(value, base))
        if type(value) is list:
            if holds_scalars_only(value):
                self.size += len(value)
                return value
            return self._items(value, path)
        if hasattr(type(value), "n_sequence_fields"):
            raise UncapturableError(path, f"is {show(type(value))}, which cannot be made anew", "keep a tuple of it")
        node = {TAG: base.__name__, "items": self._items(base.__iter__(value), path)}
        if base is collections.deque:
            node["maxlen"] = value.maxlen
        return {**node, **self.of_class(value, path, base)}

    def _encode_dictionary(self, value: Any, path: str) -> Any:
        base = next(base for base in _DICTIONARIES if isinstance(value, base))
        if type(value) is dict and all(type(key) in _KEYS for key in value) and TAG not in value:
            return {key: self.encode(item, f"{path}[{key!r}]") for key, item in value.items()}
        items = [
            [self.encode(key, f"{path}.keys[{index}]"), self.encode(item, f"{path}[{show_key(key, index)}]")]
            for index, (key, item) in enumerate(base.items(value))
        ]
        node: dict[str, Any] = {TAG: base.__name__, "items": items, **self.of_class(value, path, base)}
        if base is collections.defaultdict:
            factory = value.default_factory
            is_plain = factory is None or FACTORIES.get(getattr(factory, "__name__", "")) is factory
            node["factory"] = (
                getattr(factory, "__name__", None) if is_plain else self.encode(factory, f"{path}.default_factory")
            )
        return node

    def _encode_scalar(self, value: Any, path: str) -> Any:
        base: Any = next(base for base in _SCALARS if isinstance(value, base))
        plain = base.__new__(base, value) if base is not str else str.__str__(value)
        return {
            TAG: base.__name__,
            "of": encode_value(plain) if base is bytes else plain,
            **self.of_class(value, path, base),
        }

    def _encode_member(self, value: enum.Enum, path: str) -> Any:
        self.ensure_made(type(value), path)
        node = {
            TAG: "enum",
            "class": list(name_of(type(value))),
            "name": value._name_,
            "of": None if value._name_ in type(value).__members__ else self.encode_inner(value._value_, path),
        }
        attributes = [name for name in vars(value) if name not in _OF_MEMBER]
        if not attributes or id(value) in self.graph.seen:
            return node
        self.graph.seen[id(value)] = value, path  # There is only one object for each member.
        return {**node, "attributes": self.attributes_of(value, path, attributes)}


def _is_function(value: Any) -> bool:
    return isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | type(None))


def _is_stand_in(node: Any) -> bool:
    return isinstance(node, dict) and node.get(TAG) == "part"


def show_key(key: Any, index: int) -> str:
    """Return a key as a part of a path; the position of the item for keys that cannot be written."""
    return repr(key) if type(key) in _KEYS else f"#{index}"
