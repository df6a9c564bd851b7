"""Batches on their way to a device."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence


def move_to_device(batch: Any, device: torch.device) -> Any:  # noqa: PLR0911 - one return for each kind of batch.
    """Return a batch with all its tensors on a device; see `DevicePlugin`.

    Args:
        batch: anything; it is not changed.
        device: where to.

    Returns:
        The moved batch: containers are new and of the same type, whatever cannot be moved is the very same object.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=_can_copy_in_background(batch, device))
    if isinstance(batch, PackedSequence):
        packed: Any = batch  # Its stub knows fewer arguments than its `to` takes.
        return packed.to(device, non_blocking=_can_copy_in_background(packed.data, device))
    if type(batch) in (list, tuple):
        return type(batch)(move_to_device(value, device) for value in batch)
    if type(batch) is not dict and not isinstance(batch, type) and callable(getattr(batch, "to", None)):
        return _have_moved(batch, device)
    if isinstance(batch, dict):
        return _rebuild_dict(batch, {key: move_to_device(value, device) for key, value in batch.items()})
    if isinstance(batch, tuple):
        return _rebuild_tuple(batch, [move_to_device(value, device) for value in batch])
    if isinstance(batch, list):
        moved = copy.copy(batch)
        moved[:] = [move_to_device(value, device) for value in batch]
        return moved
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return _rebuild_dataclass(batch, device)
    return batch


def _can_copy_in_background(tensor: torch.Tensor, device: torch.device) -> bool:
    return device.type != "cpu" and tensor.device.type == "cpu" and tensor.is_pinned()


def _have_moved(batch: Any, device: torch.device) -> Any:
    """Have an object move itself, such as what a tokenizer returns: a mapping of tensors with a method for it."""
    kind: Any = type(batch)
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)] if _can_be_told(kind) else []
    if tensors and all(_can_copy_in_background(tensor, device) for tensor in tensors):
        return batch.to(device, non_blocking=True)
    return batch.to(device)


@functools.cache
def _can_be_told(kind: Any) -> bool:
    """Whether objects of a class are mappings that can be told not to wait for the copies that they make."""
    return issubclass(kind, Mapping) and "non_blocking" in inspect.signature(kind.to).parameters


def _rebuild_tuple(batch: tuple[Any, ...], items: list[Any]) -> Any:
    if all(new is old for new, old in zip(items, batch, strict=True)):
        return batch
    make: Any = getattr(batch, "_make", type(batch))  # Named tuples have it; torch's own take their items like a tuple.
    return make(items)


def _rebuild_dict(batch: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    if type(batch) is dict:
        return items
    moved = copy.copy(batch)  # Keeps a defaultdict's factory and whatever else a subclass holds.
    moved.update(items)
    return moved


def _rebuild_dataclass(batch: Any, device: torch.device) -> Any:
    # Not dataclasses.replace: it calls __init__, which leaves out init=False fields and runs the user's own code.
    moved = copy.copy(batch)
    for field in dataclasses.fields(batch):
        if hasattr(batch, field.name):
            object.__setattr__(moved, field.name, move_to_device(getattr(batch, field.name), device))
    return moved
