from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from helios.data.loading import create_dataloader
from helios.data.samplers import ResumableRandomSampler, ResumableSampler, ResumableSequentialSampler
from helios.data.sources import BatchSource, SamplerSource, StreamSource, make_source
from helios.errors import ArgumentTypeError, CheckpointMismatchError, ConfigurationError
from tests.data.drawing import Drawing, Stream, draw
from tests.data.sources.reading import make_sampler_source, numbers, position_at


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


class InitializedBy(Dataset[int]):
    """Sample i is the number of the worker for which `set_initialized` ran in the process that fetches, or -1."""

    worker = -1

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return self.worker


def set_initialized(worker_id: int) -> None:
    InitializedBy.worker = worker_id


def test_the_worker_init_fn_of_torchs_own_loader_is_called() -> None:
    """The `worker_init_fn` of a user's `DataLoader` runs in each worker, with the number of the worker."""
    sampler = ResumableSequentialSampler(range(4))
    loader = DataLoader(InitializedBy(), sampler=sampler, num_workers=2, worker_init_fn=set_initialized)
    assert [int(batch) for batch in make_source(loader, sampler).iterate(0)] == [0, 1, 0, 1]


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
