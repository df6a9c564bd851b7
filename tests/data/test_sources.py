from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset, get_worker_info

from helios.checkpoint.plain import decode, encode
from helios.core.rng import key_generators
from helios.data.loading import create_dataloader
from helios.data.samplers import (
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
)
from helios.data.sources import BatchSource, SamplerSource, SequenceSource, StreamSource, make_source
from helios.errors import ArgumentTypeError, CheckpointMismatchError, ConfigurationError
from tests.data.drawing import Drawing, Stream, draw

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def make_sampler_source(size: int, **options: Any) -> BatchSource:
    return make_source(*create_dataloader(TensorDataset(torch.arange(size)), random_seed=2, **options))


def numbers(batches: Iterator[Any]) -> list[list[int]]:
    return [batch[0].tolist() for batch in batches]


def position_at(source: BatchSource, done: int) -> dict[str, Any]:
    position: dict[str, Any] = decode(encode(source.position_state(done)))
    return position


def take(source: BatchSource, epoch: int, count: int, done: int = 0, position: Any = None) -> list[list[int]]:
    """Return the first `count` of the remaining batches of an epoch."""
    batches = source.iterate(epoch, done, position)
    return [next(batches)[0].tolist() for _ in range(count)]


# ------------------------------------------------------------------------------------------------------ map-style data


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


# ------------------------------------------------------------------------------------------------------- sequences


@given(size=st.integers(1, 9), epoch=st.integers(0, 3))
@settings(max_examples=20)
def test_a_list_continues_where_it_was(size: int, epoch: int) -> None:
    """After every number of batches, a list of batches yields the remaining ones."""
    source = make_source(list(range(size)), None)
    assert isinstance(source, SequenceSource)
    assert source.batches_per_epoch() == size
    for done in range(size + 1):
        assert list(source.iterate(epoch, done, position_at(source, done))) == list(range(done, size))


def test_a_list_of_another_length_is_refused() -> None:
    """A position in a list is refused in a list of another length."""
    position = make_source([1, 2, 3], None).position_state(1)
    with pytest.raises(CheckpointMismatchError, match="over 3 batches, but there are 2 now"):
        make_source([1, 2], None).iterate(0, 1, position)


def test_another_kind_of_data_is_refused() -> None:
    """A position in a list, a map-style dataset or a stream is refused by sources of the other two kinds."""
    stream = make_source(*create_dataloader(Stream([4])))
    assert isinstance(stream, StreamSource)
    next(stream.iterate(0))
    sources = {
        "a list of": make_source([1, 2, 3, 4], None),
        "a map-style": make_sampler_source(4),
        "an iterable": stream,
    }
    for saved, source in sources.items():
        position = position_at(source, 1)
        for present, other in sources.items():
            if present != saved:
                with pytest.raises(CheckpointMismatchError, match=f"over {saved} .* but the data is {present} "):
                    other.iterate(0, 1, position)


