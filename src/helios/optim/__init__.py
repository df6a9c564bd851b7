"""Optimizers by name: torch's own, and those that a project registers."""

from __future__ import annotations

from typing import Any

from torch import optim

from helios.core.registry import Registry

__all__ = ["OPTIMIZER_REGISTRY", "create_optimizer"]

OPTIMIZER_REGISTRY: Registry[optim.Optimizer] = Registry("optimizer")
"""The optimizers; those of `torch.optim` are registered under their class names."""

OPTIMIZER_REGISTRY.register_members(
    optim, lambda _, member: issubclass(member, optim.Optimizer) and member is not optim.Optimizer
)


def create_optimizer(type_name: str, *args: Any, **kwargs: Any) -> optim.Optimizer:
    """Make the optimizer that is registered as `type_name`.

    >>> import torch
    >>> create_optimizer("SGD", [torch.zeros(1, requires_grad=True)], lr=0.1).defaults["lr"]
    0.1

    Args:
        type_name: the registered name: a class name of `torch.optim`, or one of your own.
        *args: passed on; the parameters to optimize come first.
        **kwargs: passed on.

    Raises:
        UnknownNameError: if there is no such name; the message lists the registered ones.
    """
    return OPTIMIZER_REGISTRY.create(type_name, *args, **kwargs)
