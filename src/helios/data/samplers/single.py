"""The samplers for a single rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helios.core.rng import check_seed, get_default_seed
from helios.data.ordering import sequential_indices, shuffled_indices
from helios.data.samplers.resumable import SAMPLER_REGISTRY, ResumableSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized


@SAMPLER_REGISTRY.register
class ResumableRandomSampler(ResumableSampler):
    """Every sample once an epoch, in an order that is a function of (seed, epoch).

    `helios.data.ordering.Permutation` describes the algorithm. Memory and the time of `seek` do not depend on the
    number of samples.

    Args:
        data_source: the dataset.
        seed: the seed of the order, in [0, 2**63); the default seed if it is `None`.
        dataset: the dataset, in place of the first argument.

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

    def __init__(
        self, data_source: Sized | None = None, seed: int | None = None, *, dataset: Sized | None = None
    ) -> None:
        super().__init__(data_source, dataset=dataset)
        self._seed = check_seed(get_default_seed() if seed is None else seed)

    @property
    def order_name(self) -> str:
        """The name of every shuffled order, whether or not it is divided among ranks: "shuffled"."""
        return "shuffled" if type(self) is ResumableRandomSampler else super().order_name

    def indices(self, epoch: int, position: int) -> Iterator[int]:
        """Yield the shuffled indices of an epoch from a position to its end."""
        return shuffled_indices(self.size, self._seed, epoch, position)


@SAMPLER_REGISTRY.register
class ResumableSequentialSampler(ResumableSampler):
    """Every sample once an epoch, in the order of the dataset.

    Args:
        data_source: the dataset.
        dataset: the dataset, in place of the first argument.

    Raises:
        ArgumentTypeError: if the dataset has no length.
    """

    def __init__(self, data_source: Sized | None = None, *, dataset: Sized | None = None) -> None:
        super().__init__(data_source, dataset=dataset)

    @property
    def order_name(self) -> str:
        """The name of the dataset's own order, whether or not it is divided among ranks: "sequential"."""
        return "sequential" if type(self) is ResumableSequentialSampler else super().order_name

    def indices(self, epoch: int, position: int) -> Iterator[int]:  # noqa: ARG002 - Every epoch has the same order.
        """Yield the indices of the dataset from a position to its end."""
        return sequential_indices(self.size, position)
