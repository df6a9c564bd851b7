"""Objects with `state_dict` and `load_state_dict`: networks, optimizers, schedulers and the like."""

from __future__ import annotations

import collections
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from helios.checkpoint.shard_layout import fit_network, fit_optimizer
from helios.checkpoint.state.classes import is_own
from helios.checkpoint.state.digest import holds_scalars_only
from helios.core.context import RunMember
from helios.errors import ArgumentTypeError, CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


_DEEPEST: Final = 20  # Networks are searched for in this many levels of containers and objects.


PartT = TypeVar("PartT")


@runtime_checkable
class Stateful(Protocol):
    """Any object with `state_dict` and `load_state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore a state that `state_dict` returned."""
        ...


# ------------------------------------------------------------------------------------------------------------ networks


def unwrap_module(module: nn.Module) -> nn.Module:
    """Return the network inside torch's wrappers for distributing or compiling it."""
    while (attribute := _get_wrapped_attribute(module)) is not None:
        module = getattr(module, attribute)
    return module


def _get_wrapped_attribute(module: nn.Module) -> str | None:
    """Return the attribute in which a wrapper of torch holds the wrapped network; `None` if this is no wrapper."""
    if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return "module"
    # torch.compile; the name is in every state_dict. `hasattr` is slow for modules without it.
    return "_orig_mod" if "_orig_mod" in module._modules else None  # noqa: SLF001 - see above.


def find_wrappers(network: nn.Module) -> dict[str, str]:
    """Return, for each wrapper in and around a network, by path, the attribute with the wrapped module."""
    return find_wrappers_among(dict(network.named_modules(remove_duplicate=False)))


