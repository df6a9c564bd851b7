"""Memory that NumPy arrays share with other arrays or with tensors, and would not share in a resumed run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from helios.checkpoint.state.anchors import address_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helios.checkpoint.state.anchors import Graph

_WORK: Final = 1000  # `max_work` of `numpy.shares_memory`.


@dataclasses.dataclass(frozen=True, order=True)
class _Range:
    """The bytes from the first to the last element of an array or a tensor on the CPU."""

    start: int
    end: int
    path: str
    is_constructed: bool
    array: Any = dataclasses.field(compare=False)


def find_shared_memory(arrays: list[tuple[np.ndarray[Any, Any], str]], graph: Graph) -> dict[str, str]:
    """Return, by path, the path of an array or tensor with which a value shares memory that it will not share again.

    Values that are constructed in `setup` share memory in every process, and tensors share it after a restore.

    Args:
        arrays: the arrays that a capture has met, with their paths.
        graph: the tensors that it has met, and the constructed objects.
    """
    if not arrays:
        return {}
    ranges = sorted([*_ranges_of_arrays(arrays, graph), *_ranges_of_tensors(graph)])
    found: dict[str, str] = {}
    last: _Range | None = None
    for each in ranges:
        if last is not None and each.start < last.end and _will_part(last, each):
            made, other = (last, each) if each.is_constructed else (each, last)
            found[made.path] = other.path
        if last is None or each.end > last.end:
            last = each
    return found


def _will_part(one: _Range, other: _Range) -> bool:
    is_of_tensors = isinstance(one.array, torch.Tensor) and isinstance(other.array, torch.Tensor)
    if is_of_tensors or (one.is_constructed and other.is_constructed):
        return False
    if isinstance(one.array, torch.Tensor) or isinstance(other.array, torch.Tensor):
        return True
    try:
        return np.shares_memory(one.array, other.array, max_work=_WORK)  # type: ignore[arg-type]  # its stub takes two values of the many
    except np.exceptions.TooHardError:
        return True


def _ranges_of_arrays(arrays: list[tuple[np.ndarray[Any, Any], str]], graph: Graph) -> Iterator[_Range]:
    for array, path in arrays:
        if array.size:
            start, end = np.lib.array_utils.byte_bounds(array)
            yield _Range(start, end, path, graph.anchors.path_of(array) is not None, array)


def _ranges_of_tensors(graph: Graph) -> Iterator[_Range]:
    for tensor, path in graph.seen.values():
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and tensor.numel() and address_of(tensor):
            reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            end = start + (reach + 1) * tensor.element_size()
            yield _Range(start, end, path, graph.anchors.path_of(tensor) is not None, tensor)
