"""Collectives of all ranks; without a process group, the process is rank 0 of 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist

from helios.core.distributed.group import is_dist_active
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUM: Final = dist.ReduceOp.SUM


def all_reduce_tensors(
    tensor: torch.Tensor | Sequence[torch.Tensor], op: dist.ReduceOp | dist.ReduceOp.RedOpType = _SUM, **kwargs: Any
) -> torch.Tensor:
    """Reduce a tensor over all ranks in place, and return it.

    Args:
        tensor: a tensor of the same shape and dtype on every rank, or a sequence of such tensors, which is stacked.
        op: the reduction, as `torch.distributed.all_reduce` takes it; the sum by default.
        **kwargs: passed on to `torch.distributed.all_reduce`, such as `group`.

    Returns:
        `tensor` itself, which has the reduced values; for a sequence, a new tensor, the stacked and reduced values.
        Without a process group, the values stay as they are.

    Raises:
        ArgumentTypeError: if an argument has the wrong type, or `torch.distributed.all_reduce` has no such argument.
        ConfigurationError: if the tensors of a sequence differ in shape, or there are none.
    """
    if not isinstance(op, dist.ReduceOp | dist.ReduceOp.RedOpType):
        raise ArgumentTypeError(f"op is {op!r}, a {type(op).__name__}: pass a torch.distributed.ReduceOp")
    _check_names("all_reduce", kwargs, ("group", "async_op"))
    total = tensor if isinstance(tensor, torch.Tensor) else _stack(tensor)
    if is_dist_active():
        # Backends reduce in the order of memory, which may differ between ranks; this is the order of the elements.
        values = total.detach().contiguous()
        _wait_for(dist.all_reduce(values, op=op, **kwargs))
        if values.data_ptr() != total.data_ptr():
            total.detach().copy_(values)
    return total


def _check_names(function: str, kwargs: dict[str, Any], names: tuple[str, ...]) -> None:
    # Without a process group, torch's function is not called, and would not find a misspelled name.
    unknown = [name for name in kwargs if name not in names]
    if unknown:
        raise ArgumentTypeError(
            f"torch.distributed.{function} has no arguments {unknown} to be passed on: there are {', '.join(names)}"
        )


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    parts: list[Any] = list(tensors) if hasattr(tensors, "__iter__") else [tensors]
    if not all(isinstance(part, torch.Tensor) for part in parts):
        raise ArgumentTypeError(f"tensor is {tensors!r}: pass a tensor, or a sequence of tensors")
    if len({part.shape for part in parts}) != 1:
        raise ConfigurationError(
            f"tensor is a sequence of {len(parts)} tensors that differ in shape: pass one or more of one shape"
        )
    return torch.stack([part.detach() for part in parts])


def gather_into_tensor(tensor: torch.Tensor, size: Sequence[int], **kwargs: Any) -> torch.Tensor:
    """Gather the tensors of all ranks on every rank.

    Args:
        tensor: a tensor of the same shape and dtype on every rank.
        size: the shape of the result; its number of elements must be that of all ranks' tensors together.
        **kwargs: passed on to `torch.distributed.all_gather`, such as `group`.

    Returns:
        A tensor of shape `size` that holds the ranks' tensors in order of rank.

    Raises:
        ConfigurationError: if `size` has another number of elements.
        ArgumentTypeError: if `tensor` is no tensor, `size` is no shape, or there is no such keyword argument.
    """
    _check_names("all_gather", kwargs, ("group", "async_op"))
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentTypeError(f"tensor is {tensor!r}, a {type(tensor).__name__}: pass a tensor")
    world_size = dist.get_world_size(kwargs.get("group")) if is_dist_active() else 1
    try:
        wanted = int(torch.Size(size).numel())
    except (TypeError, OverflowError) as error:
        raise ArgumentTypeError(f"size is {size!r}: pass a shape, a tuple of integers") from error
    if wanted != tensor.numel() * world_size:
        raise ConfigurationError(
            f"size {tuple(size)} holds {wanted} elements, not those of {world_size} ranks of {tensor.numel()} elements "
            "each: pass a shape with as many"
        )
    part = tensor.detach().contiguous()
    parts = [torch.empty_like(part) for _ in range(world_size)]
    if is_dist_active():
        _wait_for(dist.all_gather(parts, part, **kwargs))
    else:
        parts[0].copy_(part)
    return torch.stack(parts).reshape(tuple(size))


def safe_barrier(**kwargs: Any) -> None:
    """Wait until all ranks have called this; does nothing without a process group.

    Args:
        **kwargs: passed on to `torch.distributed.barrier`, such as `group`.

    Raises:
        ArgumentTypeError: if there is no such keyword argument.
    """
    _check_names("barrier", kwargs, ("group", "async_op", "device_ids"))
    if is_dist_active():
        _wait_for(dist.barrier(**kwargs))


def _wait_for(work: dist.Work | None) -> None:
    if work is not None:  # With async_op=True; the values are returned, and must be there.
        work.wait()
