"""State of networks and optimizers that their `state_dict` does not contain.

Of a network: the training mode of its modules, frozen parameters, non-persistent buffers, attributes of its modules
such as a dropout rate, and tensors that were replaced or have another shape. Of an optimizer: its parameters, and its
attributes.
"""

from __future__ import annotations

import contextlib
import functools
import json
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from helios.checkpoint.state.contents import join, modules_of, tensors_of
from helios.checkpoint.state.fsdp import find_states
from helios.checkpoint.state.structure import class_of, find_ties, tie
from helios.checkpoint.state.writing import own_attributes
from helios.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from helios.checkpoint.state.decoding import Decoder
    from helios.checkpoint.state.encoding import Encoder

_OF_MODULE: Final = frozenset(vars(nn.Module()))
_SELF: Final = "optimizer"  # An optimizer has one entry, a network has one for each module.


@functools.cache
def _of_optimizer() -> frozenset[str]:
    """Return the attributes that every optimizer has; computed late, because an optimizer loads much of torch."""
    # The last is torch's mark that an optimizer has stepped, which schedulers read.
    return (frozenset(vars(torch.optim.Optimizer([torch.zeros(1)], {}))) | {"_opt_called"}) - {"defaults"}


def describe(part: Any, path: str, encoder: Encoder) -> dict[str, Any]:
    """Return the details as plain data: one entry for each module of a network, or one for an optimizer."""
    if isinstance(part, nn.Module):
        is_sharded = bool(find_states([part]))
        ties = {} if is_sharded else find_ties(part, path, encoder.holders)
        return {
            name: {
                **_describe_module(module, join(path, name), encoder, is_sharded=is_sharded),
                **({"tied": ties[name]} if name in ties else {}),
            }
            for name, module in modules_of(part).items()
        }
    if isinstance(part, torch.optim.Optimizer):
        links = [
            [encoder.encode(parameter, f"{path}.param_groups[{index}]['params'][{number}]")
             for number, parameter in enumerate(group["params"])]
            for index, group in enumerate(part.param_groups)
        ]  # fmt: skip
        names = [name for name in own_attributes(part) if name not in _of_optimizer()]
        return {_SELF: {"parameters": links, "attributes": encoder.attributes_of(part, path, names)}}
    return {}


def _describe_module(module: nn.Module, path: str, encoder: Encoder, *, is_sharded: bool) -> dict[str, Any]:
    encoder.note_classes(type(module))
    anchors = encoder.graph.anchors
    tensors = tensors_of(module)
    own = [name for name in own_attributes(module) if name not in _OF_MODULE]
    return {
        "class": class_of(module),
        "training": module.training,
        "frozen": _frozen_in(module),
        # Of sharded parameters, torch itself replaces the tensors.
        "replaced": [name for name in tensors if not is_sharded and _is_replaced(tensors[name], path, name, encoder)],
        "moved": [name for name in tensors if not is_sharded and anchors.has_moved(f"{path}.{name}", tensors[name])],
        "kinds": {
            name: f"{each.dtype} {list(each.shape)} {_role_of(name, module)}"
            for name, each in tensors.items()
            if not _is_lazy(each)
        },
        "buffers": {
            name: each for name, each in tensors.items() if name in module._non_persistent_buffers_set  # noqa: SLF001 - torch has no other way to ask.
        },
        "attributes": encoder.attributes_of(module, path, own),
    }  # fmt: skip


def _is_replaced(tensor: torch.Tensor, path: str, name: str, encoder: Encoder) -> bool:
    anchors, where = encoder.graph.anchors, f"{path}.{name}"
    return anchors.type_at(where) is not None and anchors.get(where) is not tensor


def _is_lazy(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer)


