"""Fetching the samples of a batch, with random draws that depend neither on the process nor on earlier fetches.

torch's `DataLoader` sends what its batch sampler yields to a worker process, or fetches in the training process, and
calls the dataset's `__getitems__` and the collate function there. Here the batch sampler yields a `Fetch`: the indices
of the batch, its epoch and its position. `KeyedDataset` and `KeyedCollate` need nothing else to key the generators, in
any process, before the user's code draws from them.
"""

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
    """One batch to fetch.

    A `Fetch` without indices is a placeholder: it is fetched and collated as `None`, and is no batch.

    Attributes:
        epoch: the epoch, from 0.
        position: the position of the first sample in the global order of the epoch.
        indices: the indices of the samples.
    """

    epoch: int
    position: int
    indices: list[int]


class KeyedBatchSampler(Sampler[Fetch]):
    """A batch sampler that yields, with the indices of each batch, its epoch and position.

    Attributes:
        placeholders: how many placeholders the next iteration yields before the first batch. torch's `DataLoader` gives
            the first fetch to worker 0, the next one to worker 1, and so on. An epoch that is resumed after `done`
            batches begins with `done % num_workers` placeholders, so that each batch goes to the worker that would have
            fetched it without the interruption, and with it to the seed of that worker.
    """

    def __init__(
        self,
        sampler: ResumableSampler,
        batch_size: int,
        *,
        drop_last: bool,
        worker_seeds: rng.SeedSequence,
        seed: int,
    ) -> None:
        """Make batches of `batch_size` indices each; the last one may be short unless `drop_last` is set.

        Args:
            sampler: the order of samples.
            batch_size: samples per batch.
            drop_last: leave out a short last batch.
            worker_seeds: the seed of each epoch's generator from which torch draws the base seed of the workers.
            seed: the seed of the order and of the draws; it is compared when a run is resumed.
        """
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.worker_seeds = worker_seeds
        self.seed = seed
        self.placeholders = 0

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, on this rank."""
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Fetch]:
        """Iterate over the batches from the position of the sampler's last `seek`."""
        sampler, size = self.sampler, self.batch_size
        # With the rank added, it is the position of this rank's first sample, so that no two ranks draw alike.
        epoch, position = sampler.epoch, sampler.position + sampler.rank
        order = sampler.remaining()
        for _ in range(self.placeholders):
            yield Fetch(epoch, position, [])
        # A sampler may yield any integer type, of NumPy for example; seeds are derived from Python's integers.
        while indices := list(map(operator.index, itertools.islice(order, size))):
            if len(indices) < size and self.drop_last:
                return
            yield Fetch(epoch, position, indices)
            position += size * sampler.num_replicas


class _Fetched(list[Any]):
    """The samples of one batch, passed to the collate function with the seed of the batch."""

    seed: int


