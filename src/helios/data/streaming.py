"""Iterable data sets that resume: every batch carries the state of the data set that it came out of."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from torch.utils.data import IterableDataset, get_worker_info

from helios.core import rng
from helios.errors import ArgumentTypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@runtime_checkable
class ResumableIterable(Protocol):
    """An iterable data set that can go on where it was.

    `__iter__` after `load_state_dict` yields what was still to come. With workers, each has a copy of the data set and
    a state of its own. A data set that also has `set_epoch(epoch)` is told the epoch (from 0) before each and starts it
    afresh; one that has not keeps its state from one epoch to the next, as it would in a bare loop.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return where the data set is."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Go to where the data set was."""
        ...


class Stamped(NamedTuple):
    """What a stream sends for each batch.

    Attributes:
        batch: the batch.
        worker: the worker that it comes from.
        sent: batches that this worker has sent in this epoch, this one included.
        state: the state of the worker's data set after this batch; `None` if it has none.
        kind: "batch"; "end" for the state after the last one; "turn" for a worker that only lets the next one go first.
    """

    batch: Any
    worker: int
    sent: int
    state: dict[str, Any] | None
    kind: str = "batch"


class WorkerProgress(NamedTuple):
    """How far a worker is: batches sent in this epoch, the state of its data set, and whether its part has ended."""

    sent: int = 0
    state: dict[str, Any] | None = None
    ended: bool = False


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
    ) -> None:
        """Make batches of what `dataset` yields."""
        self.dataset = dataset
        self.batch_size = batch_size
        self.is_resumable = isinstance(dataset, ResumableIterable)
        self._collate = collate_fn
        self._seed = seed
        self._drop_last = drop_last
        self._epoch = 0
        self._progress: dict[int, WorkerProgress] = {}
        self._turns_passed = 0

    def seek(self, epoch: int, progress: dict[int, WorkerProgress], turns_passed: int) -> None:
        """Have the next iteration begin there.

        Args:
            epoch: the epoch, from 0.
            progress: where each worker starts; one that is not in it starts at the beginning.
            turns_passed: how many of the workers, from the first, have had their turn in the round under way.
        """
        self._epoch = epoch
        self._progress = progress
        self._turns_passed = turns_passed

    @property
    def restarts_each_epoch(self) -> bool:
        """Whether the data set begins every epoch afresh, by its number."""
        return hasattr(self.dataset, "set_epoch")

    def __iter__(self) -> Iterator[Stamped]:
        """Iterate over the batches of one worker, and end with the state after the last."""
        info = get_worker_info()
        worker = 0 if info is None else info.id
        epoch, progress = self._epoch, self._progress.get(worker, WorkerProgress())
        turns_passed = self._turns_passed
        # Persistent workers iterate again without being told where; it is the next epoch, from its start.
        self.seek(epoch + 1, {}, 0)
        if worker < turns_passed:
            yield Stamped(None, worker, progress.sent, progress.state, "turn")
        yield from self._batches(worker, epoch, progress)

    def _batches(self, worker: int, epoch: int, progress: WorkerProgress) -> Iterator[Stamped]:
        if self.restarts_each_epoch:
            self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]  # see restarts_each_epoch
        if progress.state is not None and self.is_resumable:
            self.dataset.load_state_dict(progress.state)  # type: ignore[attr-defined]  # see is_resumable
        if progress.ended:
            yield Stamped(None, worker, progress.sent, progress.state, "end")
            return
        seeds = rng.SeedSequence(self._seed, "stream", epoch, worker)
        items, count = iter(self.dataset), progress.sent
        if not self.is_resumable:
            count = 0
            for _ in range(progress.sent):  # What is read for nothing here is what the warning at the start is about.
                self._next_batch(items, seeds[count])
                count += 1
        while (batch := self._next_batch(items, seeds[count])) is not None:
            count += 1
            yield Stamped(self._collate(batch), worker, count, self._state())
        yield Stamped(None, worker, count, self._state(), "end")

    def _next_batch(self, items: Iterator[Any], seed: int) -> list[Any] | None:
        rng.key_generators(seed)
        batch = list(itertools.islice(items, self.batch_size))
        return None if not batch or (self._drop_last and len(batch) < self.batch_size) else batch

    def _state(self) -> dict[str, Any] | None:
        if not self.is_resumable:
            return None
        state = self.dataset.state_dict()  # type: ignore[attr-defined]  # see is_resumable
        if not isinstance(state, dict):
            name = type(self.dataset).__name__
            raise ArgumentTypeError(
                f"{name}.state_dict() returned a {type(state).__name__}: return a dict of plain data"
            )
        return copy.deepcopy(state)  # The data set goes on before anybody saves this.
