"""Learning rate schedulers by name: torch's own, and those that a project registers."""

from __future__ import annotations

from typing import Any

from torch.optim import lr_scheduler

from helios.core.registry import Registry
from helios.scheduler.restarts import CosineAnnealingRestartLR, MultiStepRestartLR

__all__ = ["SCHEDULER_REGISTRY", "CosineAnnealingRestartLR", "MultiStepRestartLR", "create_scheduler"]

SCHEDULER_REGISTRY: Registry[lr_scheduler.LRScheduler] = Registry("scheduler")
"""The schedulers; those of `torch.optim.lr_scheduler` and of this package are registered under their class names."""

SCHEDULER_REGISTRY.register_members(
    lr_scheduler,
    lambda _, member: issubclass(member, lr_scheduler.LRScheduler) and member is not lr_scheduler.LRScheduler,
)
for _restarting in (CosineAnnealingRestartLR, MultiStepRestartLR):
    SCHEDULER_REGISTRY.register(_restarting)


def create_scheduler(type_name: str, *args: Any, **kwargs: Any) -> lr_scheduler.LRScheduler:
    """Make the learning rate scheduler that is registered as `type_name`.

    Args:
        type_name: the registered name: a class name of `torch.optim.lr_scheduler`, or one of your own.
        *args: passed on; the optimizer comes first.
        **kwargs: passed on.

    Raises:
        UnknownNameError: if there is no such name; the message lists the registered ones.
    """
    return SCHEDULER_REGISTRY.create(type_name, *args, **kwargs)
