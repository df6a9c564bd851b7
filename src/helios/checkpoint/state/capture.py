"""Capture and restore of the attributes that training changes in a model, a plug-in or a data module.

Every object with a `state_dict` (networks, optimizers, schedulers, ...) is saved under its path. Every other attribute
is saved if it differs from the base state. A value that a checkpoint cannot hold becomes a finding: a warning with its
path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from helios.checkpoint.state.anchors import Graph, is_below
from helios.checkpoint.state.baseline import ATTRIBUTES, CLASSES, DELETED, DETAILS, Baseline
from helios.checkpoint.state.classes import name_of
from helios.checkpoint.state.decoding import Decoder
from helios.checkpoint.state.encoding import Encoder
from helios.checkpoint.state.marks import CLASS_MARKS, Mark
from helios.checkpoint.state.memory import find_shared_memory
from helios.checkpoint.state.restoring import Restoration
from helios.checkpoint.state.states import encode_part_state
from helios.checkpoint.state.structure import compare_structures
from helios.checkpoint.state.tensors import GRAPH
from helios.checkpoint.state.values import TAG
from helios.checkpoint.state.writing import own_attributes
from helios.errors import CheckpointMismatchError, HeliosError

if TYPE_CHECKING:
    from collections.abc import Mapping


class AttributeCapture(Baseline):
    """The state of an object's own attributes.

    The object is a part of a run. Its base state is marked after `setup`. From then on, in this run and in later runs
    of the same object, every change is saved.

    Attributes:
        is_marked: whether the base state was marked, that is, whether there was a run.
        findings: the values that the last capture could not save: reasons by path, such as "Classifier.memory".
    """

    def __init__(self, owner: object, ignore: frozenset[str], always: tuple[str, ...] = ()) -> None:
        """Prepare the capture of the attributes of an object.

        Args:
            owner: the object.
            ignore: attributes that are not saved, including the one that holds this capture.
            always: attributes that `collect_base` returns, even if the object overrides `state_dict`.
        """
        super().__init__(owner, ignore | {"_helios_capture"}, always)

    def forget(self) -> None:
        """Reset to a state without marks."""
        super().forget()
        self.findings: dict[str, str] = {}
        self._before: dict[int, Any] = {}
        self._names_before: set[str] = set()
        self.is_marked = False
        self._leaves: dict[str, torch.Tensor] | None = None  # Cached by the current capture.

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy of the owner, or for another process: without marks, as for a new object."""
        return {"owner": self.owner, "ignored": self.ignored, "always": self.always}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Reset to a state without marks."""
        self.__dict__.update(state)
        self.forget()

    # ----------------------------------------------------------------------------------------------------- marking

    def note_before_setup(self) -> None:
        """Note what an earlier run has left, so that it is not taken for the result of `setup`."""
        if not self.is_marked:
            return  # There was no run, so every attribute was constructed.
        scratch = self.scratch_encoder()
        own = self.own()
        for name, value in own.items():
            scratch.attribute(value, f"{self.root}.{name}")
        self._before = {address: value for address, (value, _) in scratch.graph.seen.items()}
        self._names_before = set(own)

    def mark(self, graph: Graph | None = None, root: str | None = None, device: torch.device | None = None) -> None:
        """Mark the current attributes as the base state, except those that `note_before_setup` has found.

        Args:
            graph: the tables that the parts of the run share; `None` for a single part.
            root: the path of this part in the run.
            device: the device of the run in this process.
        """
        self.graph = Graph() if graph is None else graph
        self.root = self.root if root is None else root
        self.device = device
        self.graph.roots.add(self.root)
        self.graph.anchors.update(self.anchors)
        self.graph.anchors.add(self.root, self.owner)
        with self.graph.together():
            self._mark()
        self.anchors = self.graph.anchors.below(self.root)
        self._before, self._names_before, self.is_marked = {}, set(), True

    def _mark(self) -> None:
        encoder = Encoder(self.graph, self.root, self.device, registers=lambda value: id(value) not in self._before)
        encoder.attributes_of(self.owner, self.root, self.always)
        for name, (node, size) in self.encode_attributes(encoder).items():
            if name not in self._names_before:
                self.marks.setdefault(name, Mark.of(node, size))
        for path, entries in self.describe_parts(encoder).items():
            self.details.setdefault(path, {name: Mark.of(node, 0) for name, node in entries.items()})
        for path, structure in self.describe_structures(encoder).items():
            self.structures.setdefault(path, structure)
        for cls, nodes in self.encode_classes(encoder).items():
            CLASS_MARKS.setdefault(cls, {name: Mark.of(node, 0) for name, node in nodes.items()})

    def leave(self) -> None:
        """Release the other parts of the run."""
        self.graph = Graph()
        self.graph.anchors.update(self.anchors)
        self.graph.roots.add(self.root)

    # -------------------------------------------------------------------------------------------------- collecting

    def collect(self) -> dict[str, Any]:
        """Return the states of all networks, optimizers and the like, and all changed attributes, as plain data.

        Raises:
            ArgumentTypeError: if a checkpoint cannot hold one of these states.
        """
        with self.graph.together():
            return self._collect()

    def collect_base(self) -> dict[str, Any]:
        """Return the attributes that are always saved, by name."""
        with self.graph.together():
            encoder = Encoder(self.graph, self.root, self.device)
            nodes = encoder.attributes_of(self.owner, self.root, self.always)
            # Losses and scores of earlier steps are not trained on, so their graphs are not needed.
            found = {path: reason for path, reason in encoder.findings.items() if reason is not GRAPH}
            self.findings.update({self.show(path): reason for path, reason in found.items()})
            return nodes

    def restore_base(self, nodes: dict[str, Any]) -> None:
        """Restore what `collect_base` returned."""
        with self.graph.together():
            Decoder(self.graph, self.device).fill_attributes(self.owner, nodes, self.root, removes=False)

    def restore(self, states: Mapping[str, Any], *, partial: bool = False) -> None:
        """Restore what `collect` returned.

        Args:
            states: the states by name.
            partial: restore only what fits existing objects, for testing, where only networks have been set up.

        Raises:
            CheckpointMismatchError: if an object has no state, a state has no object, or a state does not fit.
        """
        if not self.is_marked:
            self.mark()  # It is used outside of a run.
        try:
            with self.graph.together():
                Restoration(self).run(states, partial=partial)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            if isinstance(error, HeliosError):
                raise
            raise CheckpointMismatchError(
                f"this is no state of a {type(self.owner).__name__} ({type(error).__name__}: {error}): pass what its "
                "state_dict() returned"
            ) from error

    def find_leaves(self) -> dict[str, torch.Tensor]:
        """Return the leaf tensors that require gradients, by path."""
        if self._leaves is None or not self.graph.is_open:
            scratch = self.scratch_encoder()
            self.encode_attributes(scratch)
            self.describe_parts(scratch)
            self._leaves = self._find_leaves(scratch.graph)
        return self._leaves

    def _find_leaves(self, graph: Graph) -> dict[str, torch.Tensor]:
        return {
            self.relative(path): value
            for value, path in graph.seen.values()
            if isinstance(value, torch.Tensor) and value.requires_grad and value.is_leaf and is_below(path, self.root)
        }

    def _collect(self) -> dict[str, Any]:
        # Outside of a run there is no base state: everything is saved.
        encoder = Encoder(self.graph, self.root, self.device, registers=None if self.is_marked else lambda _: True)
        attributes = {
            name: node
            for name, (node, size) in self.encode_attributes(encoder).items()
            if node != {TAG: "part"} and not (name in self.marks and self.marks[name].fits(node, size))
        }
        details = self._find_details(encoder)
        classes = self._find_class_changes(encoder)
        states = {self.relative(path): encode_part_state(part, self.show(path)) for path, part in encoder.parts.items()}
        self._leaves = self._find_leaves(self.graph)
        own = own_attributes(self.owner)
        deleted = [name for name in self.marks if name not in own]
        for path, other in find_shared_memory(encoder.arrays, self.graph).items():
            encoder.findings[path] = (
                f"shares its memory with {self.show(other)}, and will not in a resumed run: make both in setup, and "
                "change them in place"
            )
        self.findings = {self.show(path): reason for path, reason in encoder.findings.items()}
        sections = {ATTRIBUTES: attributes, DETAILS: details, CLASSES: classes, DELETED: deleted}
        return {**states, **{name: section for name, section in sections.items() if section}}

    def _find_details(self, encoder: Encoder) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path, entries in self.describe_parts(encoder).items():
            marks = self.details.get(path, {})
            changed = {
                name: node for name, node in entries.items() if not (name in marks and marks[name].fits(node, 0))
            }
            if changed:
                found[self.relative(path)] = changed
        for path, structure in self.describe_structures(encoder).items():
            encoder.findings.update(compare_structures(self.structures.get(path, structure), structure, path))
        return found

    def _find_class_changes(self, encoder: Encoder) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for cls, nodes in self.encode_classes(encoder).items():
            marks = CLASS_MARKS.setdefault(cls, {})
            changed = {name: node for name, node in nodes.items() if not (name in marks and marks[name].fits(node, 0))}
            if changed:
                found[" ".join(name_of(cls))] = changed
        return found
