"""The strategies that Helios has: one process, DDP and FSDP2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helios.errors import ArgumentTypeError, ConfigurationError
from helios.parallel.ddp import wrap_ddp
from helios.parallel.placement import place_network
from helios.parallel.sharding import shard_network
from helios.parallel.strategy import Strategy
from helios.ranks.mesh import make_mesh

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from torch import nn

    from helios.ranks.mesh import Mesh


class SingleProcessStrategy(Strategy):
    """Trains in one process: `wrap` only moves the network to the device."""

    @property
    def name(self) -> str:
        """`"single"`."""
        return "single"

    def wrap(
        self, network: nn.Module, device: torch.device, units: Iterable[nn.Module], options: Mapping[str, Any]
    ) -> nn.Module:
        """Return the network on the device; units and options are ignored."""
        del units, options
        return place_network(network, device)


class DDPStrategy(Strategy):
    """Every rank has a copy of the network; `torch.nn.parallel.DistributedDataParallel` averages the gradients."""

    @property
    def name(self) -> str:
        """`"ddp"`."""
        return "ddp"

    def wrap(
        self, network: nn.Module, device: torch.device, units: Iterable[nn.Module], options: Mapping[str, Any]
    ) -> nn.Module:
        """Return the network on the device, wrapped in DDP with the options; units are ignored."""
        del units
        return wrap_ddp(place_network(network, device), device, options)


class FSDPStrategy(Strategy):
    """Every rank has a shard of each parameter, gradient and optimizer state (FSDP2, `fully_shard`)."""

    @property
    def name(self) -> str:
        """`"fsdp"`."""
        return "fsdp"

    def make_mesh(self, device: torch.device) -> Mesh:
        """Return the mesh of all ranks."""
        return make_mesh(device.type)

    def wrap(
        self, network: nn.Module, device: torch.device, units: Iterable[nn.Module], options: Mapping[str, Any]
    ) -> nn.Module:
        """Shard the network with the options; of one on the meta device, only this rank's shards are on the device."""
        return shard_network(network, self.make_mesh(device), units, device=device, **options)


_BY_NAME: Final[Mapping[str, type[Strategy]]] = {"ddp": DDPStrategy, "fsdp": FSDPStrategy}


def as_strategy(value: object) -> Strategy:
    """Return a strategy, given itself or its name.

    Raises:
        ConfigurationError: if there is no strategy of this name.
        ArgumentTypeError: if the value is neither a name nor a strategy.
    """
    if isinstance(value, Strategy):
        return value
    names = ", ".join(map(repr, _BY_NAME))
    if not isinstance(value, str):
        raise ArgumentTypeError(
            f"strategy is {value!r}, a {type(value).__name__}: pass one of {names}, or an instance of "
            "helios.parallel.Strategy"
        )
    if value not in _BY_NAME:
        raise ConfigurationError(
            f"strategy is {value!r}: choose one of {names}, or pass an instance of helios.parallel.Strategy"
        )
    return _BY_NAME[value]()
