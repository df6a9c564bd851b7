"""Batches of a map-style dataset."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from helios.data.fetching import KeyedBatchSampler
from helios.data.sources.batch_source import BatchSource, ensure_kind, ensure_size
from helios.data.workers import iterate, seed_workers
from helios.errors import ArgumentTypeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.utils.data import DataLoader

    from helios.data.samplers import ResumableSampler


class SamplerSource(BatchSource):
    """Batches of a map-style dataset, in the order of a resumable sampler."""

    def __init__(self, loader: DataLoader[Any], sampler: ResumableSampler, phase: str) -> None:
        """Take the batches from a data loader.

        Args:
            loader: the loader.
            sampler: the sampler that decides its order.
            phase: the phase of the run, for messages: "training", for example.

        Raises:
            ArgumentTypeError: if seeking the sampler would not move the loader.
        """
        self._loader = loader
        self._phase = phase
        self._sampler = sampler
        batches = loader.batch_sampler
        batch_size = batches.batch_size if isinstance(batches, KeyedBatchSampler) else loader.batch_size
        if batch_size is None:  # As torch sets it when a user passes a batch_sampler.
            raise ArgumentTypeError(
                f"the batch sampler {type(batches).__name__} has no position to resume at: make the loader with "
                "create_dataloader"
            )
        if getattr(batches, "sampler", None) is not sampler:
            raise ArgumentTypeError(
                f"the data loader does not take its order from the {type(sampler).__name__} returned beside it, so "
                "seeking that one would not move the loader: return the sampler that the loader was made with"
            )
        self._batch_size = batch_size
        self._samples_per_batch = batch_size * sampler.num_replicas
        self._size = sampler.size
        self._drops_last = bool(batches.drop_last)  # type: ignore[union-attr]  # as above: it has the sampler
        self._start = (0, 0)  # Where the last `iterate` started: batches done, and samples of all ranks.
        self._end: int | None = None

    def batches_per_epoch(self) -> int:
        """Return the number of batches of a whole epoch on this rank."""
        return len(self._loader)

    def batches_at_end(self) -> int | None:
        """Return the number of batches that were done when the last `iterate` started, and of those that remained."""
        return self._end

    def iterate(self, epoch: int, start_batch: int = 0, position: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Return the batches from `start_batch` to the end of the epoch; no sample before them is fetched."""
        samples = start_batch * self._samples_per_batch
        if position:
            ensure_kind(position, "sampler")
            ensure_size(position["size"], self._size, "samples")
            # The number of batches done says little after a change of the batch size or of the number of ranks; the
            # position counts samples of the global order instead.
            samples = position["samples"]
        self._start = (start_batch, samples)
        first = min(samples, self._size)
        self._sampler.seek(epoch, first)
        self._end = self._find_end(start_batch, first)  # After seeking: epochs may have different lengths.
        return self._iterate(epoch, start_batch)

    def _iterate(self, epoch: int, start_batch: int) -> Iterator[Any]:
        batch_sampler: Any = self._loader.batch_sampler
        workers = self._loader.num_workers
        if not isinstance(batch_sampler, KeyedBatchSampler):
            return iterate(self._loader, self._phase)
        seed_workers(self._loader, batch_sampler.worker_seeds, epoch)
        # See KeyedBatchSampler.placeholders. The loader returns one None for each, which is not yielded.
        placeholders = batch_sampler.placeholders = start_batch % workers if workers else 0
        batches = iterate(self._loader, self._phase)
        return itertools.islice(batches, placeholders, None) if placeholders else batches

    def _find_end(self, start_batch: int, position: int) -> int | None:
        """Return the value of `batches_at_end` for an epoch that starts at a position of the global order."""
        if position == min(start_batch * self._samples_per_batch, self._size):
            # All batches before had the present size, so the epoch has its usual number of batches.
            return max(start_batch, len(self._loader))
        remaining = self._sampler.count_remaining(position)
        if remaining is None:
            return None
        whole, rest = divmod(remaining, self._batch_size)
        return start_batch + whole + (rest > 0 and not self._drops_last)

    def position_state(self, done: int) -> dict[str, Any]:
        """Return the position in the global order of the epoch, in samples of all ranks."""
        if done == 0:
            return {}
        start_batch, start_samples = self._start
        samples = start_samples + (done - start_batch) * self._samples_per_batch
        return {"kind": "sampler", "samples": min(samples, self._size), "size": self._size}
