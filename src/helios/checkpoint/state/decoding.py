"""Restores objects from the plain data that `helios.checkpoint.state.encoding` has made.

A constructed object is changed in place, so that all references to it see the change; every other object is new.
Nothing that a file names is called: objects are made by `__new__` of builtins, for classes that `ClassTable` allows.
"""

from __future__ import annotations

import collections
import functools
import sys
import types
from typing import TYPE_CHECKING, Any

import torch

from helios.checkpoint.state.classes import allocate, is_own
from helios.checkpoint.state.encoding import show_key
from helios.checkpoint.state.reading import NEW, Reader, UnresolvedError
from helios.checkpoint.state.rebuilding import (
    BASES,
    decode_array_of_any_kind,
    decode_generator,
    decode_marked_tensor,
    decode_scalar,
    decode_tensor,
    decode_typed_array,
    decode_view,
)
from helios.checkpoint.state.values import FACTORIES, TAG, decode_value, is_value
from helios.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from helios.checkpoint.state.anchors import Graph


def decode(node: Any, path: str, graph: Graph) -> Any:
    """Return the value that `helios.checkpoint.state.encoding.encode` got.

    Raises:
        CheckpointMismatchError: if this is not its result, or needs a class that does not exist.
    """
    return Decoder(graph, None).decode(node, path)


