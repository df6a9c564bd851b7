"""Moving a network to the device of its rank: sharded before it is moved, initialized there if it is on meta."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from helios.checkpoint.shard_tree import is_sharded
from helios.core.rng import derive_seed, make_rng_state_saver, make_seed_fn
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from torch.distributed.tensor import DTensor  # noqa: TID251 - for its type.


class _Slot(NamedTuple):
    """A place in a module where a parameter or a buffer is registered; a tied parameter has several."""

    module: nn.Module
    name: str
    tensor: torch.Tensor


def place_network(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network on a device; what is on the meta device is initialized there by `reset_parameters`.

    Args:
        network: the network, changed in place.
        device: where it goes.

    Raises:
        ConfigurationError: if a module has tensors on the meta device, and no `reset_parameters`.
    """
    uninitialized = _find_uninitialized(network)
    if not uninitialized:
        return network.to(device)
    values = [slot for slot in _slots(network) if not slot.tensor.is_meta]
    _replace_tensors(network, device, of=lambda tensor: tensor.is_meta)
    network.to(device)
    _initialize(uninitialized, device)
    _restore(values)
    return network


def place_sharded(
    network: nn.Module,
    device: torch.device,
    shard: Callable[[], object],
    *,
    shard_device: torch.device,
    ignored: Collection[nn.Parameter] = (),
) -> None:
    """Shard a network, and move only the shards to a device.

    `fully_shard` moves every unit to the device before it shards it, except for parameters on meta. So the parameters
    are on meta while it runs, and each rank then copies its shards from the values.

    Args:
        network: the network, changed in place.
        device: where its buffers go.
        shard: shards the network by `fully_shard`.
        shard_device: where the shards go; the CPU if they are offloaded.
        ignored: parameters that are not sharded.

    Raises:
        ConfigurationError: if a module has tensors on the meta device, and no `reset_parameters`.
    """
    uninitialized = _find_uninitialized(network)
    ids_ignored = {id(parameter) for parameter in ignored}
    values = [slot for slot in _slots(network) if not slot.tensor.is_meta]
    if not uninitialized and all(slot.tensor.device == device == shard_device for slot in values):
        shard()
        return
    _replace_tensors(
        network,
        torch.device("meta"),
        of=lambda tensor: isinstance(tensor, nn.Parameter) and id(tensor) not in ids_ignored,
    )
    shard()
    kept = [slot for slot in _slots(network) if not is_sharded(slot.tensor)]
    network.to_empty(device=shard_device)
    for slot in kept:  # `to_empty` keeps neither the values nor, for tensors on meta, the tensor.
        setattr(slot.module, slot.name, slot.tensor)
    _replace_tensors(network, device, of=lambda tensor: tensor.is_meta)
    for slot in _slots(network):
        if not is_sharded(slot.tensor):
            slot.tensor.data = slot.tensor.data.to(device)
    _initialize(uninitialized, device)
    _restore(values)


def _slots(network: nn.Module) -> Iterator[_Slot]:
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield _Slot(module, name, parameter)
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            yield _Slot(module, name, buffer)


def _find_uninitialized(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have tensors of their own on the meta device, by path."""
    ids = {id(slot.module): slot.name for slot in _slots(network) if slot.tensor.is_meta}
    found = {path: module for path, module in network.named_modules() if id(module) in ids}
    for path, module in found.items():
        if not callable(getattr(module, "reset_parameters", None)):
            raise ConfigurationError(
                f"{path or 'the network'}, a {type(module).__name__}, has {ids[id(module)]!r} on meta and no "
                "method reset_parameters: every module with parameters or buffers on meta must have one that "
                f"initializes them; add it to {type(module).__name__}, or make the module on the CPU"
            )
    return found


def _replace_tensors(network: nn.Module, device: torch.device, of: Callable[[torch.Tensor], bool]) -> None:
    """Put an uninitialized tensor on a device in the place of each tensor `of` which this is asked.

    `nn.Module.to_empty` would do so for all tensors, and give tied parameters a tensor each.
    """
    made: dict[int, torch.Tensor] = {}
    for module, name, tensor in list(_slots(network)):
        if id(tensor) not in made and of(tensor):
            empty = torch.empty_like(tensor, device=device)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        if id(tensor) in made:
            setattr(module, name, made[id(tensor)])


def _initialize(modules: dict[str, nn.Module], device: torch.device) -> None:
    """Call the modules' `reset_parameters` with generators seeded by the path of each, the same on all ranks.

    A sharded module is whole on the device meanwhile, so that it draws what an unsharded one would.
    """
    if not modules:
        return
    seed = int(torch.randint(2**62, ()))  # In `setup`, the CPU generator is in the same state on every rank.
    seed_fn, restore_rng_state = make_seed_fn(device), make_rng_state_saver(device)()
    for path, module in modules.items():
        seed_fn(derive_seed(seed, "reset_parameters", path))
        sharded: dict[str, Any] = {
            name: tensor
            for name, tensor in module.named_parameters(recurse=False, remove_duplicate=False)
            if is_sharded(tensor)
        }
        for name, tensor in sharded.items():
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            setattr(module, name, nn.Parameter(empty, tensor.requires_grad))
        reset: Callable[[], object] = module.reset_parameters  # type: ignore[assignment]  # checked before.
        reset()
        for name, tensor in sharded.items():
            whole = getattr(module, name)
            setattr(module, name, tensor)
            _restore([_Slot(module, name, whole)])
    restore_rng_state()


@torch.no_grad()
def _restore(values: list[_Slot]) -> None:
    """Copy values into the tensors of the same names, of which each rank may have a shard."""
    for module, name, value in values:
        tensor: Any = getattr(module, name)
        if is_sharded(tensor):
            tensor.to_local().copy_(_shard_of(value, tensor))
        elif tensor is not value:
            tensor.copy_(value)


def _shard_of(value: torch.Tensor, like: DTensor) -> torch.Tensor:
    """Return the part of a whole tensor that this rank has of a sharded one; a view."""
    for dimension, placement in enumerate(like.placements):
        if placement.is_shard():
            along: int = placement.dim  # type: ignore[attr-defined]  # `Shard` has it.
            chunks = value.chunk(like.device_mesh.size(dimension), along)
            index = like.device_mesh.get_local_rank(dimension)
            value = chunks[index] if index < len(chunks) else value.narrow(along, 0, 0)
    return value
