"""Iterable data sets that resume: every batch carries the state of the data set that it came out of."""

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
    """An iterable data set that can go on where it was.

    `__iter__` after `load_state_dict` yields what was still to come. With workers, each has a copy of the data set and
    a state of its own. A data set that also has `set_epoch(epoch)` is told the epoch (from 0) before each and starts it
    afresh; one that has not keeps its state from one epoch to the next, as it would in a bare loop.

    Random numbers that an `__iter__` written as a generator draws before its first item, or between handing out one
    item and making the next, belong into the state: a generator that is made anew draws the former again, and the
    latter not.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return where the data set is; asked between two items, never after the last one."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Go to where the data set was."""
        ...


class Stamped(NamedTuple):
    """What a stream sends for each batch.

    Attributes:
        batch: the batch.
        worker: the worker that it comes from.
        progress: how far the worker is after it; `None` for a worker that only lets the next one go first.
        is_batch: whether there is a batch; without one, the worker says that its part of the epoch has ended.
    """

    batch: Any
    worker: int
    progress: WorkerProgress | None
    is_batch: bool = True


class WorkerProgress(NamedTuple):
    """How far a worker is, and how to get there with a data set that has just been made.

    The state is that after the last *full* batch. What a data set does at its end (going back to its start, say) thus
    still lies before it, and a resume has the data set do it again: it iterates over the few samples that are left.

    Attributes:
        sent: batches sent in this epoch.
        ended: whether the worker's part of this epoch has ended.
        state: a state of its data set; `None` for that at the start.
        state_epoch: the epoch in which the data set was in that state.
        state_sent: the batches that had been sent in it then.
    """

    sent: int = 0
    ended: bool = False
    state: dict[str, Any] | None = None
    state_epoch: int = 0
    state_sent: int = 0


def pass_on(batch: Any) -> Any:
    """Return the argument: a collate function for what has been collated before."""
    return batch


class StreamedBatches(IterableDataset[Stamped]):
    """The batches of an iterable data set, each with the state that a resumed run must give back.

    The data set runs ahead of training when workers fetch, so its state at the time of a checkpoint is of no use: the
    state that counts is the one that came with the last batch trained.
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
        """Make batches of what `dataset` yields, on one of the ranks that share it."""
        self.dataset = dataset
        self.batch_size = batch_size
        self.is_resumable = isinstance(dataset, ResumableIterable)
        self._collate = collate_fn
        self.seed = seed
        self.drop_last = drop_last
        # Ranks have parts of their own, and draw apart from each other.
        self._place = (rank,) if rank > 0 else ()
        self.worker_seeds = rng.SeedSequence(seed, "workers", *self._place)  # As those of a KeyedBatchSampler.
        # Shared, because persistent workers are not made anew for an epoch, and would not hear of it otherwise.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]  # torch's
        self._progress: dict[int, WorkerProgress] = {}
        self._turns_passed = 0
        self._carried: WorkerProgress | None = None  # Of the copy in this process, from the epoch before.

    def seek(self, epoch: int, progress: dict[int, WorkerProgress], turns_passed: int) -> None:
        """Have the next iteration begin there.

        Args:
            epoch: the epoch, from 0.
            progress: where each worker starts; one that is not in it, or is persistent and has gone on by itself,
                starts where its data set is.
            turns_passed: how many of the workers, from the first, have had their turn in the round under way.
        """
        self._epoch.fill_(epoch)
        self._progress = dict(progress)
        self._turns_passed = turns_passed

    @property
    def restarts_each_epoch(self) -> bool:
        """Whether the data set begins every epoch afresh, by its number."""
        return hasattr(self.dataset, "set_epoch")

    def __iter__(self) -> Iterator[Stamped]:
        """Iterate over the batches of one worker, and end with a stamp that says so."""
        info = get_worker_info()
        worker = 0 if info is None else info.id
        epoch, turns_passed, sought = int(self._epoch), self._turns_passed, self._progress.get(worker)
        # A persistent worker iterates again in the next epoch, from where its data set is then.
        self._progress, self._turns_passed = {}, 0
        if worker < turns_passed:
            yield Stamped(None, worker, None, is_batch=False)
        rng.key_process(self._seed_of_start(epoch, worker))
        if self.restarts_each_epoch:
            self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]  # see restarts_each_epoch
        if sought is None:
            progress = self._carried or WorkerProgress(state_epoch=epoch)
        else:
            progress = self._restore(worker, epoch, sought)
        if not progress.ended:
            progress = yield from self._batches(worker, epoch, progress)
        if not self.restarts_each_epoch:
            self._carried = progress._replace(sent=0, ended=False)
        yield Stamped(None, worker, progress, is_batch=False)

    def _batches(self, worker: int, epoch: int, progress: WorkerProgress) -> Generator[Stamped, None, WorkerProgress]:
        seeds, count = rng.SeedSequence(self.seed, "stream", epoch, worker, *self._place), progress.sent
        items = self._start(epoch, worker)
        for skipped in range(0 if self.is_resumable else count):  # What the warning at the start is about.
            self._read(items, seeds[skipped])
        while not progress.ended:
            samples = self._read(items, seeds[count])
            is_full = len(samples) == self.batch_size
            progress = progress._replace(ended=not is_full)
            if is_full or (samples and not self.drop_last):
                count += 1
                progress = progress._replace(sent=count)
                if is_full and self.is_resumable:
                    progress = progress._replace(state=self._state(), state_epoch=epoch, state_sent=count)
                yield Stamped(self._collate(samples), worker, progress)
        return progress

    def _restore(self, worker: int, epoch: int, progress: WorkerProgress) -> WorkerProgress:
        """Put the data set where it was."""
        if not self.is_resumable:
            return progress
        if progress.state is not None:
            self.dataset.load_state_dict(progress.state)  # type: ignore[attr-defined]  # see is_resumable
        # The ends that the data set has come to since it was in that state.
        for earlier in range(progress.state_epoch, epoch + progress.ended):
            self._finish(worker, earlier, progress.state_sent if earlier == progress.state_epoch else 0)
        return progress

    def _finish(self, worker: int, epoch: int, done: int) -> None:
        """Have the data set come to its end: fewer samples than a batch are left."""
        seeds, items = rng.SeedSequence(self.seed, "stream", epoch, worker, *self._place), self._start(epoch, worker)
        while len(self._read(items, seeds[done])) == self.batch_size:
            done += 1

    def _start(self, epoch: int, worker: int) -> Iterator[Any]:
        rng.key_process(self._seed_of_start(epoch, worker))
        return iter(self.dataset)

    def _seed_of_start(self, epoch: int, worker: int) -> int:
        return rng.derive_seed(self.seed, "stream start", epoch, worker, *self._place)

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
        return copy.deepcopy(state)  # The data set goes on before anybody saves this.
