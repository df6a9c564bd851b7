from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate

from helios.core.rng import derive_seed, get_rng_state_dict, key_generators
from helios.data.fetching import TensorFetcher, draws_nothing, fetches_batches
from helios.data.loading import create_dataloader
from helios.data.samplers import ResumableDistributedSampler, ResumableSampler, ResumableSequentialSampler
from helios.testing import are_equal
from tests.data.drawing import Drawing, DrawingInBatches, draw

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 11


def fetch(dataset: Any, epoch: int = 0, position: int = 0, **options: Any) -> dict[int, list[float]]:
    """Return the draws of each sample of an epoch, by index."""
    loader, sampler = create_dataloader(dataset, random_seed=3, **{"batch_size": 3, **options})
    assert sampler is not None
    sampler.seek(epoch, position)
    return {int(row[0]): row[1:].tolist() for batch in loader for row in batch}


def draw_for(epoch: int, index: int) -> list[float]:
    key_generators(derive_seed(3, "sample", epoch, index))
    return draw()


# ---------------------------------------------------------------------------------------------------- draws of a sample


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_draws_of_a_sample_depend_on_seed_epoch_and_index(workers: int) -> None:
    """A draw from any generator in `__getitem__` is a function of (seed, epoch, index), with any number of workers."""
    for epoch in (0, 4):
        drawn = fetch(Drawing(SIZE), epoch, num_workers=workers)
        assert drawn == {index: draw_for(epoch, index) for index in range(SIZE)}


@given(data=st.data(), batch_size=st.integers(1, SIZE), shuffle=st.booleans(), epoch=st.integers(0, 3))
@settings(max_examples=25)
def test_draws_of_a_sample_do_not_depend_on_what_was_fetched_before(
    data: st.DataObject, batch_size: int, shuffle: bool, epoch: int
) -> None:
    """Neither the order, nor the batch size, nor the position at which the epoch starts changes a draw."""
    position = data.draw(st.integers(0, SIZE - 1))
    drawn = fetch(Drawing(SIZE), epoch, position, batch_size=batch_size, shuffle=shuffle)
    assert len(drawn) == SIZE - position
    assert drawn == {index: draw_for(epoch, index) for index in drawn}


def test_draws_of_samples_differ() -> None:
    """No two samples, epochs or seeds draw alike."""
    drawn = [tuple(values) for epoch in range(3) for values in fetch(Drawing(SIZE), epoch).values()]
    other, sampler = create_dataloader(Drawing(SIZE), random_seed=4)
    assert sampler is not None
    drawn += [tuple(row[1:].tolist()) for batch in other for row in batch]
    assert len({value for values in drawn for value in values}) == 4 * len(drawn)


def test_draws_of_a_sample_are_pinned() -> None:
    """These are the draws of sample 2 in epoch 1, in every version."""
    drawn = fetch(Drawing(SIZE), 1)[2]
    assert drawn == [0.7046949268789732, 0.770851898009286, 0.5405826602648764, 0.5060699731100939]


def test_a_subset_draws_by_its_own_indices() -> None:
    """The draw of a subset's i-th sample is a function of i, not of the index in the whole dataset."""
    drawn = fetch(Subset(Drawing(SIZE), [7, 5, 2]), 1)
    assert drawn == {7: draw_for(1, 0), 5: draw_for(1, 1), 2: draw_for(1, 2)}


