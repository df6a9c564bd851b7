"""Networks by name: the layers and networks of `torch.nn`, and those that a project registers."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from helios.core.registry import Registry
from helios.nn import swa_utils
from helios.nn.init import default_init_weights

__all__ = ["NETWORK_REGISTRY", "create_network", "default_init_weights", "swa_utils"]

# Abstract base classes, a deprecated loss, and a wrapper around a network.
_NO_NETWORKS: Final = frozenset({"Module", "Container", "RNNBase", "RNNCellBase", "NLLLoss2d", "DataParallel"})

NETWORK_REGISTRY: Registry[nn.Module] = Registry("network")
"""The networks; the layers and networks of `torch.nn`, not its losses, are registered under their class names."""

NETWORK_REGISTRY.register_members(
    nn,
    lambda name, member: issubclass(member, nn.Module) and name not in _NO_NETWORKS and not name.endswith("Loss"),
)


def create_network(type_name: str, *args: Any, **kwargs: Any) -> nn.Module:
    """Make the network that is registered as `type_name`.

    >>> create_network("Linear", 2, 3, bias=False)
    Linear(in_features=2, out_features=3, bias=False)

    Args:
        type_name: the registered name: a class name of `torch.nn`, or one of your own.
        *args: passed on.
        **kwargs: passed on.

    Raises:
        UnknownNameError: if there is no such name; the message lists the registered ones.
    """
    return NETWORK_REGISTRY.create(type_name, *args, **kwargs)