def find_wrappers_among(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the same as `find_wrappers`, for modules by path; a module with two names occurs twice."""
    found = {path: _get_wrapped_attribute(module) for path, module in modules.items()}
    return {path: attribute for path, attribute in found.items() if attribute is not None}


def bare_name(name: str, wrappers: Mapping[str, str]) -> str:
    """Return the name of a module or tensor without the wrappers on its path.

    Args:
        name: its name or path.
        wrappers: the result of `find_wrappers`.
    """
    if not wrappers:
        return name
    parts = name.split(".")
    return ".".join(part for n, part in enumerate(parts) if wrappers.get(".".join(parts[:n])) != part)


def get_network_state(network: nn.Module) -> dict[str, Any]:
    """Return `network.state_dict()` as if no module in it were wrapped."""
    network = unwrap_module(network)
    _persist_torchmetrics(network)
    state, wrappers = network.state_dict(), find_wrappers(network)
    return _rename(state, lambda name: bare_name(name, wrappers)) if wrappers else state


def _set_network_state(network: nn.Module, state: dict[str, Any]) -> None:
    network = unwrap_module(network)
    _persist_torchmetrics(network)
    wrappers = find_wrappers(network)
    present = network.state_dict() if wrappers else state
    # Earlier versions of Helios wrote the names of wrappers: such a state fits as it is.
    if not set(state) <= set(present):
        paths = [path for path, _ in network.named_modules(remove_duplicate=False)]
        names = {bare_name(name, wrappers): name for name in [*paths, *present]}
        state = _rename(state, lambda name: names.get(name, name))
    network.load_state_dict(fit_network(state, network))


def _rename(state: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a state with other names, also in the module versions that torch adds to it as an attribute."""
    renamed = collections.OrderedDict((change(key), value) for key, value in state.items())
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        changed = collections.OrderedDict((change(path), entry) for path, entry in versions.items())
        renamed._metadata = changed  # type: ignore[attr-defined]  # noqa: SLF001 - where torch reads it.
    return renamed


def _persist_torchmetrics(module: nn.Module) -> None:
    """Let torchmetrics include its counts in state_dict, which it does not by default."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is not None:
        for part in module.modules():
            if isinstance(part, torchmetrics.Metric):
                part.persistent(mode=True)


def networks_of(owner: object) -> dict[str, nn.Module]:
    """Return the networks in the attributes of `owner`, including those in containers and own objects, by name.

    Each has one name: the one with the fewest levels.
    """
    return parts_of(owner, nn.Module)


def parts_of(owner: object, kind: type[PartT]) -> dict[str, PartT]:
    """Return the objects of a type, found in the same way as by `networks_of`."""
    found: dict[str, PartT] = {}
    seen: set[int] = {id(owner)}
    level: list[tuple[str, Any]] = list(vars(owner).items())
    for _ in range(_DEEPEST):
        inner: list[tuple[str, Any]] = []
        for name, value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, kind):
                found[name] = value
            elif not isinstance(value, nn.Module):
                inner += _held_by(name, value)
        level = inner
    return found


def _held_by(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"{name}[{key}]", item) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [] if holds_scalars_only(value) else [(f"{name}[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, RunMember | type) or not is_own(type(value)):
        return []
    return [(f"{name}.{key}", item) for key, item in vars(value).items()] if type(value).__dictoffset__ else []


# ----------------------------------------------------------------------------------------------------- getting, setting


def get_state(part: nn.Module | Stateful) -> dict[str, Any]:
    """Return the `state_dict` of an object; of a network, without the names of wrappers."""
    return get_network_state(part) if isinstance(part, nn.Module) else part.state_dict()


def set_state(part: Any, state: Any, path: str) -> None:
    """Restore a state that `get_state` returned into the same object, or an equal one.

    Args:
        part: the network, optimizer or other object.
        state: what `get_state` returned.
        path: the name of the object, for an error.

    Raises:
        CheckpointMismatchError: if the state does not fit the object.
    """
    try:
        if isinstance(part, nn.Module):
            _set_network_state(part, state)
        elif isinstance(part, torch.optim.Optimizer):
            _set_optimizer_state(part, state)
        else:
            part.load_state_dict(state)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        if isinstance(error, CheckpointMismatchError):
            raise
        raise CheckpointMismatchError(
            f"the state saved for {path} does not fit the {type(part).__name__} that is there now: {error}",
        ) from error


def _set_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state into the existing groups and state table of the optimizer, which other objects may hold."""
    groups, table = optimizer.param_groups, optimizer.state
    held = list(groups)
    saved = fit_optimizer(state, optimizer)
    optimizer.load_state_dict(saved)
    for group, loaded in zip(held, optimizer.param_groups, strict=True):
        group.clear()
        group.update(loaded)
    table.clear()
    table.update(optimizer.state)
    groups[:] = held
    optimizer.param_groups, optimizer.state = groups, table
    _restore_dtypes(optimizer, saved)
    if state["state"]:
        # It has stepped in an earlier process: torch must not warn if a scheduler steps first in this one.
        optimizer._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001 - torch's own mark, set in `step`.


def _restore_dtypes(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore the saved dtype of floating-point tensors, which `load_state_dict` replaces by that of the parameter."""
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        for name, value in saved["state"].get(index, {}).items():
            loaded = optimizer.state[parameter].get(name)
            if isinstance(value, torch.Tensor) and isinstance(loaded, torch.Tensor) and loaded.dtype != value.dtype:
                optimizer.state[parameter][name] = value.to(loaded.device, copy=True)


def ensure_same_names(path: str, *, saved: Iterable[Any], present: Iterable[Any]) -> None:
    """Check that a saved state and the object that it is loaded into have the same names.

    Raises:
        CheckpointMismatchError: if not; the message lists the names that only one of them has.
    """
    before, now = dict.fromkeys(saved), dict.fromkeys(present)
    gone, new = [name for name in before if name not in now], [name for name in now if name not in before]
    if gone or new:
        parts = [f"the checkpoint alone has {gone}"] * bool(gone) + [f"only the object has {new}"] * bool(new)
        raise CheckpointMismatchError(f"{path} is not what was saved: {' and '.join(parts)}")


def ensure_state_dict(state: object, owner: str) -> dict[str, Any]:
    """Return `state` if it is a valid result of a `state_dict` method.

    Raises:
        ArgumentTypeError: if it is not a dictionary.
    """
    if not isinstance(state, dict):
        raise ArgumentTypeError(f"{owner}.state_dict() returned a {type(state).__name__}: return a dict of plain data")
    return state
