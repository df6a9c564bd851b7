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
    """Holds, in the process that called `fit`, what ranks have put in, in the order in which it came.

    Everything is there when `fit` returns: taking out waits for nothing.
    """

    def __init__(self) -> None:
        self._items: collections.deque[bytes] = collections.deque()
        self._stale: list[bytes] = []

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Be filled by a run while the context lasts.

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
        """Return what is in and is none of these; what is equal to one of them is another item."""
        known = {id(other) for other in others}
        return [item for item in self._items if id(item) not in known]

    def put(self, item: Any) -> None:
        """Put something in; it must be possible to pickle it."""
        self._items.append(pack(item))

    def extend(self, packed: Iterable[bytes]) -> None:
        """Put in what was packed elsewhere."""
        self._items.extend(packed)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take out the item that has been in longest.

        Args:
            block: of no effect, as is `timeout`: nothing can come any more. They are those of `queue.Queue.get`.
            timeout: see `block`.

        Raises:
            queue.Empty: if there is none.
        """
        del block, timeout
        if not self._items:
            raise queue.Empty("the queue is empty: what a rank puts in, in on_training_end say, can be taken out once")
        return pickle.loads(self._items.popleft())  # noqa: S301 - by a rank of this run.

    def get_nowait(self) -> Any:
        """Take out the item that has been in longest; the same as `get`."""
        return self.get()

    def empty(self) -> bool:
        """Whether there is nothing in."""
        return not self._items

    def qsize(self) -> int:
        """Return the number of items."""
        return len(self._items)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._items)


class SendingQueue:
    """The end at which a rank puts results in.

    Args:
        send: sends a packed item home.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Send something home; it must be possible to pickle it.

        Args:
            item: anything, of any size.
            block: of no effect, as is `timeout`. They are those of `queue.Queue.put`.
            timeout: see `block`.
        """
        del block, timeout
        self._send(pack(item))

    def put_nowait(self, item: Any) -> None:
        """Send something home; the same as `put`."""
        self.put(item)


def pack(item: Any) -> bytes:
    """Pickle an item, with its tensors on the CPU: the process that takes it out need not have the GPU of the rank.

    Not through a `multiprocessing.Queue`, which hands on tensors as files in memory that are gone with their process.
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
