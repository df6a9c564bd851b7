"""Iterable datasets that resume: every batch is sent with the state of the dataset right after it."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch.utils.data import IterableDataset, get_worker_info

from helios.core import rng
from helios.errors import ArgumentTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator


@runtime_checkable
class ResumableIterable(Protocol):
    """An iterable dataset that can continue from a saved state.

    `__iter__` after `load_state_dict` yields the remaining items. With workers, each has a copy of the dataset and a
    state of its own. A dataset with a method `set_epoch(epoch)` gets the epoch (from 0) before each epoch, and
    restarts; without that method, it keeps its state from one epoch to the next, as in a loop without Helios.

    An `__iter__` that is a generator may draw random numbers before its first item, or after it was resumed from one
    `yield` and before the next. The results of these draws must be in the state: a new generator makes the former draws
    again, with other results, and does not make the latter.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data; called between two items, never after the last one."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Continue from a state that `state_dict` returned."""
        ...


class StreamMessage(NamedTuple):
    """What a worker sends for each batch, and once at the end of its part of the epoch.

    Attributes:
        batch: the batch.
        worker: the number of the worker; 0 for the training process.
        progress: the progress of the worker after this batch; `None` if the worker only skips a batch (see `seek`).
        is_batch: whether there is a batch.
    """

    batch: Any
    worker: int
    progress: WorkerProgress | None
    is_batch: bool = True


class WorkerProgress(NamedTuple):
    """How much of its part one worker has sent, and how a new copy of its dataset gets to the same point.

    The state is that after the last *full* batch, before the dataset reaches its end. What the dataset does at its end,
    such as returning to its start, is therefore not in the state: a resume loads the state, iterates over the remaining
    samples, fewer than a batch, and so makes the dataset do it again.

    Attributes:
        sent: batches sent in this epoch.
        ended: whether the worker's part of this epoch has ended.
        state: a state of its dataset; `None` for the initial state.
        state_epoch: the epoch in which the dataset was in that state.
        state_sent: the batches that had been sent in that epoch when the dataset was in that state.
    """

    sent: int = 0
    ended: bool = False
    state: dict[str, Any] | None = None
    state_epoch: int = 0
    state_sent: int = 0


def pass_on(batch: Any) -> Any:
    """Return the argument: a collate function for batches that are collated already."""
    return batch


