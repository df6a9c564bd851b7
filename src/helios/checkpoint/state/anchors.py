"""The objects that a program has constructed before it trains, by the paths at which a resumed one finds its own."""

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
    """A value that a checkpoint cannot bring back. It never leaves this package: whoever holds the value names it.

    Attributes:
        path: where it is.
        what: what it is, as the rest of a sentence that begins with the path.
        remedy: what to do about it.
        is_silent: whether nobody needs to be told: it is part of the surroundings.
    """

    def __init__(self, path: str, what: str, remedy: str, *, is_silent: bool = False) -> None:
        super().__init__(f"{path} {what}: {remedy}")
        self.path = path
        self.what = what
        self.remedy = remedy
        self.is_silent = is_silent


class Anchors:
    """Objects by path, and paths by object.

    A checkpoint says of an object that training has changed in place which constructed object it is. A resumed process
    constructs its own at the same path, and changes that one, so that whoever else holds it sees the change.
    """

    def __init__(self) -> None:
        self._objects: dict[str, Any] = {}  # Weak references, as far as there can be some.
        self._paths: dict[int, str] = {}
        self._types: dict[str, type] = {}
        self._memory: dict[str, int] = {}
        self._at_memory: dict[int, str] = {}

    def add(self, path: str, value: object) -> None:
        """Take an object for the one that is constructed at a path."""
        try:
            self._objects[path] = weakref.ref(value)
        except TypeError:
            self._objects[path] = lambda: value  # Lists and dictionaries cannot be referred to weakly.
        self._paths[id(value)] = path
        self._types[path] = type(value)
        if isinstance(value, torch.Tensor):
            address = self._memory[path] = address_of(value)
            self._at_memory.setdefault(address, path)

    def has_moved(self, path: str, tensor: torch.Tensor) -> bool:
        """Whether the tensor that was constructed at a path has other memory since, as after `tensor.data = ...`."""
        return self._memory.get(path, 0) not in (0, address_of(tensor))

    def find_sharing(self, tensor: torch.Tensor) -> str | None:
        """Return the path of a constructed tensor with which a tensor shares its memory; `None` if there is none."""
        address = address_of(tensor)
        path = self._at_memory.get(address) if address else None
        other = None if path is None else self.get(path)
        is_there = path is not None and isinstance(other, torch.Tensor) and address_of(other) == address
        return path if is_there else None

    def get(self, path: str) -> Any | None:
        """Return the object at a path; `None` if there is none, or none any more."""
        reference = self._objects.get(path)
        return None if reference is None else reference()

    def type_at(self, path: str) -> type | None:
        """Return the type of the object at a path, which may be gone; `None` if none was constructed there."""
        return self._types.get(path)

    def path_of(self, value: object) -> str | None:
        """Return the path of an object; `None` if it is none of those that were constructed."""
        path = self._paths.get(id(value))
        # An address may be used again: by an object that was made after the constructed one was gone.
        return path if path is not None and self.get(path) is value else None

    def update(self, other: Anchors) -> None:
        """Take over what another table holds."""
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
    """Return where the memory of a tensor begins; 0 for one that has none of its own."""
    if tensor.layout is not torch.strided or tensor.is_meta or is_sharded(tensor):
        return 0
    return 0 if hasattr(tensor, "__tensor_flatten__") else tensor.untyped_storage().data_ptr()


def is_below(path: str, root: str) -> bool:
    """Whether a path is that of a part of the run, or of something in it."""
    return path.startswith(root) and path[len(root) : len(root) + 1] in ("", ".", "[")


class Graph:
    """What the parts of a run share while they are captured and restored: an object that several hold is one.

    Attributes:
        anchors: the constructed objects of all parts.
        classes: the classes of which objects may be made.
        roots: the paths of the parts.
        seen: what the capture in progress has come by: objects by their addresses, with their paths.
        known: what the restoration in progress has brought back, by path.
        storages: memory that tensors share which have been brought back.
        is_open: whether several parts are being captured, or restored, together.
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
        """Let all parts that are captured, or restored, within the context share what they hold."""
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
