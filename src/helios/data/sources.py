"""Batches for a trainer, from any epoch and position; the position is returned as plain data."""

from __future__ import annotations

import abc
import itertools
import warnings
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from helios.core import rng
from helios.core.distributed import get_global_rank
from helios.data.adopting import adopt_loader
from helios.data.description import describe_loader
from helios.data.fetching import KeyedBatchSampler
from helios.data.samplers import ResumableSampler
from helios.data.streaming import Stamped, StreamedBatches, WorkerProgress
from helios.data.workers import iterate, seed_workers
from helios.errors import ArgumentTypeError, CheckpointMismatchError, ConfigurationError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping


class BatchSource(abc.ABC):
    """The batches of one data loader, epoch by epoch.

    Attributes:
        description: what a checkpoint's passport says of the data; see `describe_loader`.
    """

    description: Mapping[str, Any] = MappingProxyType({})

    @abc.abstractmethod
    def batches_per_epoch(self) -> int | None:
        """Return the number of batches in a whole epoch, `None` if nobody knows."""

    @abc.abstractmethod
    def batches_at_end(self) -> int | None:
        """Return how many batches are done when the epoch that was opened last is over, `None` if nobody knows.

        In an epoch that is resumed on another number of ranks, they are not as many as in a whole one.
        """

    def check_end(self, done: int, what: str) -> None:
        """Check, when there are no more batches, that the epoch is over.

        Args:
            done: batches of it that are done.
            what: what to call it in an error.

        Raises:
            TrainingError: if batches are missing.
        """
        end = self.batches_at_end()
        if end is not None and done < end:
            raise TrainingError(
                f"{what} has ended after {done} of {end} batches, though nothing has failed: either the sampler yields "
                "fewer indices than its __len__ says, or something that the data loader calls has raised "
                "StopIteration, which ends a loop without an error"
            )

    @abc.abstractmethod
    def iterate(self, epoch: int, start_batch: int = 0, position: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Return the batches of an epoch that are still to come.

        Args:
            epoch: the epoch, from 0.
            start_batch: batches of it that are done: the first one to yield, from 0.
            position: what `position_state` returned after them.
        """

    @abc.abstractmethod
    def position_state(self, done: int) -> dict[str, Any]:
        """Return, as plain data, where the source is when `done` batches of the epoch are done; 0 between epochs."""


class SequenceSource(BatchSource):
    """Batches that are ready, in a list, or are made when they are asked for."""

    def __init__(self, batches: Sequence[Any], seed: int) -> None:
        """Feed these, in this order, every epoch; `seed` is that of what is drawn where they are made."""
        self._batches = batches
        self._seed = seed

    def batches_per_epoch(self) -> int:
        """Return the length of the list."""
        return len(self._batches)

    def batches_at_end(self) -> int:
        """Return the length of the list."""
        return len(self._batches)

    def iterate(self, epoch: int, start_batch: int = 0, position: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Return the batches from `start_batch` on."""
        if position:
            _ensure_kind(position, "list")
            _ensure_size(position["size"], len(self._batches), "batches")
        if not isinstance(self._batches, list | tuple):
            return self._make(epoch, start_batch)
        return (
            (self._batches[i] for i in range(start_batch, len(self._batches))) if start_batch else iter(self._batches)
        )

    def _make(self, epoch: int, done: int) -> Iterator[Any]:
        rank = get_global_rank()
        seeds = rng.SeedSequence(self._seed, "batch", epoch, *((rank,) if rank > 0 else ()))
        for position in range(done, len(self._batches)):
            rng.key_process(seeds[position])
            yield self._batches[position]

    def position_state(self, done: int) -> dict[str, Any]:
        """Return the length of the list: the number of batches done says the rest."""
        return {"kind": "list", "size": len(self._batches)} if done else {}


class SamplerSource(BatchSource):
    """Batches of a map-style data set, in the order of a resumable sampler."""

    def __init__(self, loader: DataLoader[Any], sampler: ResumableSampler, phase: str) -> None:
        """Feed the batches of `loader`, whose order `sampler` decides; messages name the phase."""
        self._loader = loader
        self._phase = phase
        self._sampler = sampler
        inner = loader.batch_sampler
        batch_size = inner.batch_size if isinstance(inner, KeyedBatchSampler) else loader.batch_size
        if batch_size is None:
            name = type(inner).__name__
            raise ArgumentTypeError(
                f"the batch sampler {name} cannot be sought: make the loader with create_dataloader"
            )
        if getattr(inner, "sampler", None) is not sampler:
            raise ArgumentTypeError(
                f"the data loader does not take its order from the {type(sampler).__name__} returned beside it, so "
                "seeking that one would not move the loader: return the sampler that the loader was made with",
            )
        self._batch_size = batch_size
        self._samples_per_batch = batch_size * sampler.num_replicas
        self._size = sampler.size
        self._drops_last = bool(inner.drop_last)  # type: ignore[union-attr]  # as above: it has the sampler
        self._opened_at = (0, 0)
        self._end: int | None = None

    def batches_per_epoch(self) -> int:
        """Return the number of batches on this rank."""
        return len(self._loader)

    def batches_at_end(self) -> int | None:
        """Return the number of batches that were done when the epoch was opened, and of those that remained then."""
        return self._end

    def iterate(self, epoch: int, start_batch: int = 0, position: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Return the batches from `start_batch` on, without fetching a sample of them."""
        samples = start_batch * self._samples_per_batch
        if position:
            _ensure_kind(position, "sampler")
            _ensure_size(position["size"], self._size, "samples")
            samples = position["samples"]
        self._opened_at = (start_batch, samples)
        first = min(samples, self._size)
        self._sampler.seek(epoch, first)
        self._end = self._find_end(start_batch, first)  # After seeking: an epoch may have a length of its own.
        return self._iterate(epoch, start_batch)

    def _iterate(self, epoch: int, done: int) -> Iterator[Any]:
        inner: Any = self._loader.batch_sampler
        workers = self._loader.num_workers
        if not isinstance(inner, KeyedBatchSampler):
            return iterate(self._loader, self._phase)
        seed_workers(self._loader, inner.worker_seeds, epoch)
        # Each batch is fetched by the worker that would have fetched it without a resume.
        turns = inner.turns_passed = done % workers if workers else 0
        batches = iterate(self._loader, self._phase)
        return itertools.islice(batches, turns, None) if turns else batches

    def _find_end(self, done: int, position: int) -> int | None:
        if position == min(done * self._samples_per_batch, self._size):
            return max(done, len(self._loader))
        remaining = self._sampler.count_remaining(position)
        if remaining is None:
            return None
        whole, rest = divmod(remaining, self._batch_size)
        return done + whole + (rest > 0 and not self._drops_last)

    def position_state(self, done: int) -> dict[str, Any]:
        """Return the position in the epoch's order, in samples of all ranks."""
        if done == 0:
            return {}
        done_before, samples_before = self._opened_at
        samples = samples_before + (done - done_before) * self._samples_per_batch
        return {"kind": "sampler", "samples": min(samples, self._size), "size": self._size}


class StreamSource(BatchSource):
    """Batches of an iterable data set, with the state of each worker's copy."""

    def __init__(self, loader: DataLoader[Any], stream: StreamedBatches, phase: str) -> None:
        """Feed the batches of `loader`, whose data set is `stream`; says once what a resume will keep.

        Messages name the phase.
        """
        self._loader = loader
        self._phase = phase
        self._stream = stream
        self._workers = max(1, loader.num_workers)
        self._progress: dict[int, WorkerProgress] = {}
        self._last_worker = -1

    def announce(self, log: Any) -> None:
        """Say what a resume in the middle of an epoch keeps: nothing is lost, or a warning that says what may be.

        Args:
            log: a logger.
        """
        name = type(self._stream.dataset).__name__
        if self._stream.is_resumable:
            log.info(
                "%s has state_dict and load_state_dict: its state rides in checkpoints, and a resume is exact", name
            )
        else:
            warnings.warn(
                f"{name} has no state_dict and load_state_dict: a resume in the middle of an epoch reads and drops "
                f"all that "
                "came before, and is exact only if the data set yields the same again",
                stacklevel=2,
            )

    def batches_per_epoch(self) -> None:
        """Return `None`: a stream has no length."""
        return

    def batches_at_end(self) -> None:
        """Return `None`: a stream has no length."""
        return

    def iterate(self, epoch: int, start_batch: int = 0, position: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Return the batches that are still to come."""
        del start_batch  # Every worker counts for itself.
        if position:
            _ensure_kind(position, "stream")
            if position["workers"] != self._workers:
                raise CheckpointMismatchError(
                    f"the checkpoint holds the states of {position['workers']} workers' data sets, but num_workers "
                    f"asks for "
                    f"{self._workers} now: resume with as many, each has its own part of the stream",
                )
            self._progress = {worker: WorkerProgress(*entry) for worker, entry in position["progress"].items()}
            self._last_worker = position["last_worker"]
            self._stream.seek(epoch, self._progress, (self._last_worker + 1) % self._workers)
        else:
            # This process's data set, and those of persistent workers, carry on by themselves.
            self._progress, self._last_worker = self._next_progress(), -1
            self._stream.seek(epoch, {}, 0)
        seed_workers(self._loader, self._stream.worker_seeds, epoch)
        return self._unpack(iterate(self._loader, self._phase))

    def _next_progress(self) -> dict[int, WorkerProgress]:
        """Return how far the workers are when the next epoch starts."""
        stream = self._stream
        outlives_epoch = self._loader.num_workers == 0 or self._loader.persistent_workers
        if stream.restarts_each_epoch or not outlives_epoch or not stream.is_resumable:
            return {}
        return {worker: progress._replace(sent=0, ended=False) for worker, progress in self._progress.items()}

    def _unpack(self, stamped: Iterator[Stamped]) -> Iterator[Any]:
        for stamp in stamped:
            if stamp.progress is not None:
                self._progress[stamp.worker] = stamp.progress
            if stamp.is_batch:
                self._last_worker = stamp.worker
                yield stamp.batch

    def position_state(self, done: int) -> dict[str, Any]:
        """Return each worker's progress as of the last batch that was handed out."""
        progress = self._progress if done else self._next_progress()
        if not progress:
            return {}
        return {
            "kind": "stream",
            "workers": self._workers,
            "progress": {worker: tuple(entry) for worker, entry in progress.items()},
            "last_worker": self._last_worker if done else -1,
        }


def _ensure_kind(position: Mapping[str, Any], kind: str) -> None:
    names = {"list": "a list of batches", "sampler": "a map-style data set", "stream": "an iterable data set"}
    if position["kind"] != kind:
        raise CheckpointMismatchError(
            f"the checkpoint is from the middle of an epoch over {names[position['kind']]}, but there is {names[kind]} "
            "now: resume with the same data, or from a checkpoint at the end of an epoch",
        )


def _ensure_size(saved: int, size: int, unit: str) -> None:
    if saved != size:
        raise CheckpointMismatchError(
            f"the checkpoint is from the middle of an epoch over {saved} {unit}, but the data set has {size} now: "
            "resume with the same data, or from a checkpoint at the end of an epoch",
        )


def make_source(loader: object, sampler: object, phase: str = "training", seed: int | None = None) -> BatchSource:
    """Return the source for what a data module's `*_dataloader` method returned.

    Args:
        loader: a data loader, or a list of batches that are ready.
        sampler: the sampler that decides the loader's order; `None` for a list or an iterable data set.
        phase: what the batches are for, for messages.
        seed: the seed of the draws in a loader that has none; the default seed if it is `None`.

    Raises:
        ArgumentTypeError: if the loader's order cannot be sought.
        ConfigurationError: if it has no batch.
    """
    seed = rng.get_default_seed() if seed is None else seed
    if isinstance(loader, Sequence):
        source: BatchSource = SequenceSource(loader, seed)
    elif not isinstance(loader, DataLoader):
        raise ArgumentTypeError(
            f"{loader!r} is no data loader: return what create_dataloader returns, or a list of batches"
        )
    elif isinstance(loader.dataset, StreamedBatches):
        source = StreamSource(loader, loader.dataset, phase)
    elif isinstance(sampler, ResumableSampler):
        SamplerSource(loader, sampler, phase)  # Refuses a loader that cannot be sought.
        loader = adopt_loader(loader, sampler, seed)
        source = SamplerSource(loader, sampler, phase)
    else:
        raise ArgumentTypeError(
            f"the order of a data loader with the sampler {sampler!r} cannot be resumed: make it with "
            f"create_dataloader, or "
            "give it, and return beside it, a ResumableSampler",
        )
    if source.batches_per_epoch() == 0:
        raise ConfigurationError("the data loader has 0 batches: training needs at least one in every epoch")
    source.description = describe_loader(loader, sampler if isinstance(sampler, ResumableSampler) else None)
    return source
