"""Batches from a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helios.core import rng
from helios.core.distributed import get_global_rank
from helios.data.sources.batch_source import BatchSource, ensure_kind, ensure_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class SequenceSource(BatchSource):
    """Batches from a list, or from a sequence that makes them in `__getitem__`, in the same order every epoch."""

    def __init__(self, batches: Sequence[Any], seed: int) -> None:
        """Take the batches from a sequence.

        Args:
            batches: the batches.
            seed: the seed of the draws in `__getitem__`, where the sequence is neither a list nor a tuple.
        """
        self._batches = batches
        self._seed = seed

    def batches_per_epoch(self) -> int:
        """Return the length of the sequence."""
        return len(self._batches)

    def batches_at_end(self) -> int:
        """Return the length of the sequence."""
        return len(self._batches)

    def iterate(self, epoch: int, start_batch: int = 0, position: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Return the batches from `start_batch` to the end of the sequence."""
        if position:
            ensure_kind(position, "list")
            ensure_size(position["size"], len(self._batches), "batches")
        if not isinstance(self._batches, list | tuple):
            return self._make_batches(epoch, start_batch)
        return (
            (self._batches[i] for i in range(start_batch, len(self._batches))) if start_batch else iter(self._batches)
        )

    def _make_batches(self, epoch: int, start_batch: int) -> Iterator[Any]:
        rank = get_global_rank()
        seeds = rng.SeedSequence(self._seed, "batch", epoch, *((rank,) if rank > 0 else ()))
        for number in range(start_batch, len(self._batches)):
            rng.key_process(seeds[number])
            yield self._batches[number]

    def position_state(self, done: int) -> dict[str, Any]:
        """Return the length of the sequence; with the number of batches done, this is the whole position."""
        return {"kind": "list", "size": len(self._batches)} if done else {}
