from __future__ import annotations

import itertools
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Sampler, TensorDataset

from helios.data.ordering import shuffled_indices
from helios.data.samplers import (
    SAMPLER_REGISTRY,
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
    create_sampler,
)
from helios.errors import ArgumentTypeError, ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Iterator

sizes = st.one_of(st.integers(0, 60), st.integers(4090, 4200))


class EvensFirst(ResumableSampler):
    """An order as a user would write one."""

    def indices(self, epoch: int, position: int) -> Iterator[int]:
        first = epoch % 2
        return iter([*range(first, self.size, 2), *range(1 - first, self.size, 2)][position:])


@pytest.mark.parametrize("n", [1, 10, 5000])
def test_random_sampler_yields_the_keyed_order(n: int) -> None:
    """The order is that of (seed, epoch), and the default seed is 6691."""
    sampler = ResumableRandomSampler(range(n), seed=3)
    sampler.seek(5)
    assert list(sampler) == list(shuffled_indices(n, 3, 5))
    assert list(ResumableRandomSampler(range(n))) == list(shuffled_indices(n, 6691, 0))


def make_samplers(n: int) -> list[ResumableSampler]:
    data = range(n)
    return [
        ResumableRandomSampler(data, seed=1),
        ResumableSequentialSampler(data),
        ResumableDistributedSampler(data, 1, 0),
        EvensFirst(data),
    ]


@given(n=sizes, epoch=st.integers(0, 1000), data=st.data())
@settings(max_examples=40, deadline=None)
def test_seeking_gives_the_rest_of_the_epoch(n: int, epoch: int, data: st.DataObject) -> None:
    """After seek(epoch, k), every iteration yields the samples after the first k of that epoch."""
    position = data.draw(st.integers(0, n))
    for sampler in make_samplers(n):
        sampler.seek(epoch)
        whole = list(sampler)
        assert sorted(whole) == list(range(n))
        assert len(sampler) == sampler.size == n
        sampler.seek(epoch, position)
        assert list(sampler) == list(sampler) == whole[position:]
        assert (sampler.epoch, sampler.position) == (epoch, position)
        assert len(sampler) == n


def test_abandoned_iteration_leaves_no_trace() -> None:
    """A sampler keeps the arguments of `seek`, and not how far it was iterated over."""
    for sampler in make_samplers(100):
        expected = list(sampler)
        next(iter(sampler))
        assert list(sampler) == expected
        assert (sampler.epoch, sampler.position) == (0, 0)


def test_length_of_the_data_is_not_cached() -> None:
    """Every sample of a dataset that grows between epochs is in the order."""
    data = [0] * 10
    sampler = ResumableRandomSampler(data)
    data += [0] * 10
    sampler.seek(1)
    assert sorted(sampler) == list(range(20))


def test_torch_loader_takes_every_sampler() -> None:
    """The samplers are torch samplers: a plain `DataLoader` makes batches in their order."""
    values = torch.arange(10)
    for sampler in make_samplers(10):
        assert isinstance(sampler, Sampler)
        sampler.seek(1, 4)
        batches = list(DataLoader(TensorDataset(values), batch_size=4, sampler=sampler))
        assert torch.cat([batch[0] for batch in batches]).tolist() == list(sampler)


@pytest.mark.parametrize("distributed", [False, True])
def test_billion_samples_take_no_memory(distributed: bool) -> None:
    """A sampler in the middle of a billion samples holds less than 2 MB while it yields."""
    data = range(10**9)
    tracemalloc.start()
    try:
        sampler = ResumableDistributedSampler(data, 4, 3) if distributed else ResumableRandomSampler(data)
        sampler.seek(1, 5 * 10**8)
        drawn = list(itertools.islice(sampler, 20_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(set(drawn)) == 20_000
    assert peak < 2_000_000


def test_samplers_are_made_by_name() -> None:
    """The three samplers are registered under their names; an unknown name lists them."""
    assert {"ResumableRandomSampler", "ResumableSequentialSampler", "ResumableDistributedSampler"} <= {
        *SAMPLER_REGISTRY.keys()
    }
    sampler = create_sampler("ResumableRandomSampler", range(7), seed=0)
    assert list(sampler) == list(ResumableRandomSampler(range(7), 0))
    with pytest.raises(UnknownNameError, match="ResumableSequentialSampler"):
        create_sampler("RandomSampler", range(7))


@pytest.mark.parametrize(
    ("epoch", "position", "message"),
    [
        (-1, 0, "epoch -1"),
        (0, -1, "position -1"),
        (0, 11, r"position 11 lies behind .* \[0, 10\]"),
        (1.0, 0, "epoch 1.0"),
        (0, True, "position True"),
    ],
)
def test_impossible_positions_are_refused(epoch: int, position: int, message: str) -> None:
    """The error for a bad epoch or position names value and rule, and the sampler is unchanged."""
    for sampler in make_samplers(10):
        sampler.seek(2, 3)
        with pytest.raises(ConfigurationError, match=message):
            sampler.seek(epoch, position)
        assert (sampler.epoch, sampler.position) == (2, 3)


def test_seek_accepts_the_end_of_the_epoch() -> None:
    """A run that stopped after the last batch resumes with no sample left, on any number of ranks."""
    ranks = [
        ResumableDistributedSampler(range(10), 4, rank, drop_last=drop_last)
        for rank in range(4)
        for drop_last in (False, True)
    ]
    for sampler in (*make_samplers(10), *ranks):
        sampler.seek(0, 10)
        assert list(sampler) == []


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    """A bad seed is refused by the constructor, not in the middle of training."""
    with pytest.raises(ConfigurationError, match="seed"):
        ResumableRandomSampler(range(3), seed)
    with pytest.raises(ConfigurationError, match="seed"):
        ResumableDistributedSampler(range(3), 1, 0, seed=seed)


def test_data_without_a_length_is_refused() -> None:
    """The error for data without a length names `__len__`."""
    with pytest.raises(ArgumentTypeError, match="__len__"):
        ResumableRandomSampler(iter([1, 2]))  # type: ignore[arg-type]  # The mistake under test.


def test_indices_must_be_defined() -> None:
    """A sampler class without `indices` and without `__iter__` cannot be made."""
    with pytest.raises(TypeError, match="ResumableSampler has no order: define indices, or __iter__ and set_epoch"):
        ResumableSampler(range(3))
