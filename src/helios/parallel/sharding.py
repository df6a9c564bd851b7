"""Networks that are sharded over the ranks by `fully_shard` (FSDP2).

Nothing here imports what it does not need: a run without sharded tensors never loads the packages that make them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.distributed.device_mesh import DeviceMesh

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def shard_network(network: NetworkT, mesh: DeviceMesh, units: Iterable[nn.Module] = (), **options: Any) -> NetworkT:
    """Shard a network over the ranks, in place, before its optimizer is made.

    The parameters become `DTensor`s, cut along dimension 0. They are brought together unit by unit: a unit is what is
    whole on every rank at once.

    Args:
        network: the network. Every rank keeps its own part of the values it has: they must be alike.
        mesh: the ranks, as `make_mesh` returns them.
        units: parts of the network that are units of their own, such as its blocks; the rest of it is one more.
        options: passed on to `torch.distributed.fsdp.fully_shard`: `mp_policy`, `reshard_after_forward`,
            `offload_policy`, ...

    Returns:
        The same network, whose class `fully_shard` has changed.

    Raises:
        ConfigurationError: if a unit is not a part of the network.
    """
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 - see the module's docstring.

    wanted = {id(unit): unit for unit in units}
    # From the inside out: a unit leaves to the one around it what is not a unit's yet.
    parts = [part for part in reversed(list(network.modules())) if id(part) in wanted and part is not network]
    for unit in wanted.values():
        if unit is not network and all(unit is not part for part in parts):
            raise ConfigurationError(
                f"the unit {type(unit).__name__} is no part of the {type(network).__name__}: a unit must be one of "
                "network.modules(); take it from the network that is sharded, not from a copy",
            )
    modules: list[nn.Module] = [*parts, network]
    for module in modules:
        fully_shard(module, mesh=mesh, **options)
    return network
