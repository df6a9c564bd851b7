"""The table of a trainer's plug-ins: look-ups, claims and conflicts."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from helios.errors import (
    ArgumentTypeError,
    ConfigurationError,
    DuplicateNameError,
    PluginConflictError,
    UnknownNameError,
)
from helios.plugins.base import Plugin
from helios.plugins.claims import UniquePluginOverrides

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# The method behind each claim.
_CLAIMED_METHODS: Final = {
    "training_batch": "process_training_batch",
    "validation_batch": "process_validation_batch",
    "testing_batch": "process_testing_batch",
    "should_training_stop": "should_training_stop",
}


def overrides(part: object, method: str, base: type) -> bool:
    """Whether an object brings its own version of a method of its base class."""
    return getattr(type(part), method) is not getattr(base, method) or method in vars(part)


def claims_of(plugin: Plugin) -> list[str]:
    """Return the unique overrides that a plug-in holds, by flag or by overriding the method."""
    flags = plugin.unique_overrides
    names = [field.name for field in dataclasses.fields(UniquePluginOverrides)]
    return [name for name in names if getattr(flags, name) or overrides(plugin, _CLAIMED_METHODS[name], Plugin)]


class PluginTable(MutableMapping[str, Plugin]):
    """Plug-ins by id, in the order in which they were registered.

    It also reads by class, with that class as the static type, and by position: `plugins["cuda"]`,
    `plugins[CUDAPlugin]` and `plugins[0]`.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._plugins: dict[str, Plugin] = {}

    @overload
    def __getitem__(self, key: type[T]) -> T: ...
    @overload
    def __getitem__(self, key: str | int) -> Plugin: ...
    def __getitem__(self, key: str | int | type[T]) -> Plugin | T:
        """Return the plug-in of this id, class or position.

        Raises:
            UnknownNameError: if there is none, or more than one of the class; the message lists the ids.
        """
        if isinstance(key, type):
            found: list[Plugin] = [plugin for plugin in self._plugins.values() if isinstance(plugin, key)]
            if len(found) > 1:
                ids = [plugin.plug_id for plugin in found]
                raise UnknownNameError(f"{len(found)} plug-ins are a {key.__name__}: use one of the ids {ids}")
        elif isinstance(key, int):
            plugins = list(self._plugins.values())
            found = plugins[key : key + 1 or None]
        else:
            found = [self._plugins[key]] if isinstance(key, str) and key in self._plugins else []
        if not found:
            raise UnknownNameError(f"no plug-in {_describe(key)}: {self._describe_ids()}")
        return found[0]

    def __setitem__(self, key: str, plugin: Plugin) -> None:
        """Add a plug-in; adding the same one again changes nothing.

        Raises:
            ArgumentTypeError: if it is no plug-in.
            DuplicateNameError: if the key is taken by another plug-in, or this one is in the table under another key.
            ConfigurationError: if the key is no string, or is empty.
            PluginConflictError: if it claims what another plug-in holds. The table is left as it was.
        """
        if not isinstance(plugin, Plugin):
            raise ArgumentTypeError(
                f"plugins[{key!r}] = {plugin!r}: a {type(plugin).__name__} is no Plugin; derive from it"
            )
        if not isinstance(key, str) or not key:
            raise ConfigurationError(f"plugins[{key!r}] = ...: {key!r} is no key; use a string that is not empty")
        if self._plugins.get(key) is plugin:
            return
        known = next((name for name, each in self._plugins.items() if each is plugin), None)
        if known is not None:
            raise DuplicateNameError(f"this plug-in is registered under {known!r}, and would run twice: use one key")
        if key in self._plugins:
            raise DuplicateNameError(f"plug-in id {key!r} is taken: {self._describe_ids()}; choose another id")
        _ensure_no_conflict([*self._plugins.values(), plugin])
        self._plugins[key] = plugin

    def __delitem__(self, key: str) -> None:
        """Remove the plug-in of this id."""
        plugin = self[key]
        self._plugins = {name: each for name, each in self._plugins.items() if each is not plugin}

    def __contains__(self, key: object) -> bool:
        """Whether there is a plug-in of this id or class, or this plug-in itself."""
        if isinstance(key, type):
            return any(isinstance(plugin, key) for plugin in self._plugins.values())
        if isinstance(key, str):
            return key in self._plugins
        return any(plugin is key for plugin in self._plugins.values())

    def __iter__(self) -> Iterator[str]:
        """Iterate over the ids, in the order of registration."""
        return iter(self._plugins)

    def __len__(self) -> int:
        """Return the number of plug-ins."""
        return len(self._plugins)

    def __repr__(self) -> str:
        """Return the ids and classes."""
        return f"PluginTable({ {key: type(plugin).__name__ for key, plugin in self._plugins.items()} })"

    def _describe_ids(self) -> str:
        return f"there are {list(self._plugins)}" if self._plugins else "no plug-in is registered"

    def ensure_no_conflict(self) -> None:
        """Check the claims again: a plug-in may have set a flag since it was added.

        Raises:
            PluginConflictError: if two plug-ins claim one override.
        """
        _ensure_no_conflict(list(self._plugins.values()))

    def bind(self, method: str) -> dict[str, Callable[..., Any]]:
        """Return the bound methods of this name, of those plug-ins that override it, by id and in order."""
        bound = {
            key: getattr(plugin, method) for key, plugin in self._plugins.items() if overrides(plugin, method, Plugin)
        }
        return {key: _take_batch_alone(call) for key, call in bound.items()} if method.startswith("process_") else bound


def _take_batch_alone(process: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that processes batches, callable with a second argument even if it was written without one.

    The guide of Helios 1.x prints `process_training_batch(self, batch)`.
    """
    kinds = [parameter.kind for parameter in inspect.signature(process).parameters.values()]
    takes_batch_alone = len(kinds) == 1 and kinds[0] is not inspect.Parameter.VAR_POSITIONAL
    return (lambda batch, _: process(batch)) if takes_batch_alone else process


def _describe(key: object) -> str:
    if isinstance(key, type):
        return f"of class {key.__name__}"
    return f"at position {key}" if isinstance(key, int) else repr(key)


def _ensure_no_conflict(plugins: list[Plugin]) -> None:
    holders: dict[str, Plugin] = {}
    for plugin in plugins:
        for claim in claims_of(plugin):
            holder = holders.setdefault(claim, plugin)
            if holder is not plugin:
                raise PluginConflictError(
                    f"plug-in {plugin.plug_id!r} claims {claim}, already held by {holder.plug_id!r}: remove one of "
                    f"them, or let one of them leave {_CLAIMED_METHODS[claim]} alone",
                )
