"""The base state of an object: its attributes after `setup`, with which the current ones are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from helios.checkpoint.state.anchors import Anchors, Graph
from helios.checkpoint.state.classes import data_of, functions_of, own_bases
from helios.checkpoint.state.details import describe
from helios.checkpoint.state.encoding import Encoder
from helios.checkpoint.state.objects import encode_defaults
from helios.checkpoint.state.structure import describe_structure
from helios.checkpoint.state.writing import EXCLUDED, own_attributes

if TYPE_CHECKING:
    from helios.checkpoint.state.marks import Mark

# The sections of a state. Names of attributes contain no spaces.
ATTRIBUTES: Final = "plain attributes"
DETAILS: Final = "details of parts"
CLASSES: Final = "attributes of classes"
DELETED: Final = "deleted attributes"
SECTIONS: Final = (ATTRIBUTES, DETAILS, CLASSES, DELETED)


class Baseline:
    """The base state of an object, and access to its current state.

    Attributes:
        owner: the object.
        always: names of attributes that are always saved.
        ignored: names of attributes that are never saved otherwise.
        graph: the tables that the parts of the run share.
        root: the path of the object in the run.
        device: the device of the run in this process.
        anchors: the objects that `owner` has constructed.
        marks: the marks of its attributes, by name.
        details: the marks of the details of its networks and optimizers, by path and by module.
        structures: the structures of its networks, by path; see `describe_structure`.
    """

    def __init__(self, owner: object, ignore: frozenset[str], always: tuple[str, ...] = ()) -> None:
        """Prepare the capture of the attributes of an object.

        Args:
            owner: the object.
            ignore: attributes that are not saved.
            always: attributes that are always saved.
        """
        self.owner = owner
        self.always = always
        self.ignored = ignore | set(always)
        self.forget()

    def forget(self) -> None:
        """Reset to a state without marks."""
        self.graph = Graph()
        self.root = "part"
        self.device: torch.device | None = None
        self.anchors = Anchors()
        self.marks: dict[str, Mark] = {}
        self.details: dict[str, dict[str, Mark]] = {}
        self.structures: dict[str, dict[str, tuple[str, int]]] = {}

    def own(self) -> dict[str, Any]:
        """Return the attributes that are captured."""
        held = {name: value for name, value in own_attributes(self.owner).items() if name not in self.ignored}
        # Tensors of networks are written with the network, so networks come first, then optimizers.
        return dict(sorted(held.items(), key=lambda item: _rank(item[1])))

    def scratch_encoder(self) -> Encoder:
        """Return an encoder that does not affect the current capture."""
        graph = Graph()
        graph.anchors, graph.classes, graph.roots = self.graph.anchors, self.graph.classes, self.graph.roots
        return Encoder(graph, self.root, self.device)

    def encode_attributes(self, encoder: Encoder) -> dict[str, tuple[Any, int]]:
        """Return every attribute as plain data, with the number of its values, by name."""
        excluded = getattr(type(self.owner), EXCLUDED, ())
        nodes: dict[str, tuple[Any, int]] = {}
        for name, value in self.own().items():
            if name not in excluded:
                size = encoder.size
                nodes[name] = encoder.attribute(value, f"{self.root}.{name}"), encoder.size - size
        return nodes

    def describe_parts(self, encoder: Encoder) -> dict[str, dict[str, Any]]:
        """Return the details of the networks and optimizers that the encoder has met, by path."""
        described: dict[str, dict[str, Any]] = {}
        while missing := [path for path in encoder.parts if path not in described]:
            for path in missing:  # An attribute of a module may hold an object with a state, too.
                described[path] = describe(encoder.parts[path], path, encoder)
        return described

    def describe_structures(self, encoder: Encoder) -> dict[str, dict[str, tuple[str, int]]]:
        """Return the structures of the networks that the encoder has met, by path."""
        return {path: describe_structure(part) for path, part in encoder.parts.items() if isinstance(part, nn.Module)}

    def encode_classes(self, encoder: Encoder) -> dict[type, dict[str, Any]]:
        """Return the attributes of the classes that the encoder has met."""
        encoder.classes.update(dict.fromkeys(own_bases(type(self.owner))))
        found: dict[type, dict[str, Any]] = {}
        while missing := [cls for cls in encoder.classes if cls not in found]:
            for cls in missing:  # An attribute of a class may be an object of another class.
                path = f"{cls.__module__}.{cls.__qualname__}"
                found[cls] = {name: encoder.attribute(value, f"{path}.{name}") for name, value in data_of(cls).items()}
                for name, function in functions_of(cls).items():
                    if (defaults := encode_defaults(encoder, function, f"{path}.{name}()")) is not None:
                        found[cls][f"{name}()"] = defaults
        return found

    def relative(self, path: str) -> str:
        """Return a path relative to this object."""
        return path.removeprefix(f"{self.root}.")

    def show(self, path: str) -> str:
        """Return a path for messages, which begins with the class of the object."""
        name = type(self.owner).__name__
        return name + path.removeprefix(self.root) if path.startswith(self.root) else path


def _rank(value: Any) -> int:
    return 0 if isinstance(value, nn.Module) else 1 if isinstance(value, torch.optim.Optimizer) else 2
