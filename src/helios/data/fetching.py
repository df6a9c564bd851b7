"""Fetching the samples of a batch so that what is drawn on the way does not depend on who fetches them, or when."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch.utils.data import ConcatDataset, Sampler, Subset, TensorDataset, default_collate

from helios.core import rng
from helios.data.streaming import pass_on
from helios.errors import TrainingError

if TYPE_CHECKING:
    from helios.data.samplers import ResumableSampler

CollateFn: TypeAlias = Callable[[list[Any]], Any]


class Fetch(NamedTuple):
    """What a worker is asked for: the samples of one batch, and where in the epoch they stand.

    One without samples only takes a worker's turn: what comes of it is `None`, and is no batch.
    """

    epoch: int
    position: int
    indices: list[int]


class KeyedBatchSampler(Sampler[Fetch]):
    """Groups the indices of a sampler into batches that know their place in the epoch."""

    def __init__(
        self,
        sampler: ResumableSampler,
        batch_size: int,
        *,
        drop_last: bool,
        worker_seeds: rng.SeedSequence | None = None,
        seed: int | None = None,
    ) -> None:
        """Group `batch_size` indices each; the last may be short unless it is dropped.

        Args:
            sampler: the order of samples.
            batch_size: samples per batch.
            drop_last: leave out a short last batch.
            worker_seeds: the seeds, by epoch, that torch makes those of the workers from.
            seed: the seed of the order and of the draws, for the passport.
        """
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.worker_seeds = worker_seeds
        self.seed = seed
        self.turns_passed = 0  # Workers, from the first, that have had their turn in the round under way.

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, on this rank."""
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Fetch]:
        """Iterate over the batches from the position that the sampler was sought to."""
        sampler, size = self.sampler, self.batch_size
        # Where the batch's first sample stands in the global order: ranks draw apart from each other.
        epoch, position = sampler.epoch, sampler.position + sampler.rank
        order = iter(sampler)
        for _ in range(self.turns_passed):
            yield Fetch(epoch, position, [])
        # Of any integer type: NumPy's are not what seeds are made of.
        while indices := list(map(operator.index, itertools.islice(order, size))):
            if len(indices) < size and self.drop_last:
                return
            yield Fetch(epoch, position, indices)
            position += size * sampler.num_replicas


class _Fetched(list[Any]):
    """The samples of one batch on their way to the collate function, with the seed that belongs to it."""

    seed: int


class KeyedDataset:
    """A data set that keys the generators before each sample is fetched, in whichever process that is.

    A draw in `__getitem__` is a function of (seed, epoch, index), and one in the collate function, or in a data set's
    own `__getitems__`, of (seed, epoch, position).
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        """Wrap a map-style data set."""
        self.dataset = dataset
        self._seed = seed
        self._draws = not draws_nothing(dataset)
        self._fetches_batches = fetches_batches(dataset)
        self._epoch: int | None = None
        self._samples = self._batches = rng.SeedSequence(seed)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, fetch: Fetch) -> Any:
        """Return the samples of a batch; torch asks `__getitems__` instead wherever it knows it."""
        return self.__getitems__(fetch)

    def __getitems__(self, fetch: Fetch) -> list[Any] | None:
        """Return the samples of a batch."""
        if not fetch.indices:
            return None
        dataset = self.dataset
        if fetch.epoch != self._epoch:
            self._epoch = fetch.epoch
            self._samples = rng.SeedSequence(self._seed, "sample", fetch.epoch)
            self._batches = rng.SeedSequence(self._seed, "batch", fetch.epoch)
        fetched = _Fetched()
        fetched.seed = self._batches[fetch.position]
        try:
            if self._fetches_batches:
                rng.key_process(fetched.seed)
                fetched.extend(dataset.__getitems__(fetch.indices))
            elif self._draws:
                samples = self._samples
                for index in fetch.indices:
                    rng.key_process(samples[index])
                    fetched.append(dataset[index])
            else:
                for index in fetch.indices:
                    fetched.append(dataset[index])
        except StopIteration as error:
            which = f"samples {fetch.indices}" if self._fetches_batches else f"sample {fetch.indices[len(fetched)]}"
            raise refuse_stop_iteration(f"{type(dataset).__name__} raised StopIteration for {which}") from error
        return fetched


class TensorFetcher:
    """A `TensorDataset` that gives a whole batch at once: what torch's `default_collate` would make of its samples."""

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        """Give batches of these, each with the samples in its first dimension."""
        self._tensors = tensors

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._tensors[0])

    def __getitem__(self, fetch: Fetch) -> list[torch.Tensor] | None:
        """Return a batch."""
        return self.__getitems__(fetch)

    def __getitems__(self, fetch: Fetch) -> list[torch.Tensor] | None:
        """Return a batch."""
        if not fetch.indices:
            return None
        indices = torch.tensor(fetch.indices)
        # Not tensor[indices], which keeps memory formats that stacking does not.
        return [tensor.index_select(0, _on_device_of(tensor, indices)) for tensor in self._tensors]


