"""Writes the attributes of an object, and records those that cannot be written."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Final

from helios.checkpoint.state.anchors import UncapturableError
from helios.checkpoint.state.classes import name_of, own_bases, show, slots_of
from helios.checkpoint.state.values import TAG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from helios.checkpoint.state.anchors import Graph

LEFT: Final = {TAG: "left"}  # Stands for an attribute that a restore leaves as it is.
EXCLUDED: Final = "non_persistent_attributes"
DEEP: Final = "is nested too deeply to be saved"
FLAT: Final = "keep it in a flat list, or a tensor"


class Writer(abc.ABC):
    """Writes the attributes of one part of a run: a model, a plug-in, a data module.

    Attributes:
        parts: objects with a `state_dict` (networks, optimizers, ...), by path, which are written separately.
        findings: reasons why values are not written, by their paths.
        classes: the classes of the program that were met.
        size: the number of values that were written.
        holders: the paths of the tensors of networks, by id.
        arrays: NumPy arrays that were written, with their paths.
        graph: the tables that the parts of the run share.
        root: the path of this part.
        device: the device of the run in this process.
        registers: returns whether an object was just constructed and is registered as an anchor.
        depth: the nesting level of the current value.
    """

    def __init__(
        self,
        graph: Graph,
        root: str,
        device: torch.device | None = None,
        *,
        registers: Callable[[Any], bool] | None = None,
    ) -> None:
        """Store the run.

        Args:
            graph: the tables that the parts of the run share.
            root: the path of this part.
            device: the device of the run in this process.
            registers: returns whether an object was just constructed and is registered as an anchor; `None` to register
                nothing.
        """
        self.parts: dict[str, Any] = {}
        self.findings: dict[str, str] = {}
        self.classes: dict[type, None] = {}
        self.size = 0
        self.holders: dict[int, str] = {}
        self.arrays: list[tuple[Any, str]] = []
        self.graph = graph
        self.device = device
        self.root = root
        self.registers = registers
        self.depth = 0

    @abc.abstractmethod
    def encode(self, value: Any, path: str) -> Any:
        """Return a value as plain data.

        Raises:
            UncapturableError: if a checkpoint cannot hold it.
        """

    def attribute(self, value: Any, path: str, *, tells_all: bool = False) -> Any:
        """Return the value of an attribute as plain data; `LEFT`, with a finding, if that is impossible."""
        depth, seen = self.depth, len(self.graph.seen)
        try:
            return self.encode(value, path)
        except UncapturableError as error:
            if tells_all or not error.is_silent:
                where = path if error.what == DEEP else error.path
                self.findings[where] = f"{error.what}: {error.remedy}"
        except RecursionError:
            self.findings[path] = f"{DEEP}: {FLAT}"
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # An error in a class of the user or of a library must not end the run.
            self.findings[path] = f"cannot be saved ({type(error).__name__}: {error}): keep it in another form"
        # The objects inside are not written, so nothing may refer to them.
        while len(self.graph.seen) > seen:
            self.graph.seen.popitem()
        self.depth = depth
        return LEFT

    def attributes_of(
        self, owner: Any, path: str, names: Iterable[str] | None = None, *, tells_all: bool = False
    ) -> dict[str, Any]:
        """Return the attributes of an object as plain data, by name; all of them if `names` is not given."""
        held = own_attributes(owner)
        if names is not None:
            held = {name: held[name] for name in names if name in held}
        excluded = getattr(type(owner), EXCLUDED, ())
        return {
            name: self.attribute(value, f"{path}.{name}", tells_all=tells_all)
            for name, value in held.items()
            if name not in excluded
        }

    def encode_inner(self, value: Any, path: str) -> Any:
        """Return a temporary value, which no other object holds, as plain data."""
        registers, self.registers = self.registers, None
        try:
            return self.encode(value, f"{path}.<inner>")
        finally:
            self.registers = registers

    def ensure_made(self, kind: type, path: str) -> None:
        """Check that an object of a class can be constructed again.

        Raises:
            UncapturableError: if not.
        """
        if self.registers is not None:
            self.graph.classes.note(kind)
        self.note_classes(kind)
        if not self.graph.classes.may_make(kind):
            raise UncapturableError(
                path,
                f"is {show(kind)} made during training, which a resumed run cannot make",
                "make it in setup, keep what it holds in plain attributes, or give the class state_dict and "
                "load_state_dict",
            )

    def note_classes(self, kind: type) -> None:
        """Record the class of an object that was met, because training may change class attributes."""
        self.classes.update(dict.fromkeys(own_bases(kind)))

    def constant(self, value: Any, path: str, what: str, *, is_silent: bool = False) -> Any:
        """Return the reference to a constructed object that has no state itself."""
        anchor = self.graph.anchors.path_of(value)
        if anchor is None and self.registers is not None and self.registers(value):
            self.graph.anchors.add(path, value)
            anchor = path
        if anchor is None:
            raise UncapturableError(path, what, "make it in setup", is_silent=is_silent)
        return {TAG: "constant"} if anchor == path else {TAG: "same", "at": anchor}

    def of_class(self, value: Any, path: str, base: type) -> dict[str, Any]:
        """Return the attributes of an object of a builtin's subclass."""
        kind = type(value)
        if kind is base:
            return {}
        self.ensure_made(kind, path)
        extra: dict[str, Any] = {"class": list(name_of(kind))}
        if kind.__dictoffset__ and object.__getattribute__(value, "__dict__") is value:
            return {**extra, "is_own_dict": True}  # Some classes have their keys as attributes.
        attributes = self.attributes_of(value, path)
        return {**extra, "attributes": attributes} if attributes else extra


def own_attributes(owner: Any) -> dict[str, Any]:
    """Return the attributes of an object from its dictionary and slots, without calling code of its class."""
    held = dict(object.__getattribute__(owner, "__dict__")) if type(owner).__dictoffset__ else {}
    for name in slots_of(type(owner)):
        try:
            held[name] = object.__getattribute__(owner, name)
        except AttributeError:
            continue  # An empty slot.
    return held
