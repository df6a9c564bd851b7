"""The sampler that divides one order among several ranks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from helios.core.distributed import get_global_rank, get_world_size
from helios.core.rng import check_seed, get_default_seed
from helios.data.ordering import check_count, sequential_indices, shuffled_indices
from helios.data.samplers.resumable import SAMPLER_REGISTRY, ResumableSampler
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized


@SAMPLER_REGISTRY.register
class ResumableDistributedSampler(ResumableSampler):
    """One rank's part of a global order: every `num_replicas`-th sample, starting at the rank's own.

    When the number of samples left in an epoch is not a multiple of the number of ranks, the last ranks repeat samples
    from the beginning of the epoch's order, so that all ranks have equally many and none waits in a collective.
    `drop_last` leaves the rest out instead. `pad=False`, meant for evaluation, does neither: every sample comes exactly
    once, and some ranks have one sample fewer than others.

    A run that is resumed with another number of ranks continues in the same global order; the new ranks divide what
    remains of it.

    Args:
        data_source: the dataset.
        num_replicas: the number of ranks; that of the process group if it is `None`.
        rank: the rank whose samples to yield; that of this process if it is `None`.
        shuffle: whether the order is a function of (seed, epoch); otherwise it is that of the dataset.
        seed: the seed of the order, in [0, 2**63), the same on every rank; the default seed if it is `None`.
        drop_last: leave out the samples that cannot be divided evenly.
        pad: repeat samples so that all ranks have equally many; no effect with `drop_last`.
        dataset: the dataset, in place of the first argument.

    Raises:
        ArgumentTypeError: if `data_source` has no length.
        ConfigurationError: if the number of ranks, the rank or the seed is out of range.
    """

    def __init__(
        self,
        data_source: Sized | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        drop_last: bool = False,
        *,
        pad: bool = True,
        dataset: Sized | None = None,
    ) -> None:
        super().__init__(data_source, dataset=dataset)
        self._num_replicas, self._rank = _resolve_ranks(num_replicas, rank)
        self._shuffle = shuffle
        self._seed = check_seed(get_default_seed() if seed is None else seed)
        self._drop_last = drop_last
        self._pad = pad

    @property
    def order_name(self) -> str:
        """The name of the global order, which does not depend on the number of ranks."""
        if type(self) is not ResumableDistributedSampler:
            return super().order_name
        return "shuffled" if self._shuffle else "sequential"

    def indices(self, epoch: int, position: int) -> Iterator[int]:
        """Yield this rank's indices from a position of the global order to the end of an epoch."""
        # This rank's positions in the global order are position + rank, and every num_replicas-th after it. Those from
        # `size` on are padding, and stand for the positions at the beginning of the order.
        end = position + self._count_yielded(self.size - position)
        mine = range(position + self._rank, end, self._num_replicas)
        once = self._order(epoch, mine.start, min(end, self.size))
        if not mine or mine[-1] < self.size:
            return once
        # There are fewer than num_replicas positions of padding, so at most one of them is this rank's: its last one.
        # The modulo also covers datasets with fewer samples than there are ranks.
        repeated = mine[-1] % self.size
        return itertools.chain(once, self._order(epoch, repeated, repeated + 1))

    def __len__(self) -> int:
        """Return the number of samples that this rank yields in a whole epoch, repeated ones included."""
        return self._count_own(0)

    def count_remaining(self, position: int) -> int | None:
        """Return how many indices this rank yields from a position to the end of an epoch, repeated ones included."""
        if type(self).__len__ is ResumableDistributedSampler.__len__:
            return self._count_own(position)
        return super().count_remaining(position)

    def _count_own(self, position: int) -> int:
        return len(range(self._rank, self._count_yielded(self.size - position), self._num_replicas))

    def _count_yielded(self, remaining: int) -> int:
        """Return how many samples the ranks yield together when so many remain in the epoch."""
        if self._drop_last:
            return remaining - remaining % self._num_replicas
        return remaining + (-remaining % self._num_replicas if self._pad else 0)

    def _order(self, epoch: int, start: int, stop: int) -> Iterator[int]:
        if self._shuffle:
            return shuffled_indices(self.size, self._seed, epoch, start, self._num_replicas, stop)
        return sequential_indices(self.size, start, self._num_replicas, stop)


def _resolve_ranks(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    num_replicas = check_count("num_replicas", get_world_size() if num_replicas is None else num_replicas)
    rank = check_count("rank", get_global_rank() if rank is None else rank)
    if rank >= num_replicas:
        raise ConfigurationError(f"rank {rank} is not one of {num_replicas} ranks: pass a rank in [0, num_replicas)")
    return num_replicas, rank
