"""Restores the attributes of an object, in the order in which one may refer to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from helios.checkpoint.state.baseline import ATTRIBUTES, CLASSES, DELETED, DETAILS, SECTIONS
from helios.checkpoint.state.classes import functions_of
from helios.checkpoint.state.contents import contents_of
from helios.checkpoint.state.decoding import Decoder
from helios.checkpoint.state.details import describe, link_parameters, prepare, restore
from helios.checkpoint.state.parts import ensure_same_names, set_state
from helios.checkpoint.state.reading import UnresolvedError
from helios.checkpoint.state.states import decode_part_state
from helios.checkpoint.state.values import TAG
from helios.checkpoint.state.writing import LEFT, own_attributes
from helios.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from helios.checkpoint.state.baseline import Baseline


class Restoration:
    """Restores the collected state of one object."""

    def __init__(self, baseline: Baseline) -> None:
        """Store the base state of the object."""
        self._base = baseline
        self._decoder = Decoder(baseline.graph, baseline.device)

    def run(self, states: Mapping[str, Any], *, partial: bool) -> None:
        """Restore the collected state; see `AttributeCapture.restore`."""
        scratch = self._base.scratch_encoder()
        present = self._base.encode_attributes(scratch)
        # Checked now, because tensors loaded below may share memory with unchanged attributes.
        stale = self._find_stale(present)
        self._base.describe_parts(scratch)  # Modules and optimizers may hold objects with a state, too.
        parts = scratch.parts
        saved = {f"{self._base.root}.{name}": state for name, state in states.items() if name not in SECTIONS}
        attributes = states.get(ATTRIBUTES, {})
        if not partial:
            self._check_names(states, saved, parts)
        details = {f"{self._base.root}.{name}": entry for name, entry in states.get(DETAILS, {}).items()}
        parts = {path: part for path, part in parts.items() if path in saved}
        networks = {path: part for path, part in parts.items() if isinstance(part, nn.Module)}
        optimizers = {path: part for path, part in parts.items() if isinstance(part, torch.optim.Optimizer)}
        for path, network in networks.items():
            prepare(network, path, details.get(path, {}), self._base.graph.known)
            self._load(network, saved[path], path)
        later = self._restore_attributes(attributes)
        self._restore_optimizers(optimizers, saved, details)
        for name, error in self._restore_attributes({name: attributes[name] for name in later}).items():
            if not partial:
                raise CheckpointMismatchError(
                    f"{self._base.show(f'{self._base.root}.{name}')} cannot be restored: {error}"
                ) from error
        for path, part in parts.items():
            if path not in networks and path not in optimizers:
                self._load(part, saved[path], path)
        self._restore_details(parts, details)
        self._restore_classes(states.get(CLASSES, {}))
        self._remove(states.get(DELETED, []))
        if not partial:
            self._reset(stale, {*attributes, *states.get(DELETED, [])})

    def _check_names(self, states: Mapping[str, Any], saved: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
        # If training has assigned or deleted an attribute, its constructed object is not used any more.
        gone = {*states.get(ATTRIBUTES, {}), *states.get(DELETED, [])}
        present = [name for name in map(self._base.relative, parts) if _root_of(name) not in gone or name in states]
        names = [self._base.relative(path) for path in saved]
        ensure_same_names(type(self._base.owner).__name__, saved=names, present=present)

    def _restore_optimizers(
        self, optimizers: Mapping[str, torch.optim.Optimizer], saved: Mapping[str, Any], details: Mapping[str, Any]
    ) -> None:
        # An optimizer inside another one comes first, because the outer one may refer to the groups of the inner one.
        groups = {path: optimizer.param_groups for path, optimizer in optimizers.items()}
        for path, optimizer in sorted(optimizers.items(), key=lambda item: -len(item[0])):
            link_parameters(optimizer, details.get(path, {}), path, self._decoder)
            self._load(optimizer, saved[path], path)
        for path, optimizer in optimizers.items():
            # Also if another optimizer has just replaced them.
            optimizer.param_groups = groups[path]

    def _load(self, part: Any, state: Any, path: str) -> None:
        set_state(part, decode_part_state(part, state, self._base.show(path)), self._base.show(path))
        for where, value in contents_of(part, path):
            self._base.graph.known[where] = value

    def _restore_attributes(self, nodes: Mapping[str, Any]) -> dict[str, UnresolvedError]:
        """Set attributes; return the errors of those that refer to objects that do not exist yet."""
        unresolved: dict[str, UnresolvedError] = {}
        for name, node in nodes.items():
            try:
                self._decoder.fill_attributes(self._base.owner, {name: node}, self._base.root, removes=False)
            except UnresolvedError as error:
                unresolved[name] = error
        return unresolved

    def _restore_details(self, parts: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        for path, part in parts.items():
            entries = dict(details.get(path, {}))
            if isinstance(part, nn.Module):
                # An attribute that the checkpoint has unchanged may have changed in this process, also by loading.
                scratch = self._base.scratch_encoder()
                for name, node in describe(part, path, scratch).items():
                    mark = self._base.details.get(path, {}).get(name)
                    if name not in entries and mark is not None and mark.node is not None and not mark.fits(node, 0):
                        entries[name] = mark.node[0]
            restore(part, entries, path, self._decoder)

    def _restore_classes(self, classes: Mapping[str, Any]) -> None:
        for name, nodes in classes.items():
            module, qualname = name.split(" ", 1)
            cls = self._base.graph.classes.find((module, qualname))
            if cls is None:
                raise CheckpointMismatchError(
                    f"the checkpoint has attributes of the class {module}.{qualname}, which this program has not"
                )
            for attribute, node in nodes.items():
                path = f"{cls.__module__}.{cls.__qualname__}.{attribute}"
                if attribute.endswith("()"):
                    self._decoder.fill_defaults(functions_of(cls)[attribute.removesuffix("()")], node, path)
                elif node != LEFT:
                    setattr(cls, attribute, self._decoder.decode(node, path))

    def _remove(self, names: Iterable[str]) -> None:
        own = own_attributes(self._base.owner)
        for name in names:
            if name in own:
                object.__delattr__(self._base.owner, name)

    def _find_stale(self, present: Mapping[str, tuple[Any, int]]) -> list[str]:
        """Return the attributes that an earlier run of this object has changed."""
        marks = self._base.marks
        nodes = {name: entry for name, entry in present.items() if entry[0] != {TAG: "part"}}
        return [name for name, (node, size) in nodes.items() if not (name in marks and marks[name].fits(node, size))]

    def _reset(self, stale: list[str], restored: set[str]) -> None:
        """Reset attributes to the base state that the checkpoint has unchanged and an earlier run has changed."""
        for name in stale:
            mark = self._base.marks.get(name)
            if name in restored or mark is None:
                continue
            if mark.node is None:
                shown = self._base.show(f"{self._base.root}.{name}")
                raise CheckpointMismatchError(
                    f"{shown} was changed by an earlier run of this object, and is as constructed in the checkpoint: "
                    "construct the object anew to continue from there"
                )
            self._decoder.fill_attributes(self._base.owner, {name: mark.node[0]}, self._base.root, removes=False)
        self._remove(name for name in stale if name not in self._base.marks and name not in restored)


def _root_of(name: str) -> str:
    """Return the attribute that holds an object."""
    return name.partition(".")[0].partition("[")[0]