class Decoder(Reader):
    """Reads the output of an `Encoder`."""

    # ------------------------------------------------------------------------------------------------------ values

    def decode(self, node: Any, path: str, live: Any = None) -> Any:
        """Return the value that was written at a path; see `Reader.decode`."""
        if isinstance(node, torch.Tensor):
            return decode_tensor(self, node, path, self.live(path, live))
        if type(node) is list:
            return self._sequence(list, node, {}, path, live)
        if type(node) is not dict:
            return node
        tag = node.get(TAG)
        if tag is None:
            return self._dictionary(dict, node.items(), {}, path, live)
        if is_value(node):
            return decode_value(node)
        try:
            return self._decode_tagged(tag, node, path, live)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, CheckpointMismatchError):
                raise
            raise CheckpointMismatchError(f"{path} cannot be brought back from {node!r:.200}: {error}") from error

    def _decode_tagged(self, tag: str, node: dict[str, Any], path: str, live: Any) -> Any:  # noqa: PLR0911 - one return for each kind.
        if tag == "same":
            return self.resolve(node)
        if tag == "at":
            return self.decode(node["of"], path, self.constructed(node["path"]))
        if tag == "new":
            return self.decode(node["of"], path, NEW)
        if tag in ("part", "constant", "left"):
            return self.constructed(path) if live is None or live is NEW else live
        if tag in ("tensor", "subclass", "wrapper"):
            return decode_marked_tensor(self, tag, node, path, live)
        if tag in ("array", "objects", "masked"):
            return decode_array_of_any_kind(self, tag, node, path, live)
        if tag in BASES and "items" in node:
            return self._container(BASES[tag], node, path, live)
        if tag in BASES or tag == "enum":
            return decode_scalar(self, tag, node, path, live)
        readers: dict[str, Callable[[dict[str, Any], str, Any], Any]] = {
            "array.array": functools.partial(decode_typed_array, self),
            "generator": functools.partial(decode_generator, self),
            "object": self._object,
            "class": lambda node, path, _: self.class_of(node["of"], path),
            "function": self._function,
            "method": self._method,
            "partial": self._partial,
            "memoryview": self._memoryview,
            "view": functools.partial(decode_view, self),
        }
        return readers[tag](node, path, live)

    # ---------------------------------------------------------------------------------------------------- containers

    def _container(self, base: type, node: dict[str, Any], path: str, live: Any) -> Any:
        if issubclass(base, dict):
            items = [
                (self.decode(key, f"{path}.keys[{index}]"), item) for index, (key, item) in enumerate(node["items"])
            ]
            return self._dictionary(base, items, node, path, live)
        return self._sequence(base, node["items"], node, path, live)

    def _sequence(self, base: Any, nodes: list[Any], node: dict[str, Any], path: str, live: Any) -> Any:
        if base in (tuple, frozenset):
            items = [self.decode(item, f"{path}[{index}]") for index, item in enumerate(nodes)]
            kind = self.class_of(node["class"], path) if "class" in node else base
            return self.finish(base.__new__(kind, items), node, path)
        target = self.target(base, node, path, live)
        if base is collections.deque and target.maxlen != node["maxlen"]:
            target = collections.deque(maxlen=node["maxlen"])
        self.known(path, target)
        items = [self.decode(item, f"{path}[{index}]") for index, item in enumerate(nodes)]
        base.clear(target)
        (base.update if base is set else base.extend)(target, items)
        return self.finish(target, node, path)

    def _dictionary(
        self, base: Any, items: Iterable[tuple[Any, Any]], node: dict[str, Any], path: str, live: Any
    ) -> Any:
        target = self.known(path, self.target(base, node, path, live))
        decoded = [
            (key, self.decode(item, f"{path}[{show_key(key, index)}]")) for index, (key, item) in enumerate(items)
        ]
        base.clear(target)
        store = collections.OrderedDict if base is collections.OrderedDict else dict
        for key, item in decoded:
            store.__setitem__(target, key, item)
        if base is collections.defaultdict:
            factory = node["factory"]
            target.default_factory = (
                FACTORIES[factory] if isinstance(factory, str)
                else self.decode(factory, f"{path}.default_factory")
            )  # fmt: skip
        return self.finish(target, node, path)

    # -------------------------------------------------------------------------------------------- objects, functions

    def _object(self, node: dict[str, Any], path: str, live: Any) -> Any:
        live = self.live(path, live)
        kind = type(live) if live is not None and _is_named(live, node["class"]) else self.class_of(node["class"], path)
        target = live if type(live) is kind else allocate(kind)
        self.known(path, target)
        self.fill_attributes(target, node["attributes"], path)
        return target

    def _function(self, node: dict[str, Any], path: str, live: Any) -> Any:
        target = self.live(path, live)
        if target is None:
            target = _find_function(*node["of"])
        if not isinstance(target, types.FunctionType):
            raise UnresolvedError(f"{path} was the function {node['of'][1]}, which is not there now")
        cells = dict(zip(target.__code__.co_freevars, target.__closure__ or (), strict=True))
        for name, cell in node.get("cells", {}).items():
            if not (isinstance(cell, dict) and cell.get(TAG) == "left"):
                cells[name].cell_contents = self.decode(cell, f"{path}.<{name}>")
        self.fill_defaults(target, node.get("defaults", {}), path)
        if "attributes" in node:
            self.fill_attributes(target, node["attributes"], path)
        return self.known(path, target)

    def fill_defaults(self, function: types.FunctionType, nodes: dict[str, Any], path: str) -> None:
        """Give the arguments of a function the defaults that were written."""
        found = {
            key: self.decode(node, f"{path}.<default {key}>")
            for key, node in nodes.items()
            if not (isinstance(node, dict) and node.get(TAG) == "left")
        }
        if function.__defaults__ is not None:
            function.__defaults__ = tuple(
                found.get(str(index), value) for index, value in enumerate(function.__defaults__)
            )
        if function.__kwdefaults__ is not None:
            function.__kwdefaults__.update({name: found[name] for name in function.__kwdefaults__ if name in found})

    def _memoryview(self, node: dict[str, Any], path: str, live: Any) -> Any:
        self.decode(node["of"], f"{path}.obj")  # The memory is restored in place.
        return self.constructed(path) if live is None or live is NEW else live

    def _partial(self, node: dict[str, Any], path: str, live: Any) -> Any:
        function = self.decode(node["function"], f"{path}.func")
        args = [self.decode(item, f"{path}.args[{index}]") for index, item in enumerate(node["args"])]
        keywords = {name: self.decode(item, f"{path}.keywords.{name}") for name, item in node["keywords"].items()}
        target = self.live(path, live)
        if type(target) is not functools.partial:
            return self.known(path, functools.partial(function, *args, **keywords))
        target.__setstate__((function, tuple(args), keywords, vars(target)))  # type: ignore[attr-defined]  # its stub lacks it
        return self.known(path, target)

    def _method(self, node: dict[str, Any], path: str, _: Any) -> Any:
        owner = self.decode(node["of"], f"{path}.__self__")
        if not callable(vars(type(owner)).get(node["name"], getattr(type(owner), node["name"], None))):
            raise UnresolvedError(f"{path} was the method {node['name']} of a {type(owner).__name__}, which has none")
        return getattr(owner, node["name"])


def _is_named(live: Any, name: list[str]) -> bool:
    return type(live).__qualname__ == name[1]


def _find_function(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    is_function = isinstance(found, types.FunctionType) and (found.__module__, found.__qualname__) == (module, qualname)
    return found if is_function and is_own(type("_", (), {"__module__": module})) else None
