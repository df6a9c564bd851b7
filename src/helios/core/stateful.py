"""What has a state: collecting and restoring an object's stateful attributes by name."""

from __future__ import annotations

import collections
import random
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from helios.core.plain import Fingerprint, is_plain
from helios.core.shards import fit_network, fit_optimizer
from helios.errors import ArgumentTypeError, CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


_PLAIN: Final = "plain attributes"  # No attribute has a space in its name.


@runtime_checkable
class Stateful(Protocol):
    """Anything whose state can be taken and given back."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take over a state that `state_dict` returned."""
        ...


def unwrap_module(module: nn.Module) -> nn.Module:
    """Return the network inside the wrappers that torch puts around one to distribute or compile it."""
    while (attribute := _get_wrapped_attribute(module)) is not None:
        module = getattr(module, attribute)
    return module


def _get_wrapped_attribute(module: nn.Module) -> str | None:
    """Return where a wrapper of torch's has the network that it wraps; `None` if this is no wrapper."""
    if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return "module"
    return "_orig_mod" if hasattr(module, "_orig_mod") else None  # torch.compile; the name is in every state_dict.


def find_wrappers(network: nn.Module) -> dict[str, str]:
    """Return, by its path, of each wrapper in a network, and around it, the attribute where it has what it wraps."""
    modules = network.named_modules(remove_duplicate=False)
    return {path: attribute for path, module in modules if (attribute := _get_wrapped_attribute(module)) is not None}


def bare_name(name: str, wrappers: Mapping[str, str]) -> str:
    """Return the name that a part of a network would have without the wrappers on the way to it.

    Args:
        name: its name, or its path.
        wrappers: as `find_wrappers` returns them.
    """
    parts = name.split(".")
    return ".".join(part for n, part in enumerate(parts) if wrappers.get(".".join(parts[:n])) != part)


def get_network_state(network: nn.Module) -> dict[str, Any]:
    """Return what `network.state_dict()` would, had nothing in it been wrapped, such as what an average is made of."""
    network = unwrap_module(network)
    _persist_torchmetrics(network)
    state, wrappers = network.state_dict(), find_wrappers(network)
    return _rename(state, lambda name: bare_name(name, wrappers)) if wrappers else state


def _set_network_state(network: nn.Module, state: dict[str, Any]) -> None:
    network = unwrap_module(network)
    _persist_torchmetrics(network)
    wrappers = find_wrappers(network)
    present = network.state_dict() if wrappers else state
    # Helios once wrote the names of wrappers within a network: such a state fits as it is.
    if not set(state) <= set(present):
        paths = [path for path, _ in network.named_modules(remove_duplicate=False)]
        names = {bare_name(name, wrappers): name for name in [*paths, *present]}
        state = _rename(state, lambda name: names.get(name, name))
    network.load_state_dict(fit_network(state, network))