def test_a_subset_with_its_own_getitem_draws_by_sample() -> None:
    """A subclass of `Subset`, which torch makes define `__getitems__` too, is fetched sample by sample."""

    class Noisy(Subset[Any]):
        def __getitem__(self, index: Any) -> Any:
            return torch.tensor([index, *draw()], dtype=torch.float64)

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[index] for index in indices]

    drawn = fetch(Noisy(TensorDataset(torch.zeros(5)), [0, 1, 2]), 2)
    assert drawn == {index: draw_for(2, index) for index in range(3)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_that_fetches_batches_draws_by_position(workers: int) -> None:
    """A draw in `__getitems__` is a function of (seed, epoch, position), also below a `Subset`."""
    whole = Subset(DrawingInBatches(SIZE), range(SIZE))
    for dataset in (DrawingInBatches(SIZE), whole):
        drawn = fetch(dataset, 1, num_workers=workers)
        for index, values in drawn.items():
            key_generators(derive_seed(3, "batch", 1, index // 3 * 3))
            assert values == draw()
        entered_later = fetch(dataset, 1, position=3, num_workers=workers)
        assert entered_later == {index: drawn[index] for index in range(3, SIZE)}


def draw_and_collate(samples: list[Any]) -> torch.Tensor:
    assert type(samples) is list
    return torch.tensor([[int(samples[0][0]), *draw()]], dtype=torch.float64)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_draws_of_a_collate_function_depend_on_the_position(workers: int) -> None:
    """A draw in the collate function is a function of (seed, epoch, position), with any number of workers."""
    for dataset in (Drawing(SIZE), TensorDataset(torch.arange(SIZE))):
        drawn = fetch(dataset, 2, collate_fn=draw_and_collate, num_workers=workers)
        for first, values in drawn.items():
            key_generators(derive_seed(3, "batch", 2, first))
            assert values == draw()
        assert fetch(dataset, 2, 6, collate_fn=draw_and_collate) == {first: drawn[first] for first in (6, 9)}


def test_ranks_collate_with_draws_of_their_own() -> None:
    """Two ranks draw differently in their collate functions."""
    drawn = []
    for rank in range(2):
        sampler = ResumableDistributedSampler(range(SIZE), 2, rank, shuffle=False)
        drawn.append(fetch(Drawing(SIZE), sampler=sampler, collate_fn=draw_and_collate))
    values = [value for rank in drawn for values in rank.values() for value in values]
    assert len(values) == len(set(values)) == 16


def test_iterating_does_not_change_the_generators() -> None:
    """Starting an iterator, with or without workers, draws from none of the global generators."""
    for workers in (0, 1):
        loader, _ = create_dataloader(TensorDataset(torch.arange(9)), batch_size=2, shuffle=True, num_workers=workers)
        key_generators(1)
        before = get_rng_state_dict()
        iterator = iter(loader)
        next(iterator)
        assert are_equal(get_rng_state_dict(), before)
        del iterator


def test_integers_of_numpy_are_indices() -> None:
    """Draws are the same whether a sampler yields NumPy's integers or Python's."""

    class Backwards(ResumableSampler):
        def indices(self, epoch: int, position: int) -> Iterator[int]:
            del epoch
            return iter(np.arange(self.size)[::-1][position:])

    assert fetch(Drawing(SIZE), sampler=Backwards(range(SIZE))) == fetch(Drawing(SIZE))


# ---------------------------------------------------------------------------------------------------- what is not keyed

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw: st.DrawFn, size: int) -> torch.Tensor:
    """Return a tensor of any type, shape and layout with so many samples."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    tensor = torch.randint(0, 5, (size, *shape)).to(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(["plain", "strided", "permuted", "expanded"]))
    if layout == "strided":
        return torch.repeat_interleave(tensor, 2, dim=0)[::2]
    if layout == "permuted":
        order = list(range(tensor.dim()))[::-1]
        return tensor.permute(order).contiguous().permute(order)
    return tensor[:1].expand(tensor.shape) if layout == "expanded" else tensor


@given(data=st.data(), size=st.integers(1, 8), count=st.integers(1, 3))
@settings(max_examples=150)
def test_tensors_are_fetched_as_default_collate_makes_them(data: st.DataObject, size: int, count: int) -> None:
    """A batch of a `TensorDataset` equals that of `default_collate` in values, types, shapes and strides."""
    dataset = TensorDataset(*(data.draw(tensors(size)) for _ in range(count)))
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    loader, _ = create_dataloader(dataset, batch_size=len(indices), sampler=Fixed(indices, size))
    batch = next(iter(loader))
    expected = default_collate([dataset[index] for index in indices])
    assert type(batch) is type(expected)
    for got, wanted in zip(batch, expected, strict=True):
        assert got.dtype == wanted.dtype
        assert got.stride() == wanted.stride()
        assert torch.equal(got, wanted)


class Fixed(ResumableSequentialSampler):
    def __init__(self, order: list[int], size: int) -> None:
        super().__init__(range(size))
        self.order = order

    def indices(self, epoch: int, position: int) -> Iterator[int]:
        del epoch
        return iter(self.order[position:])


def test_memory_formats_are_those_of_stacking() -> None:
    """Images in channels-last order have the strides that `default_collate` gives them."""
    images = torch.randn(6, 3, 4, 5).to(memory_format=torch.channels_last)
    loader, _ = create_dataloader(TensorDataset(images), batch_size=4)
    batch = next(iter(loader))[0]
    assert batch.stride() == default_collate(list(images[:4])).stride()
    assert torch.equal(batch, images[:4])


def test_a_tensor_dataset_is_fetched_whole_and_not_keyed() -> None:
    """A `TensorDataset`, a subset and a concatenation of them are not keyed per sample; all else is."""
    plain = TensorDataset(torch.arange(4))

    class Own(TensorDataset):
        pass

    assert isinstance(create_dataloader(plain)[0].dataset, TensorFetcher)
    not_drawing: list[Any] = [plain, Subset(plain, [1]), ConcatDataset([plain, Subset(plain, [0])])]
    for dataset in not_drawing:
        assert draws_nothing(dataset)
        assert not fetches_batches(dataset)
        key_generators(7)
        before = get_rng_state_dict()
        list(create_dataloader(dataset)[0])
        assert are_equal(get_rng_state_dict(), before)
    parts: list[Any] = [plain, Drawing(4)]
    drawing: list[Any] = [Own(torch.arange(4)), Drawing(4), Subset(Drawing(4), [0]), ConcatDataset(parts)]
    for other in drawing:
        assert not draws_nothing(other)


def test_samples_of_a_plain_subset_are_collated() -> None:
    """A subset of a `TensorDataset` gives the batches of torch's own loader."""
    subset = Subset(TensorDataset(torch.arange(8), torch.randn(8, 2)), [5, 1, 6])
    loader, _ = create_dataloader(subset, batch_size=2)
    theirs = torch.utils.data.DataLoader(subset, batch_size=2)
    assert are_equal(list(loader), list(theirs))


def test_a_dataset_may_declare_that_it_draws_nothing() -> None:
    """A dataset with `draws_nothing = True` is fetched without keying; the generators do not change."""

    class Plain(Dataset[torch.Tensor]):
        draws_nothing = True

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.tensor(index)

    loader, _ = create_dataloader(Plain(), batch_size=2)
    before = torch.get_rng_state()
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]
    assert torch.equal(torch.get_rng_state(), before)
    assert draws_nothing(Subset(ConcatDataset([Plain(), Plain()]), [0, 5]))


def test_that_a_dataset_draws_nothing_is_not_inherited() -> None:
    """A subclass of a class with `draws_nothing` is keyed unless it declares it itself, also below wrappers."""

    class Plain(Drawing):
        draws_nothing = True

    class Augmented(Plain):
        pass

    class View(Subset[Any]):
        draws_nothing = True

    class NoisyView(View):
        pass

    marked = Drawing(SIZE)
    vars(marked)["draws_nothing"] = True  # As the constructor of a base class may do.
    for dataset in (Augmented(SIZE), marked):
        assert fetch(dataset, 1) == {index: draw_for(1, index) for index in range(SIZE)}
        assert not draws_nothing(Subset(dataset, [0]))
        assert not draws_nothing(ConcatDataset([Plain(SIZE), dataset]))
    assert draws_nothing(View(Drawing(SIZE), [0]))
    assert not draws_nothing(NoisyView(Plain(SIZE), [0]))
