"""The states of all parts of a run, captured together: shared objects are shared again after a resume."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from helios.checkpoint.state.anchors import Graph
from helios.checkpoint.state.parts import ensure_state_dict
from helios.checkpoint.state.states import decode_state, encode_state
from helios.core.logging import get_root_logger
from helios.data.datamodule import DataModule
from helios.model.model import Model
from helios.plugins.base import Plugin
from helios.plugins.table import overrides

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class PartStates:
    """The states of the model, the plug-ins and the data module of a run."""

    def __init__(self, model: Model, plugins: Mapping[str, Plugin], datamodule: DataModule) -> None:
        """Store the parts."""
        self.graph = Graph()
        self._model = model
        self._plugins = plugins
        self._datamodule = datamodule
        self._named: set[tuple[str, str]] = set()

    def _parts(self) -> dict[str, Model | Plugin | DataModule]:
        # The model comes first: an object that a plug-in shares with it belongs to the model.
        plugins = {f"plugins[{plug_id!r}]": plugin for plug_id, plugin in self._plugins.items()}
        return {"model": self._model, **plugins, "datamodule": self._datamodule}

    @property
    def others(self) -> dict[str, Plugin | DataModule]:
        """The parts beside the model, by their paths."""
        return {root: part for root, part in self._parts().items() if not isinstance(part, Model)}

    def note_before_setup(self) -> None:
        """Note the attributes that earlier runs have left in the same objects."""
        for part in self._parts().values():
            part._helios_capture.note_before_setup()  # noqa: SLF001 - the run's side of each part.

    def mark(self, device: torch.device) -> None:
        """Take the current attributes as the base state: what changes from now on is saved.

        Args:
            device: the device of the run in this process.
        """
        with self.graph.together():
            for root, part in self._parts().items():
                part._helios_capture.mark(self.graph, root, device)  # noqa: SLF001 - the run's side of each part.

    def leave(self) -> None:
        """Separate the parts from the run."""
        for part in self._parts().values():
            part._helios_capture.leave()  # noqa: SLF001 - the run's side of each part.

    def collect(self) -> dict[str, Any]:
        """Return the states of all parts as plain data, and warn once about each attribute that cannot be saved."""
        with self.graph.together():
            model = self._model
            states = {
                "model": {
                    "class": type(model).__qualname__,
                    "encoded": overrides(model, "state_dict", Model),  # Otherwise, the state is plain by itself.
                    "state": _collect(model, Model),
                    "base": model._helios_base_state(),  # noqa: SLF001 - the run's side of Model.
                },
                "plugins": {plug_id: _collect(plugin, Plugin) for plug_id, plugin in self._plugins.items()},
                "datamodule": _collect(self._datamodule, DataModule),
            }
        self._name_findings()
        return states

    def _name_findings(self) -> None:
        for part in self._parts().values():
            for path, reason in part._helios_capture.findings.items():  # noqa: SLF001 - the run's side of each part.
                # One warning for all items of a list.
                kind = re.sub(r"\[[^]]*\]", "[]", path), reason
                if kind not in self._named:
                    self._named.add(kind)
                    get_root_logger().warning("not in checkpoints: %s %s", path, reason)

    def restore(self, states: Mapping[str, Any]) -> None:
        """Restore the states that `collect` returned, for training."""
        with self.graph.together():
            state = states["model"]["state"]
            self._model.load_state_dict(_decode(state, self._model, Model))
            self._model._helios_load_base_state(states["model"]["base"])  # noqa: SLF001 - the run's side of Model.
            for plug_id, saved in states["plugins"].items():
                if plug_id in self._plugins:
                    plugin = self._plugins[plug_id]
                    plugin.load_state_dict(_decode(saved, plugin, Plugin))
                elif saved:
                    get_root_logger().warning(
                        "the checkpoint has the state of a plug-in %r, which is not registered: its state is dropped",
                        plug_id,
                    )
            self._datamodule.load_state_dict(_decode(states["datamodule"], self._datamodule, DataModule))

    def restore_for_testing(self, states: Mapping[str, Any]) -> None:
        """Restore the states that `collect` returned, for testing, where only networks have been set up.

        Plug-ins and data modules with their own `state_dict` methods are not restored: these are for training.
        """
        with self.graph.together():
            state = states["model"]["state"]
            self._model.load_state_dict(_decode(state, self._model, Model), fast_init=True)
            for plug_id, saved in states["plugins"].items():
                if plug_id in self._plugins and not _is_users(self._plugins[plug_id], Plugin):
                    self._plugins[plug_id]._helios_capture.restore(saved, partial=True)  # noqa: SLF001 - the run's side of Plugin.
            if not _is_users(self._datamodule, DataModule):
                self._datamodule._helios_capture.restore(states["datamodule"], partial=True)  # noqa: SLF001 - the run's side of DataModule.


def _is_users(part: object, base: type) -> bool:
    """Return whether a part overrides `state_dict` or `load_state_dict`."""
    return overrides(part, "state_dict", base) or overrides(part, "load_state_dict", base)


def _collect(part: Any, base: type) -> dict[str, Any]:
    owner = type(part).__name__
    if base is not Model and not (part._helios_capture.is_marked or _is_users(part, base)):  # noqa: SLF001 - the run's side of each part.
        return {}  # It was not there when the model was trained.
    state = ensure_state_dict(part.state_dict(), owner)
    encoded: dict[str, Any] = encode_state(state, owner) if overrides(part, "state_dict", base) else state
    return encoded


def _decode(state: Any, part: Any, base: type) -> Any:
    return decode_state(state, type(part).__name__) if overrides(part, "state_dict", base) else state