@contextlib.contextmanager
def kept_modes(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the current training mode of each module of the networks when the context ends."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def get_modes(network: nn.Module) -> dict[str, list[Any]]:
    """Return, for each module by name, whether it is in training mode, and which of its parameters are frozen."""
    return {name: [module.training, _frozen_in(module)] for name, module in modules_of(network).items()}


def _frozen_in(module: nn.Module) -> list[str]:
    held = module._parameters.items()  # noqa: SLF001 - see tensors_of.
    return [name for name, parameter in held if parameter is not None and not parameter.requires_grad]


def set_modes(network: nn.Module, modes: Mapping[str, list[Any]]) -> None:
    """Restore what `get_modes` returned; other modules stay as they are."""
    for name, module in modules_of(network).items():
        if name in modes:
            module.training, frozen = modes[name]
            _freeze(module, frozen)


def _freeze(module: nn.Module, frozen: Collection[str]) -> None:
    for key, parameter in module._parameters.items():  # noqa: SLF001 - see tensors_of.
        if parameter is not None and parameter.requires_grad == (key in frozen):
            parameter.requires_grad_(key not in frozen)


# ------------------------------------------------------------------------------------------------------------ restoring


def prepare(network: nn.Module, path: str, details: Mapping[str, dict[str, Any]], known: Mapping[str, Any]) -> None:
    """Give a network tensors of the shapes and dtypes of its saved state, where training has changed them.

    Args:
        network: the network.
        path: its path.
        details: the result of `describe`, for the modules that training has changed.
        known: the tensors of other networks by path.
    """
    modules = modules_of(network)
    ties = find_ties(network, path, {})
    for name, entry in details.items():
        if name in modules:
            saved = entry.get("tied", {})
            untied = [key for key in ties.get(name, {}) if key not in saved]
            _match_tensors(modules[name], {**entry, "replaced": [*entry["replaced"], *untied]})
    tie(network, path, {name: entry["tied"] for name, entry in details.items() if "tied" in entry}, known)
    for name, entry in details.items():
        if name in modules:
            _sort_tensors(modules[name], list(entry["kinds"]))


def _role_of(name: str, module: nn.Module) -> str:
    if name in module._parameters:  # noqa: SLF001 - see tensors_of.
        return "parameter"
    return "cache" if name in module._non_persistent_buffers_set else "buffer"  # noqa: SLF001 - see _describe_module.


def _match_tensors(module: nn.Module, entry: Mapping[str, Any]) -> None:
    """Give a module tensors with the saved names, roles, shapes and dtypes."""
    live, kinds = tensors_of(module), entry["kinds"]
    for name in [name for name in live if name not in kinds and not _is_lazy(live[name])]:
        table = module._parameters if name in module._parameters else module._buffers  # noqa: SLF001 - see tensors_of.
        table[name] = None
    for name in entry["moved"]:
        if name in live and not _is_lazy(live[name]):
            live[name].data = torch.empty_like(live[name])  # Other holders of the constructed memory keep it.
    device = next((tensor.device for tensor in live.values()), torch.device("cpu"))
    for name, kind in kinds.items():
        tensor = live.get(name)
        is_replaced = name in entry["replaced"]
        fits = tensor is not None and kind.startswith(f"{tensor.dtype} {list(tensor.shape)} ")
        if (fits or (tensor is not None and _is_lazy(tensor))) and not is_replaced:
            continue
        shape, dtype, role = _read_kind(kind)
        fresh = torch.empty(shape, dtype=dtype, device=device if tensor is None else tensor.device)
        if tensor is not None and not is_replaced:
            tensor.data = fresh
        elif role == "parameter":
            module._parameters.pop(name, None)  # noqa: SLF001 - see tensors_of.
            module.register_parameter(name, nn.Parameter(fresh, dtype.is_floating_point or dtype.is_complex))
        else:
            module._buffers.pop(name, None)  # noqa: SLF001 - see tensors_of.
            module.register_buffer(name, fresh, persistent=role == "buffer")


def _sort_tensors(module: nn.Module, names: list[str]) -> None:
    """Put the tensors of a module into the order of these names, in which a later optimizer gets them."""
    tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)  # noqa: SLF001 - see tensors_of.
    places = {name: place for place, name in enumerate(names)}
    for table in tables:
        held = [name for name, tensor in table.items() if tensor is not None and name in places]
        if held != sorted(held, key=places.__getitem__):
            items = sorted(table.items(), key=lambda item: places.get(item[0], len(places)))
            table.clear()
            table.update(items)


def _read_kind(kind: str) -> tuple[list[int], torch.dtype, str]:
    """Return the shape, the dtype and the role in a description."""
    name, _, rest = kind.partition(" ")
    shape, _, role = rest.rpartition(" ")
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointMismatchError(f"{name!r} is no dtype of torch: the checkpoint is not as it was written")
    return json.loads(shape), dtype, role


def link_parameters(optimizer: torch.optim.Optimizer, details: Mapping[str, Any], path: str, decoder: Decoder) -> None:
    """Give an optimizer the parameters and groups that it had when it was saved."""
    if _SELF not in details:
        return
    groups, links = optimizer.param_groups, details[_SELF]["parameters"]
    while len(groups) < len(links):
        groups.append({**groups[-1], "params": []})
    del groups[len(links) :]
    for index, (group, nodes) in enumerate(zip(groups, links, strict=True)):
        group["params"] = [
            decoder.decode(node, f"{path}.param_groups[{index}]['params'][{number}]")
            for number, node in enumerate(nodes)
        ]


def restore(part: Any, details: Mapping[str, dict[str, Any]], path: str, decoder: Decoder) -> None:
    """Restore what `describe` returned, where it had changed.

    Raises:
        CheckpointMismatchError: if there is no module with a saved name.
    """
    if isinstance(part, torch.optim.Optimizer) and _SELF in details:
        decoder.fill_attributes(part, details[_SELF]["attributes"], path, ignore=_of_optimizer())
    if not isinstance(part, nn.Module):
        return
    modules = modules_of(part)
    for name, entry in details.items():
        if name not in modules:
            raise CheckpointMismatchError(f"the checkpoint has a module {name!r} of {path}, which is not there now")
        module = modules[name]
        if entry["class"] != class_of(module):
            raise CheckpointMismatchError(
                f"{join(path, name)} was a {entry['class']} when it was saved, and is a {class_of(module)} now: make "
                "it in setup as it was"
            )
        module.training = entry["training"]
        _freeze(module, entry["frozen"])
        for key, buffer in entry["buffers"].items():
            decoder.fill(tensors_of(module)[key], buffer)
        decoder.fill_attributes(module, entry["attributes"], join(path, name), ignore=_OF_MODULE)