def _rename(state: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a state with other names in it, also of the modules whose versions torch adds to it as an attribute."""
    renamed = collections.OrderedDict((change(key), value) for key, value in state.items())
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        changed = collections.OrderedDict((change(path), entry) for path, entry in versions.items())
        renamed._metadata = changed  # type: ignore[attr-defined]  # noqa: SLF001 - where torch looks for it.
    return renamed


def get_state(value: Any) -> Any | None:  # noqa: PLR0911 - one return for each kind of object.
    """Return the state of anything stateful, as plain data; `None` if it is not stateful.

    Besides whatever has `state_dict` and `load_state_dict`, stateful are torch's, NumPy's and Python's generators, and
    lists, tuples and dictionaries that hold something stateful.
    """
    if isinstance(value, nn.Module):
        return get_network_state(value)
    if isinstance(value, torch.Generator):
        return {"generator": value.get_state()}
    if isinstance(value, np.random.Generator):
        return {"generator": value.bit_generator.state}
    if isinstance(value, random.Random):
        return {"generator": value.getstate()}
    if isinstance(value, dict | list | tuple):
        states = {key: get_state(item) for key, item in _items(value)}
        return {key: state for key, state in states.items() if state is not None} or None
    if isinstance(value, Stateful) and not isinstance(value, type):
        return value.state_dict()
    return None


def set_state(value: Any, state: Any, path: str) -> None:
    """Give a state from `get_state` back to the object, or to an equal one.

    Args:
        value: the object.
        state: what `get_state` returned.
        path: what to call the object in an error.

    Raises:
        CheckpointMismatchError: if the state does not fit the object.
    """
    try:
        _set_state(value, state, path)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        if isinstance(error, CheckpointMismatchError):
            raise
        raise CheckpointMismatchError(
            f"the state saved for {path} does not fit the {type(value).__name__} that is there now: {error}",
        ) from error


def _set_state(value: Any, state: Any, path: str) -> None:
    if isinstance(value, nn.Module):
        _set_network_state(value, state)
    elif isinstance(value, torch.Generator):
        value.set_state(state["generator"])
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = state["generator"]
    elif isinstance(value, random.Random):
        version, internal, gauss_next = state["generator"]
        value.setstate((version, tuple(internal), gauss_next))
    elif isinstance(value, dict | list | tuple):
        parts = dict(_items(value))
        ensure_same_names(path, saved=state, present=[key for key, item in parts.items() if is_stateful(item)])
        for key, item in state.items():
            set_state(parts[key], item, f"{path}[{key!r}]")
    else:
        value.load_state_dict(fit_optimizer(state, value) if isinstance(value, torch.optim.Optimizer) else state)
        if isinstance(value, torch.optim.Optimizer) and state["state"]:
            # It has stepped, in an earlier process: a scheduler that steps first in this one has nothing to warn of.
            value._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001 - torch's own mark, set in `step`.


def ensure_same_names(path: str, *, saved: Iterable[Any], present: Iterable[Any]) -> None:
    """Check that a saved state and the object that takes it have parts of the same names.

    Raises:
        CheckpointMismatchError: if not; the message names the parts that only one of them has.
    """
    gone = [name for name in saved if name not in set(present)]
    new = [name for name in present if name not in set(saved)]
    if gone or new:
        parts = [f"the checkpoint alone has {gone}"] * bool(gone) + [f"only the object has {new}"] * bool(new)
        raise CheckpointMismatchError(f"{path} is not what was saved: {' and '.join(parts)}")


def is_stateful(value: Any) -> bool:
    """Whether `get_state` has something to return for this."""
    if isinstance(value, dict | list | tuple):
        return any(is_stateful(item) for _, item in _items(value))
    if isinstance(value, torch.Generator | np.random.Generator | random.Random):
        return True
    return isinstance(value, Stateful) and not isinstance(value, type)


def _items(value: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> list[tuple[Any, Any]]:
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    # Keys that a checkpoint cannot hold belong to a look-up table, not to a collection of parts.
    return [(key, item) for key, item in value.items() if isinstance(key, str | int)]


def _persist_torchmetrics(module: nn.Module) -> None:
    """Have torchmetrics put its counts into state_dict, which it leaves out unless asked."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is not None:
        for part in module.modules():
            if isinstance(part, torchmetrics.Metric):
                part.persistent(mode=True)


class AttributeStates:
    """The state of an object's own attributes, by name.

    Saved are the attributes that are stateful, by name, and under one more key those of plain data (numbers, strings,
    tensors, ...) that have changed since `mark` was called: a counter is saved, a path given to the constructor is not.
    """

    def __init__(self, owner: object, ignore: frozenset[str]) -> None:
        """Watch `owner`, all but the attributes to `ignore` and the one that holds this object."""
        self._owner = owner
        self._ignored = ignore | {"_attribute_states"}
        self._marks: dict[str, Fingerprint] = {}

    def _own(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self._owner).items() if name not in self._ignored}

    def mark(self) -> None:
        """Take the plain attributes as they are now for unchanged."""
        plain = {name: value for name, value in self._own().items() if not is_stateful(value) and is_plain(value)}
        self._marks = {name: Fingerprint(value) for name, value in plain.items()}

    def collect(self) -> dict[str, Any]:
        """Return the states of all stateful attributes and the values of the plain ones that have changed."""
        states: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for name, value in self._own().items():
            state = get_state(value)
            if state is not None:
                states[name] = state
            elif self._has_changed(name, value):
                plain[name] = value
        return {**states, _PLAIN: plain} if plain else states

    def _has_changed(self, name: str, value: Any) -> bool:
        if not is_plain(value):
            return False
        mark = self._marks.get(name)
        return mark is None or mark != Fingerprint(value)

    def restore(self, states: Mapping[str, Any], *, partial: bool = False) -> None:
        """Give back what `collect` returned.

        Args:
            states: the states by name.
            partial: take only what fits attributes that are there, as when only the networks have been set up.

        Raises:
            CheckpointMismatchError: if a stateful attribute has no state, or a state has no attribute.
        """
        own = self._own()
        stateful = {name for name, value in own.items() if is_stateful(value)}
        saved = [name for name in states if name != _PLAIN]
        if not partial:
            ensure_same_names(type(self._owner).__name__, saved=saved, present=sorted(stateful))
        for name in saved:
            if name in stateful:
                set_state(own[name], states[name], f"{type(self._owner).__name__}.{name}")
        # Plain ones may be new on either side: made after `mark`, or not changed yet when the state was taken.
        for name, value in {} if partial else states.get(_PLAIN, {}).items():
            setattr(self._owner, name, value)


def networks_of(owner: object) -> dict[str, nn.Module]:
    """Return the networks among the attributes of `owner`, and in lists and dictionaries there, by name."""
    return dict(_find_networks(vars(owner).items(), "{}"))


def _find_networks(items: Iterable[tuple[Any, Any]], pattern: str) -> Iterator[tuple[str, nn.Module]]:
    for key, value in items:
        name = pattern.format(key)
        if isinstance(value, nn.Module):
            yield name, value
        elif isinstance(value, dict | list | tuple):
            yield from _find_networks(_items(value), name + "[{}]")


def ensure_state_dict(state: object, owner: str) -> dict[str, Any]:
    """Return `state` if it is what a `state_dict` method may return.

    Raises:
        ArgumentTypeError: if it is not a dictionary.
    """
    if not isinstance(state, dict):
        raise ArgumentTypeError(f"{owner}.state_dict() returned a {type(state).__name__}: return a dict of plain data")
    return state
