"""Collectives by which the ranks of a run agree: over a gloo group of the hosts, never over the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from helios.core.distributed import DistributedInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helios.ranks.monitor import RankMonitor

T = TypeVar("T")


class HostGroup:
    """The host-side collectives of one rank. Created without arguments, it is that of a single process.

    Every method but `announce` is a collective: all ranks must call it, in the same order.

    Args:
        info: this process's place among the ranks.
        group: a gloo group of all ranks that is used for nothing else; `None` for a single process.
        monitor: watches for stop requests and failures of other ranks; `None` for a single process.
        announce: tells the other ranks of a failure, before the group is left.
    """

    def __init__(
        self,
        info: DistributedInfo | None = None,
        group: dist.ProcessGroup | None = None,
        monitor: RankMonitor | None = None,
        announce: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.info = DistributedInfo() if info is None else info
        self.group = group
        self._monitor = monitor
        self._announce = announce

    @property
    def rank(self) -> int:
        """The global rank."""
        return self.info.rank

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.info.world_size

    def all_reduce_max(self, first: int, *others: int) -> tuple[int, ...]:
        """Return, for each argument, the largest value that any rank has passed.

        At least one is required, because gloo does not synchronize the ranks for an empty tensor.
        """
        if self.group is None:
            return first, *others
        tensor = torch.tensor((first, *others), dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tuple(tensor.tolist())

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks of a tensor on the CPU, of the same shape and dtype on each of them."""
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        if self.group is not None:
            dist.all_reduce(total, group=self.group)
        return total

    def broadcast_object(self, value: T) -> T:
        """Return rank 0's value on every rank; the values of the others are ignored. It must be picklable."""
        if self.group is None:
            return value
        box = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, group=self.group, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]  # Rank 0's value, of the type that all ranks pass.

    def all_gather_object(self, value: T) -> list[T]:
        """Return all ranks' values in order of rank, on every rank. They must be picklable."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather_object(self, value: T) -> list[T] | None:
        """Return all ranks' values in order of rank on rank 0, `None` on the others. They must be picklable."""
        if self.group is None:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self.group)
        return values

    def broadcast_bytes(self, chunks: Iterator[bytes] | None) -> Iterator[bytes]:
        """Iterate on every rank over the chunks of rank 0, one at a time in memory.

        Args:
            chunks: the chunks, none of them empty, on rank 0; `None` on the others.
        """
        while True:
            chunk = next(chunks, b"") if chunks is not None else b""
            (size,) = self.all_reduce_max(len(chunk))
            if size == 0:
                return
            buffer = torch.empty(size, dtype=torch.uint8)
            if chunks is not None:
                buffer = torch.frombuffer(bytearray(chunk), dtype=torch.uint8)
            if self.group is not None:
                dist.broadcast(buffer, src=0, group=self.group)
            yield chunk if chunks is not None else buffer.numpy().tobytes()

    def make_stop_check(self, was_asked: Callable[[], bool], position: Callable[[], int]) -> Callable[[], bool]:
        """Return a function that tells whether this rank must stop here; all ranks answer alike at each position.

        A signal reaches one rank, at any time, and no rank may stop while another continues. Until a stop is requested,
        the check only reads a flag; then it waits until all ranks have agreed on a position ahead of them.

        Args:
            was_asked: whether this process was asked to stop.
            position: how many batches this rank has trained; it grows by 1 at most between two checks.
        """
        return was_asked if self._monitor is None else self._monitor.watch_stop_requests(was_asked, position)

    def announce(self, error: BaseException) -> None:
        """Tell the other ranks, and whoever started them, that this one is about to fail. Called on one rank alone."""
        if self._announce is not None:
            self._announce(error)
