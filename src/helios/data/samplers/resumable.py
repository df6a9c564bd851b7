"""The base class of samplers that can seek, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from torch.utils.data import Sampler

from helios.core.registry import Registry
from helios.data.ordering import check_count
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized


class ResumableSampler(Sampler[int], ABC):
    """An order of samples that can start at any position.

    A subclass defines the order with `indices`, a function of the epoch and the position only.

    Args:
        data_source: the dataset, or any collection of the same length.

    Raises:
        ArgumentTypeError: if `data_source` has no length.
    """

    def __init__(self, data_source: Sized) -> None:
        if not hasattr(data_source, "__len__"):
            raise ArgumentTypeError(
                f"data_source {data_source!r} has no length, and so no order: pass a dataset with __len__"
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
        """The number of ranks among which the global order is divided."""
        return 1

    @property
    def rank(self) -> int:
        """The rank whose samples this sampler yields."""
        return 0

    @property
    def order_name(self) -> str:
        """The name of this order in a checkpoint; a run is resumed only with an order of the same name."""
        return type(self).__qualname__

    @property
    def epoch(self) -> int:
        """The epoch of the last `seek`; 0 before the first one."""
        return self._epoch

    @property
    def position(self) -> int:
        """The position of the last `seek`, in samples of the global order; 0 before. Iterating does not change it."""
        return self._position

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
        self._epoch, self._position = epoch, position

    def count_remaining(self, position: int) -> int | None:
        """Return how many indices this rank yields from a position to the end of an epoch; `None` if it is unknown.

        It is unknown where a subclass overrides `__len__` and not this method: an epoch that is resumed with another
        number of ranks or another batch size is then not checked for missing batches.

        Args:
            position: the samples of the global order before it, in [0, size].
        """
        if position == 0:
            return len(self)
        is_whole = type(self).__len__ is ResumableSampler.__len__ and self.num_replicas == 1
        return self.size - position if is_whole else None

    @abstractmethod
    def indices(self, epoch: int, position: int) -> Iterator[int]:
        """Yield the indices of this rank's samples from a position of the global order to the end of an epoch.

        The same arguments must give the same indices in every process and after any restart. `indices(epoch, position)`
        must yield what `indices(epoch, 0)` yields after all ranks together have consumed `position` samples.

        Args:
            epoch: the epoch, from 0.
            position: the samples of the global order to leave out, in [0, size].
        """

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's indices from the position of the last `seek`; the same ones until the next `seek`."""
        return self.indices(self._epoch, self._position)

    def __len__(self) -> int:
        """Return the number of samples that this rank yields in a whole epoch, whatever the position."""
        return self.size


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
