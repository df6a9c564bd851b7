"""The modules, tensors and parameter groups of networks and optimizers that other objects may hold, too, by path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from helios.checkpoint.state.fsdp import find_sharded
from helios.checkpoint.state.parts import bare_name, find_wrappers_among, unwrap_module

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helios.checkpoint.state.anchors import Graph


def modules_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a network by their bare names, without those that wrap another."""
    network = unwrap_module(network)
    every = dict(network.named_modules(remove_duplicate=False))
    wrappers = find_wrappers_among(every)
    first: dict[int, str] = {}
    for name, module in every.items():
        first.setdefault(id(module), name)  # A module with two names is listed under the first one.
    held = {name: every[name] for name in first.values()}
    return {bare_name(name, wrappers): module for name, module in held.items() if name not in wrappers}


def join(path: str, name: str) -> str:
    """Return the path of a module in a network; the name of the network itself is empty."""
    return f"{path}.{name}" if name else path


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's own parameters and buffers; `named_parameters` omits those that have a second name."""
    held = {**module._parameters, **module._buffers}  # noqa: SLF001 - see above.
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def contents_of(part: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Iterate over the modules, tensors and parameter groups in a network or optimizer, by path."""
    if isinstance(part, nn.Module):
        for name, module in modules_of(part).items():
            if name:
                yield join(path, name), module
            for key, tensor in tensors_of(module).items():
                yield f"{join(path, name)}.{key}", tensor
    elif isinstance(part, torch.optim.Optimizer):
        yield f"{path}.param_groups", part.param_groups
        for index, group in enumerate(part.param_groups):
            yield f"{path}.param_groups[{index}]", group
            for number, parameter in enumerate(group["params"]):
                for key, value in part.state.get(parameter, {}).items():
                    if isinstance(value, torch.Tensor):
                        yield f"{path}.state[{index}][{number}].{key}", value


def register_contents(part: Any, path: str, graph: Graph, *, registers: bool) -> None:
    """Register the contents of a network or optimizer, so that other holders refer to them by path.

    Args:
        part: a network or an optimizer; other objects are ignored.
        path: its path.
        graph: the tables that the parts of the run share.
        registers: whether it was just constructed.
    """
    sharded = find_sharded([part]) if isinstance(part, nn.Module) else {}
    for where, value in contents_of(part, path):
        if registers and graph.anchors.path_of(value) is None:
            graph.anchors.add(where, value)
        # A sharded parameter has two tensors: its shard, and the unsharded one while it exists.
        for tensor in (value, *(sharded[id(value)].stand_ins() if id(value) in sharded else ())):
            graph.seen.setdefault(id(tensor), (tensor, where))