class StreamedBatches(IterableDataset[StreamMessage]):
    """The batches of an iterable dataset, each with the progress that a checkpoint after it must contain.

    Workers read ahead of training, so the state of the dataset at the time of a checkpoint is that of a later batch. A
    checkpoint contains the state that was sent with the last trained batch instead.

    Attributes:
        dataset: the iterable dataset.
        batch_size: samples per batch.
        seed: the seed of the draws.
        drop_last: whether a short last batch is left out.
        is_resumable: whether the dataset has `state_dict` and `load_state_dict`.
        worker_seeds: as in `KeyedBatchSampler`.
    """

    def __init__(
        self,
        dataset: IterableDataset[Any],
        batch_size: int,
        collate_fn: Callable[[list[Any]], Any],
        seed: int,
        drop_last: bool,
        rank: int = 0,
    ) -> None:
        """Make batches of the items that `dataset` yields on one rank.

        Args:
            dataset: the iterable dataset.
            batch_size: samples per batch.
            collate_fn: makes a batch of a list of samples.
            seed: the seed of the draws.
            drop_last: leave out a short last batch.
            rank: the rank that reads the dataset.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self.is_resumable = isinstance(dataset, ResumableIterable)
        self._collate = collate_fn
        self.seed = seed
        self.drop_last = drop_last
        # The last key of every seed: each rank reads its part of the stream, with draws of its own.
        self._rank_key = (rank,) if rank > 0 else ()
        self.worker_seeds = rng.SeedSequence(seed, "workers", *self._rank_key)
        # In shared memory: persistent workers got their copy of this object in the first epoch, and no later assignment
        # to an attribute reaches them.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]  # torch's
        self._progress: dict[int, WorkerProgress] = {}
        self._skipping_workers = 0
        # The progress at the end of the previous epoch, of this process's copy of the dataset.
        self._previous: WorkerProgress | None = None

    def seek(self, epoch: int, progress: dict[int, WorkerProgress], skipping_workers: int) -> None:
        """Set where the next iteration starts.

        Args:
            epoch: the epoch, from 0.
            progress: the progress of each worker. One that is missing, or is persistent and continues from the previous
                epoch, starts where its dataset is.
            skipping_workers: how many workers, from worker 0 on, send a message without a batch first. torch takes one
                message from each worker in turn, beginning with worker 0; when an epoch is resumed, the next batch may
                be that of another worker.
        """
        self._epoch.fill_(epoch)
        self._progress = dict(progress)
        self._skipping_workers = skipping_workers

    @property
    def restarts_each_epoch(self) -> bool:
        """Whether the dataset restarts in each epoch: it has a method `set_epoch`."""
        return hasattr(self.dataset, "set_epoch")

    def __iter__(self) -> Iterator[StreamMessage]:
        """Iterate over the batches of this worker; the last message says that its part of the epoch has ended."""
        info = get_worker_info()
        worker = 0 if info is None else info.id
        epoch, skips, saved = int(self._epoch), worker < self._skipping_workers, self._progress.get(worker)
        # These count for one iteration: a persistent worker continues from its dataset's own state in the next epoch.
        self._progress, self._skipping_workers = {}, 0
        if skips:
            yield StreamMessage(None, worker, None, is_batch=False)
        rng.key_process(self._seed_of_start(epoch, worker))
        if self.restarts_each_epoch:
            self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]  # see restarts_each_epoch
        if saved is None:
            progress = self._previous or WorkerProgress(state_epoch=epoch)
        else:
            progress = self._restore(worker, epoch, saved)
        if not progress.ended:
            progress = yield from self._batches(worker, epoch, progress)
        if not self.restarts_each_epoch:
            self._previous = progress._replace(sent=0, ended=False)
        yield StreamMessage(None, worker, progress, is_batch=False)

    def _batches(
        self, worker: int, epoch: int, progress: WorkerProgress
    ) -> Generator[StreamMessage, None, WorkerProgress]:
        """Send the remaining batches of a worker's part of the epoch, and return the progress at its end."""
        seeds, count = self._batch_seeds(epoch, worker), progress.sent
        items = self._start(epoch, worker)
        # Without a state, the batches before a resume are read again and dropped; StreamSource.announce warns of it.
        for skipped in range(0 if self.is_resumable else count):
            self._read(items, seeds[skipped])
        while not progress.ended:
            samples = self._read(items, seeds[count])
            is_full = len(samples) == self.batch_size
            progress = progress._replace(ended=not is_full)
            if is_full or (samples and not self.drop_last):
                count += 1
                progress = progress._replace(sent=count)
                # After a short batch, the dataset has done what it does at its end: see WorkerProgress.
                if is_full and self.is_resumable:
                    progress = progress._replace(state=self._state(), state_epoch=epoch, state_sent=count)
                yield StreamMessage(self._collate(samples), worker, progress)
        return progress

    def _restore(self, worker: int, epoch: int, progress: WorkerProgress) -> WorkerProgress:
        """Restore the state of the dataset, then iterate to each end of an epoch that it has reached since."""
        if not self.is_resumable:
            return progress
        if progress.state is not None:
            self.dataset.load_state_dict(progress.state)  # type: ignore[attr-defined]  # see is_resumable
        for earlier in range(progress.state_epoch, epoch + progress.ended):
            self._finish(worker, earlier, progress.state_sent if earlier == progress.state_epoch else 0)
        return progress

    def _finish(self, worker: int, epoch: int, done: int) -> None:
        """Iterate to the end of the dataset; fewer samples than a batch are left, so this reads little."""
        seeds, items = self._batch_seeds(epoch, worker), self._start(epoch, worker)
        while len(self._read(items, seeds[done])) == self.batch_size:
            done += 1

    def _start(self, epoch: int, worker: int) -> Iterator[Any]:
        rng.key_process(self._seed_of_start(epoch, worker))
        return iter(self.dataset)

    def _seed_of_start(self, epoch: int, worker: int) -> int:
        return rng.derive_seed(self.seed, "stream start", epoch, worker, *self._rank_key)

    def _batch_seeds(self, epoch: int, worker: int) -> rng.SeedSequence:
        """Return the seeds with which the generators are keyed before each batch is read."""
        return rng.SeedSequence(self.seed, "stream", epoch, worker, *self._rank_key)

    def _read(self, items: Iterator[Any], seed: int) -> list[Any]:
        rng.key_process(seed)
        return list(itertools.islice(items, self.batch_size))

    def _state(self) -> dict[str, Any]:
        state = self.dataset.state_dict()  # type: ignore[attr-defined]  # see is_resumable
        if not isinstance(state, dict):
            name = type(self.dataset).__name__
            raise ArgumentTypeError(
                f"{name}.state_dict() returned a {type(state).__name__}: return a dict of plain data"
            )
        return copy.deepcopy(state)  # The dataset may change the returned lists before a checkpoint is written.
