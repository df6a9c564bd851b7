"""The queue by which results of ranks are returned to the process that called `fit`."""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import queue
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class ResultQueue:
    """The items that ranks have put, in the process that called `fit`, in the order of their arrival.

    All items are there when `fit` returns, so `get` never waits.
    """

    def __init__(self) -> None:
        self._items: collections.deque[bytes] = collections.deque()
        self._stale: list[bytes] = []

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Receive the items of a run while the context lasts.

        Items put by a failed run stay readable until the next run starts. Items of earlier runs stay.
        """
        self._items = collections.deque(self._without(self._stale))
        self._stale = []
        before = list(self._items)
        try:
            yield
        except BaseException:
            self._stale = self._without(before)
            raise

    def _without(self, others: list[bytes]) -> list[bytes]:
        """Return the items that are not among these, compared by identity."""
        known = {id(other) for other in others}
        return [item for item in self._items if id(item) not in known]

    def put(self, item: Any) -> None:
        """Put an item; it must be picklable."""
        self._items.append(pack(item))

    def extend(self, packed: Iterable[bytes]) -> None:
        """Put items that were packed in a rank."""
        self._items.extend(packed)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take out the oldest item.

        Args:
            block: ignored, like `timeout`: no further item can arrive. They are arguments of `queue.Queue.get`.
            timeout: see `block`.

        Raises:
            queue.Empty: if there is no item.
        """
        del block, timeout
        if not self._items:
            raise queue.Empty(
                "the queue is empty: each item that a rank puts, for example in on_training_end, can be taken out once"
            )
        return pickle.loads(self._items.popleft())  # noqa: S301 - by a rank of this run.

    def get_nowait(self) -> Any:
        """Take out the oldest item; the same as `get`."""
        return self.get()

    def empty(self) -> bool:
        """Return whether there is no item."""
        return not self._items

    def qsize(self) -> int:
        """Return the number of items."""
        return len(self._items)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._items)


class SendingQueue:
    """The queue in a rank, which sends each item to the process that called `fit`.

    Args:
        send: sends a packed item there.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Send an item; it must be picklable.

        Args:
            item: anything, of any size.
            block: ignored, like `timeout`. They are arguments of `queue.Queue.put`.
            timeout: see `block`.
        """
        del block, timeout
        self._send(pack(item))

    def put_nowait(self, item: Any) -> None:
        """Send an item; the same as `put`."""
        self.put(item)


def pack(item: Any) -> bytes:
    """Pickle an item with its tensors on the CPU, because the receiving process may not have the GPU of the rank.

    A `multiprocessing.Queue` is not used: it sends tensors as shared memory, which is gone when their process ends.
    """
    buffer = io.BytesIO()
    _Packer(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(item)
    return buffer.getvalue()


class _Packer(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.is_cpu or value.is_meta:
            return NotImplemented
        on_cpu = value.detach().cpu().requires_grad_(value.requires_grad)
        if isinstance(value, torch.nn.Parameter):
            on_cpu = torch.nn.Parameter(on_cpu.detach(), requires_grad=value.requires_grad)
        return on_cpu.__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[no-untyped-call]  # torch's own method
