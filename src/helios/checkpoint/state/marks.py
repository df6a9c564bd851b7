"""What was there before training: digests to tell whether it has changed, and small values to go back to."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any, Final

import torch

from helios.checkpoint.state.digest import digest_of

_SMALL: Final = 1 << 20  # Bytes of a value that is kept as it was.
_ITEM: Final = 64  # Bytes that an item of a container takes, about.


@dataclasses.dataclass(frozen=True)
class Mark:
    """A value as it was constructed.

    Attributes:
        size: how many values it was made of.
        digest: its digest.
        node: what an `Encoder` wrote of it, copied; `None` for what is large.
    """

    size: int
    digest: bytes
    node: tuple[Any] | None

    @classmethod
    def of(cls, node: Any, size: int) -> Mark:
        """Mark what an `Encoder` has written."""
        return cls(size, digest_of(node), (_copy(node),) if _weigh(node) <= _SMALL else None)

    def fits(self, node: Any, size: int) -> bool:
        """Whether a value is as it was; that of another size is not looked at."""
        return size == self.size and digest_of(node) == self.digest


# Of each class of the program that was met, what it held then. A class lives as long as its module.
CLASS_MARKS: Final[weakref.WeakKeyDictionary[type, dict[str, Mark]]] = weakref.WeakKeyDictionary()


def _copy(node: Any) -> Any:
    if isinstance(node, torch.Tensor):
        # A parameter stays one; `copy.deepcopy` copies no sparse tensor of every layout.
        copied = node.detach().clone()
        return torch.nn.Parameter(copied, node.requires_grad) if isinstance(node, torch.nn.Parameter) else copied
    if isinstance(node, dict):
        return {key: _copy(item) for key, item in node.items()}
    if isinstance(node, list | tuple):
        return type(node)([_copy(item) for item in node])
    return node


def _weigh(node: Any) -> int:
    """Return about how many bytes a value takes; of what is too large to be kept, at least more than that."""
    if isinstance(node, torch.Tensor):
        return node.numel() * node.element_size()
    total = _ITEM + (len(node) if isinstance(node, str | bytes) else 0)
    items = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    for item in items:
        total += _weigh(item)
        if total > _SMALL:
            break
    return total
