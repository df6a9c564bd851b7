from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, get_worker_info

from helios.core.rng import key_generators
from helios.data.loading import create_dataloader
from helios.data.samplers import ResumableDistributedSampler, ResumableSequentialSampler
from helios.data.sources import BatchSource, make_source
from helios.errors import CheckpointMismatchError
from tests.data.drawing import Drawing, draw
from tests.data.sources.reading import make_sampler_source, numbers, position_at, take

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@given(
    size=st.integers(1, 30),
    batch_size=st.integers(1, 9),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
@settings(max_examples=40)
def test_iterating_gives_the_rest(size: int, batch_size: int, drop_last: bool, shuffle: bool, epoch: int) -> None:
    """After every number of batches, also all of an epoch, a resume yields exactly the remaining ones."""
    options: dict[str, Any] = {"batch_size": batch_size, "drop_last": drop_last, "shuffle": shuffle}
    if drop_last and size < batch_size:
        return
    source = make_sampler_source(size, **options)
    batches = numbers(source.iterate(epoch))
    assert len(batches) == source.batches_per_epoch()
    samples = [index for batch in batches for index in batch]
    assert len(set(samples)) == len(samples) == (size - size % batch_size if drop_last else size)
    for done in range(len(batches) + 1):
        position = position_at(source, done)
        resumed = make_sampler_source(size, **options)
        assert numbers(resumed.iterate(epoch, done, position)) == batches[done:]
        assert numbers(resumed.iterate(epoch + 1)) == numbers(source.iterate(epoch + 1))
        assert numbers(make_sampler_source(size, **options).iterate(epoch, done)) == batches[done:]
        source.iterate(epoch)


@given(size=st.integers(1, 40), before=st.integers(1, 9), after=st.integers(1, 9), data=st.data())
@settings(max_examples=40)
def test_another_batch_size_continues_at_that_sample(size: int, before: int, after: int, data: st.DataObject) -> None:
    """Resumed with another batch size, even twice, an epoch still sees each sample once, in the same order."""
    order = [index for batch in numbers(make_sampler_source(size, shuffle=True).iterate(1)) for index in batch]
    seen: list[int] = []
    done, position = 0, None
    for batch_size in (before, after, before):
        source = make_sampler_source(size, shuffle=True, batch_size=batch_size)
        count = data.draw(st.integers(0, -(-(size - len(seen)) // batch_size)))
        for batch in take(source, 1, count, done, position):
            seen += batch
        done += count
        position = position_at(source, done)
    rest = numbers(make_sampler_source(size, shuffle=True, batch_size=after).iterate(1, done, position))
    assert seen + [index for batch in rest for index in batch] == order


@given(size=st.integers(8, 60), worlds=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])))
@settings(max_examples=30)
def test_another_number_of_ranks_continues_at_that_sample(size: int, worlds: tuple[int, int]) -> None:
    """After a resume with another number of ranks, they divide the rest of an epoch in the same global order."""

    def ranks(world: int, batch_size: int) -> list[BatchSource]:
        samplers = [ResumableDistributedSampler(range(size), world, rank, seed=1, pad=False) for rank in range(world)]
        return [make_sampler_source(size, sampler=sampler, batch_size=batch_size) for sampler in samplers]

    def interleave(shares: list[list[list[int]]]) -> list[list[int]]:
        """Return the global batches; the ranks take samples in turn."""
        count = max(map(len, shares))
        by_rank = [[share[i] if i < len(share) else [] for share in shares] for i in range(count)]
        return [[part[j] for j in range(max(map(len, parts))) for part in parts if j < len(part)] for parts in by_rank]

    before, after = worlds
    source = ranks(before, 4 // before)
    whole = interleave([numbers(source.iterate(3)) for source in source])
    done = 2
    position = position_at(source[0], done)
    rest = interleave([numbers(source.iterate(3, done, position)) for source in ranks(after, 4 // after)])
    assert rest == whole[done:]


@given(
    size=st.integers(9, 60),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    drop_last=st.booleans(),
    pad=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60)
def test_the_end_of_an_epoch_is_known_on_any_number_of_ranks(
    size: int, worlds: tuple[int, int], sizes: tuple[int, int], drop_last: bool, pad: bool, data: st.DataObject
) -> None:
    """An epoch resumed with other ranks and another batch size ends after `batches_at_end` batches."""

    def source_of(world: int, batch_size: int, rank: int) -> BatchSource:
        sampler = ResumableDistributedSampler(range(size), world, rank, drop_last=drop_last, pad=pad)
        return make_sampler_source(size, sampler=sampler, batch_size=min(batch_size, len(sampler)), drop_last=drop_last)

    before = source_of(worlds[0], sizes[0], 0)
    list(before.iterate(1))
    done = data.draw(st.integers(0, before.batches_per_epoch() or 0))
    assert before.batches_at_end() == before.batches_per_epoch()
    position = position_at(before, done)
    for rank in range(worlds[1]):
        after = source_of(worlds[1], sizes[1], rank)
        assert done + len(list(after.iterate(1, done, position))) == after.batches_at_end()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("drop_last", [False, True])
def test_no_sample_before_the_position_is_fetched(workers: int, drop_last: bool, tmp_path: Path) -> None:
    """A resumed epoch fetches the remaining samples and no others."""
    options: dict[str, Any] = {"batch_size": 3, "drop_last": drop_last, "shuffle": True, "random_seed": 2}
    source = make_source(*create_dataloader(Drawing(11), **options))
    batches = [batch[:, 0].int().tolist() for batch in source.iterate(1)]
    for done in (0, 1, 3, len(batches)):
        log = tmp_path / f"{done}"
        log.touch()
        resumed = make_source(*create_dataloader(Drawing(11, log), num_workers=workers, **options))
        assert len(list(resumed.iterate(1, done, position_at(source, done)))) == len(batches) - done
        fetched = list(map(int, log.read_text().split()))
        assert sorted(fetched) == sorted(index for batch in batches[done:] for index in batch)


def test_data_of_another_size_are_refused() -> None:
    """A position in the middle of an epoch is refused in data of another size; one between epochs is not."""
    source = make_sampler_source(9, batch_size=2)
    list(source.iterate(0))
    other = make_sampler_source(10, batch_size=2)
    with pytest.raises(CheckpointMismatchError, match="over 9 samples, but there are 10 now: resume with"):
        other.iterate(0, 2, position_at(source, 2))
    assert source.position_state(0) == {}
    assert len(numbers(other.iterate(1, 0, source.position_state(0)))) == 5


def test_a_sampler_may_have_epochs_of_different_lengths() -> None:
    """`batches_at_end` is that of the epoch of the last `iterate`, not of the one before."""

    class Growing(ResumableSequentialSampler):
        def __len__(self) -> int:
            return 2 + 2 * self.epoch

        def indices(self, epoch: int, position: int) -> Iterator[int]:
            return iter(range(position, 2 + 2 * epoch))

    source = make_sampler_source(10, sampler=Growing(range(10)), batch_size=2)
    for epoch in (0, 3, 1):
        assert len(numbers(source.iterate(epoch))) == source.batches_at_end() == 1 + epoch


class FromWorkers(Dataset[torch.Tensor]):
    """Sample i is i, torch's information about the worker that fetches it, and draws that are not keyed."""

    draws_nothing = True  # So that the generators are not keyed between the samples.

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        info = get_worker_info()
        assert info is not None
        own = np.random.default_rng((info.seed, index)).random()
        return torch.tensor([index, info.seed % 2**32, info.id, own, *draw()], dtype=torch.float64)


def samples_of(source: BatchSource, epoch: int, done: int = 0) -> list[list[float]]:
    return [row for batch in source.iterate(epoch, done) for row in batch.tolist()]


@pytest.mark.parametrize("persistent", [False, True])
def test_seeds_of_workers_are_exact_under_resume(persistent: bool) -> None:
    """The worker of each batch, and its `get_worker_info().seed`, are functions of seed, epoch and position."""

    def make(seed: int = 2, rank: int = 0) -> BatchSource:
        sampler = ResumableDistributedSampler(range(20), 2, rank, shuffle=False)
        options: dict[str, Any] = {"sampler": sampler, "num_workers": 2, "persistent_workers": persistent}
        return make_source(*create_dataloader(FromWorkers(), seed, 2, **options))

    source = make()
    epochs = [samples_of(source, epoch) for epoch in range(2)]
    resumed = make()
    assert [row[:4] for row in samples_of(resumed, 1, 3)] == [row[:4] for row in epochs[1][6:]]
    key_generators(9)  # Forked workers inherit the generators of this process.
    if not persistent:
        assert samples_of(resumed, 1) == epochs[1]  # The generators of the workers are seeded alike, too.
    seeds = [{row[1] for row in rows} for rows in (*epochs, samples_of(make(rank=1), 0), samples_of(make(seed=3), 0))]
    assert [len(two) for two in seeds] == [2] * 4
    # torch does not send a new seed to persistent workers.
    assert len(set().union(*seeds)) == (6 if persistent else 8)