def _on_device_of(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    if tensor.is_cuda:  # Out of pinned memory, so that the host need not wait for what the GPU is doing.
        return indices.pin_memory().to(tensor.device, non_blocking=True)
    return indices.to(tensor.device)


class KeyedCollate:
    """A collate function that finds the generators keyed by the batch."""

    def __init__(self, collate_fn: CollateFn) -> None:
        """Wrap a collate function."""
        self.collate_fn = collate_fn

    def __call__(self, samples: _Fetched | None) -> Any:
        """Make a batch of samples."""
        if samples is None:
            return None
        rng.key_process(samples.seed)
        try:
            return self.collate_fn(list(samples))
        except StopIteration as error:
            name = getattr(self.collate_fn, "__qualname__", type(self.collate_fn).__qualname__)
            raise refuse_stop_iteration(f"the collate function {name} raised StopIteration") from error


def collate_by_default(samples: list[Any] | None) -> Any:
    """Make a batch of samples as torch does by default."""
    return None if samples is None else default_collate(samples)


def refuse_stop_iteration(what: str) -> TrainingError:
    """Return what to raise in the place of a `StopIteration`, which would end the loop over the batches.

    Args:
        what: who has raised it.
    """
    return TrainingError(
        f"{what}: the epoch would have ended there, as if there were no more batches; where it comes from next(), pass "
        "that a default, or catch the error"
    )


def fetches_batches(dataset: object) -> bool:
    """Whether a data set has a way of its own to fetch several samples at once."""
    if isinstance(dataset, Subset):
        if type(dataset).__getitem__ is not Subset.__getitem__:
            return False  # torch demands a __getitems__ beside it, but one by one the samples' draws have addresses.
        if type(dataset).__getitems__ is Subset.__getitems__:
            return fetches_batches(dataset.dataset)  # It passes the indices on.
    return callable(getattr(dataset, "__getitems__", None))


def draws_nothing(dataset: object) -> bool:
    """Whether fetching is known to draw no random numbers, so that keying, 8 µs a sample, can be saved.

    torch's `TensorDataset` draws none, nor do subsets and joins of such. A class of datasets says so by an attribute
    `draws_nothing = True`; one that draws all the same then draws from wherever the generators happen to be. It is not
    inherited, as a subclass may well draw.
    """
    if vars(type(dataset)).get("draws_nothing", False) is True:
        return True
    if type(dataset) is Subset:
        return draws_nothing(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(draws_nothing(part) for part in dataset.datasets)
    return type(dataset) is TensorDataset


def choose_fetcher(dataset: Any, collate_fn: CollateFn | None, seed: int) -> tuple[Any, Callable[[Any], Any]]:
    """Return what fetches the samples of a batch, and what makes the batch of them.

    Args:
        dataset: a map-style data set.
        collate_fn: what makes a batch of a list of samples; `None` for torch's `default_collate`.
        seed: the seed of the draws.
    """
    if collate_fn is None and type(dataset) is TensorDataset:
        return TensorFetcher(dataset.tensors), pass_on
    return KeyedDataset(dataset, seed), collate_by_default if collate_fn is None else KeyedCollate(collate_fn)
