"""Batches of an iterable dataset."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from helios.data.sources.batch_source import BatchSource, ensure_kind
from helios.data.streaming import StreamedBatches, StreamMessage, WorkerProgress
from helios.data.workers import iterate, seed_workers
from helios.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.utils.data import DataLoader


class StreamSource(BatchSource):
    """Batches of an iterable dataset, with the progress of each worker's copy of it."""

    def __init__(self, loader: DataLoader[Any], stream: StreamedBatches, phase: str) -> None:
        """Take the batches from a data loader.

        Args:
            loader: the loader.
            stream: its dataset.
            phase: the phase of the run, for messages: "training", for example.
        """
        self._loader = loader
        self._phase = phase
        self._stream = stream
        self._workers = max(1, loader.num_workers)  # Without workers, this process counts as worker 0.
        # The progress of each worker as of the last batch that was *yielded*. The workers themselves are further: they
        # read ahead, and what they have read ahead is not trained when a checkpoint is saved.
        self._progress: dict[int, WorkerProgress] = {}
        self._last_worker = -1  # The worker of that batch; -1 if there was none in this epoch.

    def announce(self, log: Any) -> None:
        """Log that a resume in the middle of an epoch is exact, or warn that it may not be.

        Args:
            log: a logger.
        """
        name = type(self._stream.dataset).__name__
        if self._stream.is_resumable:
            log.info(
                "%s has state_dict and load_state_dict: its state is saved in checkpoints, and a resume is exact", name
            )
        else:
            warnings.warn(
                f"{name} has no state_dict and load_state_dict: a resume in the middle of an epoch reads and drops "
                "all that came before, and is exact only if the dataset yields the same items again",
                stacklevel=2,
            )

    def batches_per_epoch(self) -> None:
        """Return `None`: the length of a stream is unknown."""
        return

    def batches_at_end(self) -> None:
        """Return `None`: the length of a stream is unknown."""
        return

    def iterate(self, epoch: int, start_batch: int = 0, position: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Return the remaining batches of the epoch."""
        del start_batch  # The position has the batches of each worker.
        if position:
            ensure_kind(position, "stream")
            if position["workers"] != self._workers:
                raise CheckpointMismatchError(
                    f"the checkpoint holds the states of {position['workers']} workers' datasets, but num_workers "
                    f"asks for {self._workers} now: resume with the same number, as each worker reads its own part of "
                    "the stream"
                )
            self._progress = {worker: WorkerProgress(*entry) for worker, entry in position["progress"].items()}
            self._last_worker = position["last_worker"]
            # The next batch is that of the worker after the last one; the workers before it skip their first turn.
            self._stream.seek(epoch, self._progress, (self._last_worker + 1) % self._workers)
        else:
            # The datasets of this process and of persistent workers continue from the state in which they are.
            self._progress, self._last_worker = self._next_progress(), -1
            self._stream.seek(epoch, {}, 0)
        seed_workers(self._loader, self._stream.worker_seeds, epoch)
        return self._unpack(iterate(self._loader, self._phase))

    def _next_progress(self) -> dict[int, WorkerProgress]:
        """Return the progress of the workers at the start of the next epoch; empty if they restart."""
        stream = self._stream
        outlives_epoch = self._loader.num_workers == 0 or self._loader.persistent_workers
        if stream.restarts_each_epoch or not outlives_epoch or not stream.is_resumable:
            return {}
        return {worker: progress._replace(sent=0, ended=False) for worker, progress in self._progress.items()}

    def _unpack(self, messages: Iterator[StreamMessage]) -> Iterator[Any]:
        for message in messages:
            # Recorded before the batch is yielded: a checkpoint is saved while the loop holds the batch.
            if message.progress is not None:
                self._progress[message.worker] = message.progress
            if message.is_batch:
                self._last_worker = message.worker
                yield message.batch

    def position_state(self, done: int) -> dict[str, Any]:
        """Return the progress of each worker as of the last batch that was yielded."""
        progress = self._progress if done else self._next_progress()
        if not progress:
            return {}
        return {
            "kind": "stream",
            "workers": self._workers,
            "progress": {worker: tuple(entry) for worker, entry in progress.items()},
            "last_worker": self._last_worker if done else -1,
        }
