"""Writing the attributes of an object, and naming those that cannot be written."""

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

LEFT: Final = {TAG: "left"}  # Stands for an attribute that stays as it is constructed.
EXCLUDED: Final = "non_persistent_attributes"
DEEP: Final = "is nested too deeply to be saved"
FLAT: Final = "keep it in a flat list, or a tensor"


class Writer(abc.ABC):
    """Writes the attributes of one part of a run: a model, a plug-in, a data module.

    Attributes:
        parts: what has a state of its own (networks, optimizers, schedulers, ...), by path, to be written apart.
        findings: reasons why values are not written, by their paths.
        classes: the program's own classes that were met.
        size: how many values were written.
        holders: the paths of the tensors in networks that were described, by the ids of the tensors.
        arrays: NumPy arrays that were written, with their paths.
        graph: what the parts of the run share.
        root: the path of this part.
        device: the device of the run in this process.
        registers: tells whether an object has just been constructed, and is to be remembered as such.
        depth: how deep the value that is being written is.
    """

    def __init__(
        self,
        graph: Graph,
        root: str,
        device: torch.device | None = None,
        *,
        registers: Callable[[Any], bool] | None = None,
    ) -> None:
        """Bind the run.

        Args:
            graph: what the parts of the run share.
            root: the path of this part.
            device: the device of the run in this process.
            registers: tells whether an object has just been constructed, and is to be remembered as such; `None` while
                nothing is.
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
            UncapturableError: if it can be held by no checkpoint.
        """

    def attribute(self, value: Any, path: str, *, tells_all: bool = False) -> Any:
        """Return the value of an attribute as plain data; `LEFT`, with a finding, if it cannot be."""
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
            # An error in a class of the user's or of a library must not end the run.
            self.findings[path] = f"cannot be saved ({type(error).__name__}: {error}): keep it in another form"
        # What was met inside is not written, so nothing may refer to it.
        while len(self.graph.seen) > seen:
            self.graph.seen.popitem()
        self.depth = depth
        return LEFT

    def attributes_of(
        self, owner: Any, path: str, names: Iterable[str] | None = None, *, tells_all: bool = False
    ) -> dict[str, Any]:
        """Return the attributes of an object as plain data, by name; all of them unless `names` says which."""
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
        """Return what was made of a value just now as plain data: nobody else holds it."""
        registers, self.registers = self.registers, None
        try:
            return self.encode(value, f"{path}.<inner>")
        finally:
            self.registers = registers

    def ensure_made(self, kind: type, path: str) -> None:
        """Check that an object of a class can be made anew.

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
        """Remember that an object of a class was met, because training may change what its classes hold."""
        self.classes.update(dict.fromkeys(own_bases(kind)))

    def constant(self, value: Any, path: str, what: str, *, is_silent: bool = False) -> Any:
        """Return what stands for an object that is taken for the constructed one, and holds no state itself."""
        anchor = self.graph.anchors.path_of(value)
        if anchor is None and self.registers is not None and self.registers(value):
            self.graph.anchors.add(path, value)
            anchor = path
        if anchor is None:
            raise UncapturableError(path, what, "make it in setup", is_silent=is_silent)
        return {TAG: "constant"} if anchor == path else {TAG: "same", "at": anchor}

    def of_class(self, value: Any, path: str, base: type) -> dict[str, Any]:
        """Return what an object of a builtin's subclass has beside what the builtin holds."""
        kind = type(value)
        if kind is base:
            return {}
        self.ensure_made(kind, path)
        extra: dict[str, Any] = {"class": list(name_of(kind))}
        if kind.__dictoffset__ and object.__getattribute__(value, "__dict__") is value:
            return {**extra, "is_own_dict": True}  # As classes do whose keys are attributes.
        attributes = self.attributes_of(value, path)
        return {**extra, "attributes": attributes} if attributes else extra


def own_attributes(owner: Any) -> dict[str, Any]:
    """Return what an object holds by name, in its dictionary and its slots, without calling anything of its class."""
    held = dict(object.__getattribute__(owner, "__dict__")) if type(owner).__dictoffset__ else {}
    for name in slots_of(type(owner)):
        try:
            held[name] = object.__getattribute__(owner, name)
        except AttributeError:
            continue  # A slot that nothing has been put into.
    return held
