"""Marks of the base state: digests to detect changes, and copies of small values to restore them."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any, Final

import torch

from helios.checkpoint.state.digest import digest_of

_SMALL: Final = 1 << 20  # Values up to this many bytes are copied.
_ITEM: Final = 64  # Bytes per item of a container, roughly.


@dataclasses.dataclass(frozen=True)
class Mark:
    """A value of the base state.

    Attributes:
        size: the number of values in it.
        digest: its digest.
        node: a copy of what an `Encoder` wrote; `None` for large values.
    """

    size: int
    digest: bytes
    node: tuple[Any] | None

    @classmethod
    def of(cls, node: Any, size: int) -> Mark:
        """Make a mark of what an `Encoder` has written."""
        return cls(size, digest_of(node), (_copy(node),) if _weigh(node) <= _SMALL else None)

    def fits(self, node: Any, size: int) -> bool:
        """Return whether a value is unchanged; the size is compared first."""
        return size == self.size and digest_of(node) == self.digest


# The attributes of each class of the program that was met. Classes live as long as their modules.
CLASS_MARKS: Final[weakref.WeakKeyDictionary[type, dict[str, Mark]]] = weakref.WeakKeyDictionary()


def _copy(node: Any) -> Any:
    if isinstance(node, torch.Tensor):
        # A parameter stays a parameter; `copy.deepcopy` does not support all sparse layouts.
        copied = node.detach().clone()
        return torch.nn.Parameter(copied, node.requires_grad) if isinstance(node, torch.nn.Parameter) else copied
    if isinstance(node, dict):
        return {key: _copy(item) for key, item in node.items()}
    if isinstance(node, list | tuple):
        return type(node)([_copy(item) for item in node])
    return node


def _weigh(node: Any) -> int:
    """Return roughly the size of a value in bytes; for a value that is too large to be copied, any larger number."""
    if isinstance(node, torch.Tensor):
        return node.numel() * node.element_size()
    total = _ITEM + (len(node) if isinstance(node, str | bytes) else 0)
    items = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    for item in items:
        total += _weigh(item)
        if total > _SMALL:
            break
    return total
