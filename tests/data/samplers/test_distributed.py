from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler, TensorDataset

from helios.data.ordering import shuffled_indices
from helios.data.samplers import ResumableDistributedSampler
from helios.errors import ConfigurationError

sizes = st.one_of(st.integers(0, 60), st.integers(4090, 4200))
worlds = st.integers(1, 9)


def make_ranks(n: int, world: int, **options: Any) -> list[ResumableDistributedSampler]:
    return [ResumableDistributedSampler(range(n), world, rank, **options) for rank in range(world)]


def interleave(shares: list[list[int]]) -> list[int]:
    return [index for row in itertools.zip_longest(*shares) for index in row if index is not None]


def read_shares(samplers: list[ResumableDistributedSampler], epoch: int, position: int) -> list[list[int]]:
    for sampler in samplers:
        sampler.seek(epoch, position)
    return [list(sampler) for sampler in samplers]


@given(n=sizes, world=worlds, shuffle=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_ranks_divide_what_remains(n: int, world: int, shuffle: bool, data: st.DataObject) -> None:
    """From any position, the ranks together yield the rest of the global order: padded, dropped or uneven."""
    position = data.draw(st.integers(0, n))
    order = list(shuffled_indices(n, 6691, 2)) if shuffle else list(range(n))
    rest = order[position:]

    padded = read_shares(make_ranks(n, world, shuffle=shuffle), 2, position)
    extra = -len(rest) % world
    assert {len(share) for share in padded} == {(len(rest) + extra) // world}
    assert interleave(padded) == rest + [order[i % n] for i in range(extra)]

    dropped = read_shares(make_ranks(n, world, shuffle=shuffle, drop_last=True), 2, position)
    assert interleave(dropped) == rest[: len(rest) - len(rest) % world]
    assert len({len(share) for share in dropped}) == 1

    uneven = read_shares(make_ranks(n, world, shuffle=shuffle, pad=False), 2, position)
    assert interleave(uneven) == rest
    assert max(map(len, uneven)) - min(map(len, uneven)) <= 1


@given(n=sizes, world=worlds, options=st.sampled_from([{}, {"drop_last": True}, {"pad": False}]))
@settings(max_examples=40, deadline=None)
def test_length_is_what_a_rank_yields_in_an_epoch(n: int, world: int, options: dict[str, bool]) -> None:
    """The length is the number of samples of this rank in a whole epoch; the size is that of the dataset."""
    for sampler in make_ranks(n, world, **options):
        assert len(sampler) == len(list(sampler))
        before = len(sampler)
        sampler.seek(1, n // 2)
        assert len(sampler) == before
        assert sampler.size == n


@pytest.mark.parametrize("n", [7, 8, 10, 23])
@pytest.mark.parametrize("world", [1, 2, 4, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_sequential_order_is_divided_as_by_torch(n: int, world: int, drop_last: bool) -> None:
    """Without shuffling, each rank's whole epoch equals that of torch's `DistributedSampler`."""
    for sampler in make_ranks(n, world, shuffle=False, drop_last=drop_last):
        reference: DistributedSampler[int] = DistributedSampler(
            TensorDataset(torch.arange(n)), world, sampler.rank, shuffle=False, drop_last=drop_last
        )
        assert list(sampler) == list(reference)
        assert len(sampler) == len(reference)


@given(
    n=st.integers(0, 400),
    epoch=st.integers(0, 50),
    stages=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.integers(0, 60)), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_any_number_of_ranks_continues_an_epoch(n: int, epoch: int, stages: list[tuple[int, int]]) -> None:
    """However often the number of ranks changes, every sample comes exactly once, in one global order."""
    seen: list[int] = []
    for world, steps in stages:
        steps_left = min(steps, (n - len(seen)) // world)
        shares = read_shares(make_ranks(n, world), epoch, len(seen))
        seen += interleave([share[:steps_left] for share in shares])
    [share] = read_shares(make_ranks(n, 1), epoch, len(seen))
    assert seen + share == list(shuffled_indices(n, 6691, epoch))


def test_one_two_four_one_ranks_see_every_sample_once() -> None:
    """1 -> 2 -> 4 -> 1 ranks within one epoch of 1797 samples."""
    n, seen = 1797, list[int]()
    for world, until in ((1, 400), (2, 800), (4, 1600), (1, n)):
        shares = read_shares(make_ranks(n, world), 3, len(seen))
        seen += interleave([share[: (until - len(seen)) // world] for share in shares])
    assert seen == list(shuffled_indices(n, 6691, 3))


def test_global_batches_do_not_depend_on_the_number_of_ranks() -> None:
    """With a global batch of 8, one, two, four and eight ranks see the same global batches."""
    n = 96

    def global_batches(world: int) -> list[list[int]]:
        shares = np.array(read_shares(make_ranks(n, world), 1, 16))
        per_rank = 8 // world
        return [sorted(shares[:, i : i + per_rank].ravel().tolist()) for i in range(0, shares.shape[1], per_rank)]

    assert global_batches(1) == global_batches(2) == global_batches(4) == global_batches(8)
    assert len(global_batches(1)) == 10


def test_ranks_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments, the sampler reads rank and world size from torchrun's variables; without them, 0 and 1."""
    alone = ResumableDistributedSampler(range(10))
    assert (alone.num_replicas, alone.rank) == (1, 0)
    place = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    for name, value in {**place, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    launched = ResumableDistributedSampler(range(10))
    assert (launched.num_replicas, launched.rank) == (8, 5)
    given = ResumableDistributedSampler(range(10), 3, 2)
    assert (given.num_replicas, given.rank) == (3, 2)


@pytest.mark.parametrize(
    ("num_replicas", "rank", "message"),
    [
        (0, 0, "rank 0 is not one of 0"),
        (2, 2, "rank 2 is not one of 2"),
        (2, -1, "rank -1"),
        (-1, 0, "num_replicas -1"),
    ],
)
def test_impossible_ranks_are_refused(num_replicas: int, rank: int, message: str) -> None:
    """A rank outside of [0, num_replicas) is refused by the constructor."""
    with pytest.raises(ConfigurationError, match=message):
        ResumableDistributedSampler(range(3), num_replicas, rank)
