"""Loss functions by name: torch's own, and those that a project registers."""

from __future__ import annotations

from typing import Any

from torch import nn

from helios.core.registry import Registry
from helios.losses.weighted import WeightedLoss

__all__ = ["LOSS_REGISTRY", "WeightedLoss", "create_loss", "create_loss_function"]

LOSS_REGISTRY: Registry[nn.Module] = Registry("loss function")
"""The loss functions; those of `torch.nn` are registered under their class names."""

LOSS_REGISTRY.register_members(nn, lambda name, member: issubclass(member, nn.Module) and name.endswith("Loss"))


def create_loss_function(type_name: str, *args: Any, **kwargs: Any) -> nn.Module:
    """Make the loss function that is registered as `type_name`.

    >>> create_loss_function("CrossEntropyLoss", label_smoothing=0.1)
    CrossEntropyLoss()

    Args:
        type_name: the registered name: a class name of `torch.nn` that ends in "Loss", or one of your own.
        *args: passed on.
        **kwargs: passed on.

    Raises:
        UnknownNameError: if there is no such name; the message lists the registered ones.
    """
    return LOSS_REGISTRY.create(type_name, *args, **kwargs)


create_loss = create_loss_function
"""Another name of `create_loss_function`."""
