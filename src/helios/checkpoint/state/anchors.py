"""The objects that exist after `setup`, by their paths, at which a resumed run finds its own ones."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

import torch

from helios.checkpoint.shard_tree import is_sharded
from helios.checkpoint.state.classes import ClassTable
from helios.errors import HeliosError

if TYPE_CHECKING:
    from collections.abc import Iterator


class UncapturableError(HeliosError):
    """A value that a checkpoint cannot hold. It is caught inside this package, and becomes a warning with the path.

    Attributes:
        path: where it is.
        what: the reason, as the rest of a sentence that begins with the path.
        remedy: what the user can do.
        is_silent: whether no warning is needed, because the object is a tool, such as a logger.
    """

    def __init__(self, path: str, what: str, remedy: str, *, is_silent: bool = False) -> None:
        super().__init__(f"{path} {what}: {remedy}")
        self.path = path
        self.what = what
        self.remedy = remedy
        self.is_silent = is_silent


class Anchors:
    """Objects by path, and paths by object.

    If training changes an object in place, the checkpoint refers to it by its path. A resumed process constructs its
    own object at this path and changes it in place, so that all references to it see the change.
    """

    def __init__(self) -> None:
        self._objects: dict[str, Any] = {}  # Weak references, where the type supports them.
        self._paths: dict[int, str] = {}
        self._types: dict[str, type] = {}
        self._memory: dict[str, int] = {}
        self._at_memory: dict[int, str] = {}

    def add(self, path: str, value: object) -> None:
        """Register an object as the one that is constructed at a path."""
        try:
            self._objects[path] = weakref.ref(value)
        except TypeError:
            self._objects[path] = lambda: value  # Lists and dictionaries do not support weak references.
        self._paths[id(value)] = path
        self._types[path] = type(value)
        if isinstance(value, torch.Tensor):
            address = self._memory[path] = address_of(value)
            self._at_memory.setdefault(address, path)

    def has_moved(self, path: str, tensor: torch.Tensor) -> bool:
        """Return whether the tensor at a path has other memory than after `setup`, as by `tensor.data = ...`."""
        return self._memory.get(path, 0) not in (0, address_of(tensor))

    def find_sharing(self, tensor: torch.Tensor) -> str | None:
        """Return the path of a constructed tensor that shares its memory with a tensor; `None` if there is none."""
        address = address_of(tensor)
        path = self._at_memory.get(address) if address else None
        other = None if path is None else self.get(path)
        is_there = path is not None and isinstance(other, torch.Tensor) and address_of(other) == address
        return path if is_there else None

    def get(self, path: str) -> Any | None:
        """Return the object at a path; `None` if there is none, or if it was deleted."""
        reference = self._objects.get(path)
        return None if reference is None else reference()

    def type_at(self, path: str) -> type | None:
        """Return the type of the object at a path, even if it was deleted; `None` if none was constructed there."""
        return self._types.get(path)

    def path_of(self, value: object) -> str | None:
        """Return the path of an object; `None` if it was not constructed in `setup`."""
        path = self._paths.get(id(value))
        # The address may belong to a new object, made after the constructed one was deleted.
        return path if path is not None and self.get(path) is value else None

    def update(self, other: Anchors) -> None:
        """Add the entries of another table."""
        self._objects.update(other._objects)
        self._paths.update(other._paths)
        self._types.update(other._types)
        self._memory.update(other._memory)
        self._at_memory.update(other._at_memory)

    def below(self, root: str) -> Anchors:
        """Return the objects whose paths begin with that of a part of the run."""
        found = Anchors()
        found._objects = {path: each for path, each in self._objects.items() if is_below(path, root)}
        found._types = {path: each for path, each in self._types.items() if path in found._objects}
        found._memory = {path: each for path, each in self._memory.items() if path in found._objects}
        found._at_memory = {address: path for address, path in self._at_memory.items() if path in found._objects}
        found._paths = {address: path for address, path in self._paths.items() if path in found._objects}
        return found


def address_of(tensor: torch.Tensor) -> int:
    """Return the address of the memory of a tensor; 0 for one without memory of its own."""
    if tensor.layout is not torch.strided or tensor.is_meta or is_sharded(tensor):
        return 0
    return 0 if hasattr(tensor, "__tensor_flatten__") else tensor.untyped_storage().data_ptr()


def is_below(path: str, root: str) -> bool:
    """Return whether a path is that of a part of the run, or is inside it."""
    return path.startswith(root) and path[len(root) : len(root) + 1] in ("", ".", "[")


class Graph:
    """The tables that the parts of a run share during capture and restore, so that shared objects stay shared.

    Attributes:
        anchors: the constructed objects of all parts.
        classes: the classes whose objects may be constructed.
        roots: the paths of the parts.
        seen: the objects that the current capture has met, by address, with their paths.
        known: the objects that the current restore has made, by path.
        storages: the memory that restored tensors share.
        is_open: whether several parts are currently captured or restored together.
    """

    def __init__(self) -> None:
        self.anchors = Anchors()
        self.classes = ClassTable()
        self.roots: set[str] = set()
        self.seen: dict[int, tuple[Any, str]] = {}
        self.known: dict[str, Any] = {}
        self.storages: dict[Any, Any] = {}
        self.is_open = False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Capture or restore several parts together: shared objects are written once, and stay shared."""
        if self.is_open:
            yield
            return
        self._clear()
        self.is_open = True
        try:
            yield
        finally:
            self.is_open = False
            self._clear()

    def _clear(self) -> None:
        for table in (self.seen, self.known, self.storages):
            table.clear()
