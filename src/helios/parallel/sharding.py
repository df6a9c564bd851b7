"""Networks that are sharded over the ranks by `fully_shard` (FSDP2).

FSDP2 and DTensor are imported where they are used, so that a run without sharded tensors never loads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from helios.errors import ConfigurationError
from helios.parallel.placement import place_sharded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.distributed.device_mesh import DeviceMesh

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def shard_network(
    network: NetworkT,
    mesh: DeviceMesh,
    units: Iterable[nn.Module] = (),
    *,
    device: torch.device | None = None,
    **options: Any,
) -> NetworkT:
    """Shard a network over the ranks, in place, before its optimizer is created.

    The parameters become `DTensor`s. They are all-gathered unit by unit: one unit is unsharded at a time. Only the
    shards are moved to the device. A network on the meta device is initialized on the device, by the
    `reset_parameters` of its modules, one module at a time.

    Args:
        network: the network. Every rank keeps its shard of the values it has: they must be equal on all ranks.
        mesh: the ranks, as `make_mesh` returns them.
        units: submodules that are units of their own, such as the blocks of a transformer; the rest is one more unit.
        device: the device of this rank; by default that of the mesh, which is the current one for CUDA.
        options: further arguments of `torch.distributed.fsdp.fully_shard`: `mp_policy`, `reshard_after_forward`,
            `offload_policy`, ...

    Returns:
        The same network, whose class `fully_shard` has changed.

    Raises:
        ConfigurationError: if a unit is no submodule of the network, or a module on the meta device has no
            `reset_parameters`.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard  # noqa: PLC0415 - see the module's docstring.

    wanted = {id(unit): unit for unit in units}
    # Inner units first: `fully_shard` leaves out of a unit what is in another already.
    inner = [module for module in reversed(list(network.modules())) if id(module) in wanted and module is not network]
    for unit in wanted.values():
        if unit is not network and all(unit is not module for module in inner):
            raise ConfigurationError(
                f"the unit {type(unit).__name__} is no part of the {type(network).__name__}: a unit must be one of "
                "network.modules(); take it from the network that is sharded, not from a copy",
            )
    modules: list[nn.Module] = [*inner, network]

    def shard() -> None:
        for module in modules:
            fully_shard(module, mesh=mesh, **options)

    if not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        if device is not None:
            network.to(device)
        shard()
        return network
    if device is None:
        device = torch.device(mesh.device_type)
        if mesh.device_type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
    is_offloaded = isinstance(options.get("offload_policy"), CPUOffloadPolicy)
    place_sharded(
        network,
        device,
        shard,
        shard_device=torch.device("cpu") if is_offloaded else device,
        ignored=options.get("ignored_params") or (),
    )
    return network
