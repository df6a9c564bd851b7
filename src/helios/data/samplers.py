"""Samplers that can be sought: told where in which epoch to go on, they go on there.

A sampler counts nothing while it is iterated over. The epoch and the position are given to `seek`; what comes next is
derived from them. A run of another number of ranks therefore takes over in the middle of an epoch: the position counts
samples of the global order, by all ranks together.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from torch.utils.data import Sampler

from helios.core.distributed import get_global_rank, get_world_size
from helios.core.registry import Registry
from helios.core.rng import check_seed, get_default_seed
from helios.data.ordering import check_count, sequential_indices, shuffled_indices
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized


class ResumableSampler(Sampler[int], ABC):
    """An order of samples that can be entered at any position.

    A subclass says the order with `indices`, a function of the epoch and the position alone.

    Args:
        data_source: what has a length: the data set, or any collection as long as it is.

    Raises:
        ArgumentTypeError: if `data_source` has no length.
    """

    def __init__(self, data_source: Sized) -> None:
        if not hasattr(data_source, "__len__"):
            raise ArgumentTypeError(
                f"data_source {data_source!r} has no length, and so no order: pass a data set with __len__"
            )
        self._data_source = data_source
        self._epoch = 0
        self._position = 0

    @property
    def size(self) -> int:
        """The number of samples in the global order of one epoch, each counted once."""
        return len(self._data_source)

    @property
    def num_replicas(self) -> int:
        """The number of ranks that share the global order out among them."""
        return 1

    @property
    def rank(self) -> int:
        """The rank whose share this sampler yields."""
        return 0

    @property
    def order_name(self) -> str:
        """What a checkpoint's passport calls this order: a run that is resumed must have an order of the same name."""
        return type(self).__qualname__

    @property
    def epoch(self) -> int:
        """The epoch that was last sought; 0 before."""
        return self._epoch

    @property
    def position(self) -> int:
        """The position that was last sought, in samples of the global order; 0 before. Iterating does not move it."""
        return self._position

    def seek(self, epoch: int, position: int = 0) -> None:
        """Let every iteration from now on begin in this epoch, after `position` samples of it.

        Args:
            epoch: the epoch, from 0.
            position: the samples that all ranks together have consumed, in [0, size].

        Raises:
            ConfigurationError: if either is out of range; nothing has changed then.
        """
        check_count("epoch", epoch)
        if check_count("position", position) > self.size:
            raise ConfigurationError(
                f"position {position} lies behind the end of the epoch: pass the number of samples that all ranks "
                f"together have consumed, in [0, {self.size}]"
            )
        self._epoch, self._position = epoch, position

    def count_remaining(self, position: int) -> int | None:
        """Return how many indices this rank gets from a position of an epoch on; `None` if that is not known.

        A subclass that overrides `__len__` overrides this as well, or only epochs that are resumed on as many ranks and
        in batches of the same size are checked for their length.

        Args:
            position: the samples of the global order that are left out, in [0, size].
        """
        if position == 0:
            return len(self)
        is_whole = type(self).__len__ is ResumableSampler.__len__ and self.num_replicas == 1
        return self.size - position if is_whole else None

    @abstractmethod
    def indices(self, epoch: int, position: int) -> Iterator[int]:
        """Yield the indices of this rank's samples of an epoch, from a position of the global order to its end.

        The same arguments must give the same indices in every process and after any restart, and
        `indices(epoch, position)` must go on where a run that had come as far would have gone on.

        Args:
            epoch: the epoch, from 0.
            position: the samples of the global order to leave out, in [0, size].
        """

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's indices from the position that was sought, each time the same until the next seek."""
        return self.indices(self._epoch, self._position)

    def __len__(self) -> int:
        """Return the number of samples that this rank sees in a whole epoch, wherever it was sought to."""
        return self.size


SAMPLER_REGISTRY: Final = Registry[ResumableSampler]("sampler")


def create_sampler(type_name: str, *args: Any, **kwargs: Any) -> ResumableSampler:
    """Make a registered sampler.

    Args:
        type_name: the name in `SAMPLER_REGISTRY`.
        *args: passed on.
        **kwargs: passed on.

    Raises:
        UnknownNameError: if there is none of this name; the message lists those there are.
    """
    return SAMPLER_REGISTRY.create(type_name, *args, **kwargs)


@SAMPLER_REGISTRY.register
class ResumableRandomSampler(ResumableSampler):
    """Every sample once an epoch, in an order that is a function of (seed, epoch).

    Args:
        data_source: the data set.
        seed: the seed of the order, in [0, 2**63); the default seed if it is `None`.

    Raises:
        ArgumentTypeError: if `data_source` has no length.
        ConfigurationError: if the seed is out of range.

    >>> sampler = ResumableRandomSampler(range(7), seed=0)
    >>> list(sampler)
    [2, 0, 6, 3, 5, 4, 1]
    >>> sampler.seek(epoch=0, position=4)
    >>> list(sampler)
    [5, 4, 1]
    """

    def __init__(self, data_source: Sized, seed: int | None = None) -> None:
        super().__init__(data_source)
        self._seed = check_seed(get_default_seed() if seed is None else seed)

    @property
    def order_name(self) -> str:
        """That of every shuffled order, whether it is shared out over ranks or not."""
        return "shuffled" if type(self) is ResumableRandomSampler else super().order_name

    def indices(self, epoch: int, position: int) -> Iterator[int]:
        """Yield the shuffled indices of an epoch from a position on."""
        return shuffled_indices(self.size, self._seed, epoch, position)