class KeyedDataset:
    """A dataset that keys the generators before each sample is fetched, in the process that fetches it.

    A draw in `__getitem__` is a function of (seed, epoch, index). A draw in the collate function, or in the dataset's
    own `__getitems__`, is a function of (seed, epoch, position).
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        """Wrap a map-style dataset.

        Args:
            dataset: the dataset.
            seed: the seed of the draws.
        """
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
        """Return the samples of a batch; torch calls `__getitems__` instead where its version supports that."""
        return self.__getitems__(fetch)

    def __getitems__(self, fetch: Fetch) -> list[Any] | None:
        """Return the samples of a batch, `None` for a placeholder.

        Raises:
            TrainingError: if the dataset raises `StopIteration`.
        """
        if not fetch.indices:
            return None
        dataset = self.dataset
        if fetch.epoch != self._epoch:  # The constant part of the seeds is hashed once an epoch.
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
    """A `TensorDataset` that returns a whole batch at once, equal to what `default_collate` makes of its samples."""

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        """Fetch from these tensors of any dtype, each of shape (samples, ...)."""
        self._tensors = tensors

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._tensors[0])

    def __getitem__(self, fetch: Fetch) -> list[torch.Tensor] | None:
        """Return a batch, `None` for a placeholder."""
        return self.__getitems__(fetch)

    def __getitems__(self, fetch: Fetch) -> list[torch.Tensor] | None:
        """Return a batch, one tensor of shape (batch, ...) per tensor of the dataset; `None` for a placeholder."""
        if not fetch.indices:
            return None
        indices = torch.tensor(fetch.indices)
        # tensor[indices] would keep memory formats, such as channels-last, that default_collate's stacking does not.
        return [tensor.index_select(0, _on_device_of(tensor, indices)) for tensor in self._tensors]


def _on_device_of(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    if tensor.is_cuda:  # A copy from pinned memory does not make the host wait for the GPU.
        return indices.pin_memory().to(tensor.device, non_blocking=True)
    return indices.to(tensor.device)


class KeyedCollate:
    """A collate function before which the generators are keyed by the position of the batch."""

    def __init__(self, collate_fn: CollateFn) -> None:
        """Wrap a function that makes a batch of a list of samples."""
        self.collate_fn = collate_fn

    def __call__(self, samples: _Fetched | None) -> Any:
        """Make a batch of samples; return `None` for a placeholder.

        Raises:
            TrainingError: if the collate function raises `StopIteration`.
        """
        if samples is None:
            return None
        rng.key_process(samples.seed)
        try:
            return self.collate_fn(list(samples))
        except StopIteration as error:
            name = getattr(self.collate_fn, "__qualname__", type(self.collate_fn).__qualname__)
            raise refuse_stop_iteration(f"the collate function {name} raised StopIteration") from error


def collate_by_default(samples: list[Any] | None) -> Any:
    """Make a batch of samples as torch does by default; return `None` for a placeholder."""
    return None if samples is None else default_collate(samples)


def refuse_stop_iteration(what: str) -> TrainingError:
    """Return the error to raise instead of a `StopIteration`, which would end the loop over the batches silently.

    Args:
        what: what raised it, for the message.
    """
    return TrainingError(
        f"{what}: the epoch would have ended there, as if there were no more batches; if a call of next() raises it, "
        "pass next() a default, or catch the error"
    )


def fetches_batches(dataset: object) -> bool:
    """Whether a dataset itself fetches several samples at once, with `__getitems__`."""
    if isinstance(dataset, Subset):
        if type(dataset).__getitem__ is not Subset.__getitem__:
            # torch requires such a subclass to define __getitems__, too, but one by one, each sample has its own key.
            return False
        if type(dataset).__getitems__ is Subset.__getitems__:
            return fetches_batches(dataset.dataset)  # Subset passes the indices to the dataset below.
    return callable(getattr(dataset, "__getitems__", None))


def draws_nothing(dataset: object) -> bool:
    """Whether fetching is known to draw no random numbers; keying, which takes 8 µs a sample, is then left out.

    torch's `TensorDataset` draws none, nor do its `Subset` and `ConcatDataset`. Another class declares it with an
    attribute `draws_nothing = True`; if it draws nevertheless, its draws are not exact under a resume. The attribute is
    not inherited, because a subclass may draw.
    """
    if vars(type(dataset)).get("draws_nothing", False) is True:
        return True
    if type(dataset) is Subset:
        return draws_nothing(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(draws_nothing(part) for part in dataset.datasets)
    return type(dataset) is TensorDataset


def choose_fetcher(dataset: Any, collate_fn: CollateFn | None, seed: int) -> tuple[Any, Callable[[Any], Any]]:
    """Return the dataset and the collate function to give to torch's `DataLoader` beside a `KeyedBatchSampler`.

    Args:
        dataset: a map-style dataset.
        collate_fn: makes a batch of a list of samples; `None` for torch's `default_collate`.
        seed: the seed of the draws.
    """
    if collate_fn is None and type(dataset) is TensorDataset:
        return TensorFetcher(dataset.tensors), pass_on
    return KeyedDataset(dataset, seed), collate_by_default if collate_fn is None else KeyedCollate(collate_fn)
