"""Reads the attributes of an object, and finds the constructed objects into which values are restored."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Final

from helios.checkpoint.state.classes import slots_of
from helios.checkpoint.state.tensors import fill_tensor
from helios.checkpoint.state.values import FACTORIES, TAG
from helios.checkpoint.state.writing import EXCLUDED, own_attributes
from helios.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch

    from helios.checkpoint.state.anchors import Graph

NEW: Final = object()  # Means: do not search for a constructed object.


class UnresolvedError(CheckpointMismatchError):
    """A reference to an object that does not exist, or does not exist yet."""


class Reader(abc.ABC):
    """Reads values, and restores them into the constructed objects of a run."""

    def __init__(self, graph: Graph, device: torch.device | None) -> None:
        """Store the run.

        Args:
            graph: the tables that the parts of the run share; its anchors are the constructed objects of this process.
            device: the device of the run in this process.
        """
        self.graph = graph
        self.device = device

    @abc.abstractmethod
    def decode(self, node: Any, path: str, live: Any = None) -> Any:
        """Return the value that was written at a path.

        Args:
            node: the written value.
            path: the path.
            live: the constructed object to change in place, if it is not the one at the path.

        Raises:
            CheckpointMismatchError: if it refers to an object that does not exist.
        """

    def fill_attributes(
        self, owner: Any, nodes: dict[str, Any], path: str, *, ignore: Collection[str] = (), removes: bool = True
    ) -> None:
        """Set the attributes of an object.

        Args:
            owner: the object.
            nodes: the attributes as they were written, by name.
            path: the path of the object.
            ignore: attributes that stay as they are.
            removes: whether attributes that are not among `nodes` are removed.
        """
        for name, node in nodes.items():
            if not (isinstance(node, dict) and node.get(TAG) == "left"):
                set_attribute(owner, name, self.decode(node, f"{path}.{name}"))
        kept = {*nodes, *ignore, *getattr(type(owner), EXCLUDED, ())}
        for name in [name for name in own_attributes(owner) if name not in kept] if removes else ():
            object.__delattr__(owner, name)

    def fill(self, live: torch.Tensor, saved: torch.Tensor) -> None:
        """Copy the content of a saved tensor into a constructed one."""
        fill_tensor(live, saved)

    def resolve(self, node: dict[str, Any]) -> Any:
        """Return an object that was written, or is constructed, at another path."""
        if "at" in node:
            return self.constructed(node["at"])
        if node["as"] not in self.graph.known:
            raise UnresolvedError(f"the checkpoint refers to {node['as']}, which is not there")
        return self.graph.known[node["as"]]

    def constructed(self, path: str) -> Any:
        """Return the object that is constructed at a path.

        Raises:
            UnresolvedError: if there is none.
        """
        value = self.graph.anchors.get(path)
        if value is None:
            raise UnresolvedError(
                f"the checkpoint refers to {path}, which is not made in __init__ or setup now: make it there as before"
            )
        return value

    def live(self, path: str, live: Any) -> Any:
        """Return the constructed object into which the value at a path is restored; `None` if there is none."""
        if live is NEW:
            return None
        return self.graph.anchors.get(path) if live is None else live

    def known(self, path: str, value: Any) -> Any:
        """Store the restored object of a path, and return it."""
        self.graph.known[path] = value
        return value

    def class_of(self, name: list[str], path: str) -> type:
        """Return the class of this module and name.

        Raises:
            CheckpointMismatchError: if there is none, or if its objects may not be constructed.
        """
        module, qualname = name
        found = FACTORIES.get(qualname) if module in ("builtins", "collections") else None
        found = found or self.graph.classes.find((module, qualname))
        if found is None:
            raise CheckpointMismatchError(
                f"{path} needs the class {module}.{qualname}, which this program has not: import its module before fit"
            )
        return found

    def target(self, base: type, node: dict[str, Any], path: str, live: Any) -> Any:
        """Return the constructed object of this class, or a new one."""
        live = self.live(path, live)
        kind = self.class_of(node["class"], path) if "class" in node else base
        return live if type(live) is kind else self.make(base, node, path)

    def make(self, base: Any, node: dict[str, Any], path: str) -> Any:
        """Return a new object of a builtin, or of the subclass that was written."""
        return base.__new__(self.class_of(node["class"], path) if "class" in node else base)

    def finish(self, value: Any, node: dict[str, Any], path: str) -> Any:
        """Set the attributes of an object of a builtin's subclass."""
        if "attributes" in node:
            self.fill_attributes(value, node["attributes"], path)
        if node.get("is_own_dict"):
            object.__setattr__(value, "__dict__", value)
        return value


def set_attribute(owner: Any, name: str, value: Any) -> None:
    """Set an attribute directly, without calling a property or a `__setattr__` of the class."""
    if name in slots_of(type(owner)):
        object.__setattr__(owner, name, value)
    else:
        vars(owner)[name] = value
