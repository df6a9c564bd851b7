"""The base class of samplers that can seek, and their registry."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from torch.utils.data import Sampler

from helios.core.distributed import get_world_size
from helios.core.registry import Registry
from helios.core.rng import check_seed, derive_seed, get_default_seed, key_generators, make_rng_state_saver
from helios.data.ordering import check_count
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized


class ResumableSampler(Sampler[int]):
    """An order of samples that can start at any position.

    A subclass defines the order in one of two ways:

    - with `indices`, a function of the epoch and the position only. Seeking is then as fast as this function.
    - with `__iter__`, as samplers of torch do, and `set_epoch`. The subclass passes the batch size to this class. The
      order of an epoch is then evaluated as a whole and kept in memory, and seeking skips indices of it, so
      `start_iter` is 0 whenever Helios iterates. The order must be a function of the epoch alone; random numbers that
      `__iter__` draws from the generators of the process are a function of (seed, epoch).

    Args:
        data_source: the dataset, or any collection of the same length; in the second way, the batch size.
        batch_size: the batch size, in place of the first argument.
        dataset: the dataset, in place of the first argument.

    Raises:
        ArgumentTypeError: if the dataset has no length, or the subclass defines neither `indices` nor `__iter__`.
        ConfigurationError: if there is no dataset, two of them, or the batch size is not an integer of at least 1.
    """

    def __init__(
        self,
        data_source: Sized | int | None = None,
        *,
        batch_size: int | None = None,
        dataset: Sized | None = None,
    ) -> None:
        self.__is_iterated = type(self).indices is ResumableSampler.indices
        if self.__is_iterated and type(self).__iter__ is ResumableSampler.__iter__:
            raise ArgumentTypeError(f"{type(self).__name__} has no order: define indices, or __iter__ and set_epoch")
        if self.__is_iterated:
            if isinstance(data_source, int):
                data_source, batch_size = None, data_source
            self._data_source: Any = dataset if data_source is None else data_source
            self.batch_size = _check_batch_size(batch_size)
        else:
            self._data_source = _choose_data(data_source, dataset)
        self._epoch = 0
        self.__position = 0
        self._start_iter = 0
        self.__draw_seed = get_default_seed()
        self.__order: list[int] | None = None  # Of the epoch, once it is needed; for subclasses with __iter__.

    @property
    def size(self) -> int:
        """The number of samples in the global order of one epoch, each counted once."""
        return len(self) * self.num_replicas if self.__is_iterated else len(self._data_source)

    @property
    def num_replicas(self) -> int:
        """The number of ranks among which the global order is divided."""
        return getattr(self, "_num_replicas", 1)

    @num_replicas.setter
    def num_replicas(self, num_replicas: int) -> None:
        self._num_replicas = num_replicas

    @property
    def rank(self) -> int:
        """The rank whose samples this sampler yields."""
        return getattr(self, "_rank", 0)

    @rank.setter
    def rank(self, rank: int) -> None:
        self._rank = rank

    @property
    def order_name(self) -> str:
        """The name of this order in a checkpoint; a run is resumed only with an order of the same name."""
        name = type(self).__qualname__
        # How such an order is divided among ranks is not known, so another number of ranks cannot continue in it.
        return f"{name} on {get_world_size()} ranks" if self.__is_iterated and get_world_size() > 1 else name

    @property
    def epoch(self) -> int:
        """The epoch of the last `seek`; 0 before the first one."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch

    @property
    def position(self) -> int:
        """The position of the last `seek`, in samples of the global order; 0 before. Iterating does not change it."""
        return self.__position

    @property
    def is_iterated(self) -> bool:
        """Whether the order is defined by `__iter__` of the subclass, and not by `indices`."""
        return self.__is_iterated

    @property
    def start_iter(self) -> int:
        """Where `__iter__` of a subclass that defines it starts; 0 whenever Helios iterates.

        Raises:
            ConfigurationError: if it is set in a sampler that defines `indices`.
        """
        return self._start_iter

    @start_iter.setter
    def start_iter(self, start_iter: int) -> None:
        if not self.__is_iterated:
            raise ConfigurationError(
                f"start_iter is set to {start_iter!r}, but {type(self).__name__} starts where seek(epoch, position) "
                "says: call seek with the number of samples that all ranks together have consumed"
            )
        self._start_iter = start_iter

    def set_epoch(self, epoch: int) -> None:
        """Start every iteration from now on at the beginning of this epoch, as `seek(epoch)` does.

        A subclass with `__iter__` overrides this if its order depends on the epoch.

        Args:
            epoch: the epoch, from 0.

        Raises:
            ConfigurationError: if it is out of range.
        """
        self._epoch, self.__position, self.__order = check_count("epoch", epoch), 0, None

    def seed_draws(self, seed: int) -> None:
        """Set the seed of the random numbers that `__iter__` of a subclass draws.

        Args:
            seed: the seed of the run, in [0, 2**63).
        """
        self.__draw_seed = check_seed(seed)
        self.__order = None

    def seek(self, epoch: int, position: int = 0) -> None:
        """Start every iteration from now on in this epoch, after `position` samples of it.

        Args:
            epoch: the epoch, from 0.
            position: the samples that all ranks together have consumed, in [0, size].

        Raises:
            ConfigurationError: if either is out of range; the sampler is then unchanged.
        """
        check_count("epoch", epoch)
        if check_count("position", position) > self.size:
            raise ConfigurationError(
                f"position {position} lies behind the end of the epoch: pass the number of samples that all ranks "
                f"together have consumed, in [0, {self.size}]"
            )
        if self.__is_iterated:
            self.set_epoch(epoch)
        self._epoch, self.__position, self.__order = epoch, position, None

    def count_remaining(self, position: int) -> int | None:
        """Return how many indices this rank yields from a position to the end of an epoch; `None` if it is unknown.

        It is unknown where a subclass overrides `__len__` and not this method: an epoch that is resumed with another
        number of ranks or another batch size is then not checked for missing batches.

        Args:
            position: the samples of the global order before it, in [0, size].
        """
        if position == 0:
            return len(self)
        if self.__is_iterated:
            return len(self) - self._count_before(position)
        is_whole = type(self).__len__ is ResumableSampler.__len__ and self.num_replicas == 1
        return self.size - position if is_whole else None

    def indices(self, epoch: int, position: int) -> Iterator[int]:
        """Yield the indices of this rank's samples from a position of the global order to the end of an epoch.

        The same arguments must give the same indices in every process and after any restart. `indices(epoch, position)`
        must yield what `indices(epoch, 0)` yields after all ranks together have consumed `position` samples.

        A subclass overrides this method, or `__iter__`.

        Args:
            epoch: the epoch, from 0.
            position: the samples of the global order to leave out, in [0, size].
        """
        if epoch != self._epoch:
            self.seek(epoch, position)
        return itertools.islice(self._evaluate(), self._count_before(position), None)

    def remaining(self) -> Iterator[int]:
        """Return an iterator over this rank's indices from the position of the last `seek` to the end of the epoch."""
        return self.indices(self._epoch, self.__position) if self.__is_iterated else iter(self)

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's indices from the position of the last `seek`; the same ones until the next `seek`."""
        return self.indices(self._epoch, self.__position)

    def __len__(self) -> int:
        """Return the number of samples that this rank yields in a whole epoch, whatever the position."""
        return len(self._evaluate()) if self.__is_iterated else self.size

    def _count_before(self, position: int) -> int:
        """Return how many of this rank's indices come before a position of the global order."""
        return max(0, -((self.rank - position) // self.num_replicas))

    def _evaluate(self) -> list[int]:
        """Return the whole order of the epoch of a subclass with `__iter__`."""
        if self.__order is None:
            restore_rng_state = make_rng_state_saver()()
            key_generators(derive_seed(self.__draw_seed, "sampler", self._epoch))
            self._start_iter = 0
            try:
                self.__order = list(iter(self))
            finally:
                restore_rng_state()
        return self.__order


def _choose_data(data_source: Sized | int | None, dataset: Sized | None) -> Sized:
    if (data_source is None) == (dataset is None):
        raise ConfigurationError("a sampler orders one dataset: pass data_source or dataset, and not both")
    data = dataset if data_source is None else data_source
    if not hasattr(data, "__len__"):
        raise ArgumentTypeError(f"data_source {data!r} has no length, and so no order: pass a dataset with __len__")
    return data  # type: ignore[return-value]  # It is one of the two.


def _check_batch_size(batch_size: int | None) -> int | None:
    if batch_size is not None and check_count("batch_size", batch_size) == 0:
        raise ConfigurationError("batch_size is 0: pass an integer of at least 1")
    return batch_size


SAMPLER_REGISTRY: Final = Registry[ResumableSampler]("sampler")


def create_sampler(type_name: str, *args: Any, **kwargs: Any) -> ResumableSampler:
    """Make a registered sampler.

    Args:
        type_name: the name in `SAMPLER_REGISTRY`.
        *args: passed on.
        **kwargs: passed on.

    Raises:
        UnknownNameError: if there is no such name; the message lists the registered ones.
    """
    return SAMPLER_REGISTRY.create(type_name, *args, **kwargs)