class Drawn(Sequence[torch.Tensor]):
    """Batches that are made in `__getitem__`, with random draws."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: Any) -> Any:
        return torch.tensor([float(index), *draw()], dtype=torch.float64)


def test_batches_that_are_made_in_getitem_are_keyed() -> None:
    """A draw in the `__getitem__` of a sequence of batches is a function of seed, epoch and position."""
    source = make_source(Drawn(), None, seed=3)
    epochs = [[batch.tolist() for batch in source.iterate(epoch)] for epoch in (0, 1)]
    draw()
    assert [batch.tolist() for batch in make_source(Drawn(), None, seed=3).iterate(1, 2)] == epochs[1][2:]
    others = [batch.tolist() for batch in make_source(Drawn(), None, seed=4).iterate(1)]
    assert len({value for rows in (*epochs, others) for row in rows for value in row[1:]}) == 3 * 4 * 4


# -------------------------------------------------------------------------------------------------------- other loaders


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_loader_of_torch_with_a_resumable_sampler(shuffle: bool, drop_last: bool) -> None:
    """A plain `DataLoader` of torch resumes, too, if its sampler is resumable."""
    data = TensorDataset(torch.arange(10))

    def make() -> BatchSource:
        sampler = ResumableRandomSampler(data, seed=1) if shuffle else ResumableSequentialSampler(data)
        return make_source(DataLoader(data, batch_size=3, sampler=sampler, drop_last=drop_last), sampler)

    source = make()
    batches = numbers(source.iterate(2))
    assert source.batches_per_epoch() == len(batches) == (3 if drop_last else 4)
    for done in range(len(batches) + 1):
        assert numbers(make().iterate(2, done, position_at(source, done))) == batches[done:]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_of_torchs_own_loader_are_keyed(workers: int) -> None:
    """Draws in samples and in the collate function equal those with a loader of `create_dataloader`."""

    def collate(samples: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([*samples, torch.tensor([-1.0, *draw()], dtype=torch.float64)])

    def make(kind: type[DataLoader[Any]] | None) -> BatchSource:
        sampler = ResumableRandomSampler(range(11), seed=1)
        options: dict[str, Any] = {"batch_size": 3, "num_workers": workers, "collate_fn": collate, "drop_last": True}
        data = Drawing(11)
        if kind is None:
            return make_source(*create_dataloader(data, random_seed=5, sampler=sampler, **options))
        return make_source(kind(data, sampler=sampler, worker_init_fn=seed_all, **options), sampler, seed=5)

    expected = [batch.tolist() for batch in make(None).iterate(2)]
    source = make(DataLoader)
    assert [batch.tolist() for batch in source.iterate(2)] == expected
    assert [batch.tolist() for batch in source.iterate(2, 2)] == expected[2:]


def seed_all(worker_id: int) -> None:
    """Seed a generator as users do in their workers; draws that are keyed must not change."""
    torch.manual_seed(worker_id)


def test_a_loader_that_cannot_be_keyed_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Where the draws of samples cannot be keyed, a warning names the dataset, unless it draws nothing."""

    class Own(DataLoader[Any]):
        pass

    for data in (Drawing(6), TensorDataset(torch.arange(6))):
        sampler = ResumableRandomSampler(range(6))
        source = make_source(Own(data, batch_size=2, sampler=sampler), sampler)
        assert len(list(source.iterate(0, 1))) == 2
    (record,) = caplog.records
    assert record.getMessage().startswith("random numbers that Drawing draws for a sample are not keyed")


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


def test_a_loader_that_cannot_seek_is_refused() -> None:
    """A loader that cannot start at a position is refused before training, with the remedy."""
    data = TensorDataset(torch.arange(6))
    theirs = DataLoader(data, batch_size=2, shuffle=True)
    for sampler in (theirs.sampler, None, RandomSampler(data)):
        with pytest.raises(ArgumentTypeError, match="cannot be resumed: make it with create_dataloader"):
            make_source(theirs, sampler)
    with pytest.raises(ArgumentTypeError, match="does not take its order from the ResumableRandomSampler"):
        make_source(theirs, ResumableRandomSampler(data))
    with pytest.raises(ArgumentTypeError, match="does not take its order from the ResumableSequentialSampler"):
        make_source(create_dataloader(data)[0], ResumableSequentialSampler(data))
    ours = ResumableRandomSampler(data)
    with pytest.raises(ArgumentTypeError, match="batch sampler BatchSampler has no position to resume at"):
        make_source(DataLoader(data, batch_sampler=BatchSampler(ours, 2, drop_last=False)), ours)
    with pytest.raises(ArgumentTypeError, match="is no data loader: return what create_dataloader returns"):
        make_source(iter([1, 2]), None)


def test_data_without_a_batch_are_refused() -> None:
    """An epoch of 0 batches would never end."""
    with pytest.raises(ConfigurationError, match="has 0 batches"):
        make_source([], None)
    sampler = ResumableSequentialSampler(range(2))
    loader = DataLoader(TensorDataset(torch.arange(2)), batch_size=3, sampler=sampler, drop_last=True)
    with pytest.raises(ConfigurationError, match="has 0 batches"):
        make_source(loader, sampler)


def test_the_kind_of_source_follows_from_the_data() -> None:
    """A map-style dataset has a `SamplerSource`, and an iterable one a source of unknown length."""
    loader, sampler = create_dataloader(TensorDataset(torch.arange(2)))
    assert isinstance(sampler, ResumableSampler)
    assert isinstance(make_source(loader, sampler), SamplerSource)
    assert make_source(*create_dataloader(Stream([2]))).batches_per_epoch() is None


# ------------------------------------------------------------------------------------------------------ workers' seeds


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