@SAMPLER_REGISTRY.register
class ResumableSequentialSampler(ResumableSampler):
    """Every sample once an epoch, in the order of the data set.

    Args:
        data_source: the data set.

    Raises:
        ArgumentTypeError: if `data_source` has no length.
    """

    @property
    def order_name(self) -> str:
        """That of every order of the dataset's own, whether it is shared out over ranks or not."""
        return "sequential" if type(self) is ResumableSequentialSampler else super().order_name

    def indices(self, epoch: int, position: int) -> Iterator[int]:  # noqa: ARG002 - Every epoch has the same order.
        """Yield the indices of the data set from a position on."""
        return sequential_indices(self.size, position)


@SAMPLER_REGISTRY.register
class ResumableDistributedSampler(ResumableSampler):
    """One rank's share of a global order: every `num_replicas`-th sample, so that ranks step through it side by side.

    When the samples left in an epoch cannot be shared out evenly, the last ranks repeat samples from the beginning of
    the epoch's order, so that no rank waits for another that has nothing left. `drop_last` leaves out the rest instead.
    `pad=False`, meant for evaluation, does neither: every sample comes exactly once, and some ranks have one sample
    fewer than others.

    Resuming with another number of ranks goes on in the same global order, and shares out what remains among the new.

    Args:
        data_source: the data set.
        num_replicas: the number of ranks; that of the process group if it is `None`.
        rank: the rank whose share this is; that of this process if it is `None`.
        shuffle: whether the order is a function of (seed, epoch); otherwise it is that of the data set.
        seed: the seed of the order, in [0, 2**63), the same on every rank; the default seed if it is `None`.
        drop_last: leave out the samples that cannot be shared out evenly.
        pad: repeat samples so that all ranks have equally many; of no effect if they are dropped.

    Raises:
        ArgumentTypeError: if `data_source` has no length.
        ConfigurationError: if the number of ranks, the rank or the seed is out of range.
    """

    def __init__(
        self,
        data_source: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        drop_last: bool = False,
        *,
        pad: bool = True,
    ) -> None:
        super().__init__(data_source)
        self._num_replicas, self._rank = _resolve_ranks(num_replicas, rank)
        self._shuffle = shuffle
        self._seed = check_seed(get_default_seed() if seed is None else seed)
        self._drop_last = drop_last
        self._pad = pad

    @property
    def num_replicas(self) -> int:
        """The number of ranks that share the global order out among them."""
        return self._num_replicas

    @property
    def rank(self) -> int:
        """The rank whose share this sampler yields."""
        return self._rank

    @property
    def order_name(self) -> str:
        """That of the global order, which does not depend on the number of ranks."""
        if type(self) is not ResumableDistributedSampler:
            return super().order_name
        return "shuffled" if self._shuffle else "sequential"

    def indices(self, epoch: int, position: int) -> Iterator[int]:
        """Yield this rank's share of an epoch's samples from a global position on."""
        end = position + self._count_shared_out(self.size - position)
        share = range(position + self._rank, end, self._num_replicas)
        once = self._order(epoch, share.start, min(end, self.size))
        if not share or share[-1] < self.size:
            return once
        # The ranks' last samples stand side by side, so only one of a share lies behind the end of the order.
        repeated = share[-1] % self.size
        return itertools.chain(once, self._order(epoch, repeated, repeated + 1))

    def __len__(self) -> int:
        """Return the number of samples that this rank sees in a whole epoch, repeated ones included."""
        return self._count_share(0)

    def count_remaining(self, position: int) -> int | None:
        """Return how many indices this rank gets from a position on, repeated ones included."""
        if type(self).__len__ is ResumableDistributedSampler.__len__:
            return self._count_share(position)
        return super().count_remaining(position)

    def _count_share(self, position: int) -> int:
        return len(range(self._rank, self._count_shared_out(self.size - position), self._num_replicas))

    def _order(self, epoch: int, start: int, stop: int) -> Iterator[int]:
        if self._shuffle:
            return shuffled_indices(self.size, self._seed, epoch, start, self._num_replicas, stop)
        return sequential_indices(self.size, start, self._num_replicas, stop)

    def _count_shared_out(self, remaining: int) -> int:
        """Return how many samples the ranks take together, of so many that remain."""
        if self._drop_last:
            return remaining - remaining % self._num_replicas
        return remaining + (-remaining % self._num_replicas if self._pad else 0)


def _resolve_ranks(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    num_replicas = check_count("num_replicas", get_world_size() if num_replicas is None else num_replicas)
    rank = check_count("rank", get_global_rank() if rank is None else rank)
    if rank >= num_replicas:
        raise ConfigurationError(f"rank {rank} is not one of {num_replicas} ranks: pass a rank in [0, num_replicas)")
    return num_replicas, rank
