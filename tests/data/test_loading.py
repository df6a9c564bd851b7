from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import IterableDataset, RandomSampler, TensorDataset, default_collate

from helios.core.distributed import DistributedInfo, get_global_rank, get_world_size, set_dist_info, shutdown_dist
from helios.core.rng import get_default_seed
from helios.data.datamodule import Dataset
from helios.data.loading import COLLATE_FN_REGISTRY, create_collate_fn, create_dataloader
from helios.data.params import DataLoaderParams
from helios.data.samplers import (
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSequentialSampler,
)
from helios.errors import ArgumentTypeError, ConfigurationError, UnknownNameError
from tests.data.drawing import Rewinding, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.data import DataLoader

DATA = TensorDataset(torch.arange(10))


def order(loader: DataLoader[Any]) -> list[int]:
    return [index for batch in loader for index in batch[0].tolist()]


# ----------------------------------------------------------------------------------------------------------- parameters


def test_parameters_go_to_a_dictionary_and_back() -> None:
    """`from_dict` takes what `to_dict` returns, and part of it: the rest are defaults."""
    params = DataLoaderParams(3, batch_size=4, num_workers=2, pin_memory=False, drop_last=True, persistent_workers=True)
    assert DataLoaderParams.from_dict(params.to_dict()) == params
    assert DataLoaderParams.from_dict({"batch_size": 2}) == DataLoaderParams(batch_size=2)
    assert DataLoaderParams.from_dict({}) == DataLoaderParams()


def test_unknown_parameters_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """The dictionary may be a larger configuration: a warning names unknown parameters, and lists the known ones."""
    params = DataLoaderParams.from_dict({"batchsize": 3, "shuffle": True, "epochs": 4})
    assert params == DataLoaderParams(shuffle=True)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "['batchsize', 'epochs'] are unknown, and are ignored: there are ['random_seed'," in record.message
    caplog.clear()
    DataLoaderParams.from_dict(params.to_dict())
    assert caplog.records == []


def test_parameters_can_be_assigned_and_are_checked_when_used() -> None:
    """Assigned values decide how data is loaded; a wrong one is refused when a loader or a dataset is made."""
    params = DataLoaderParams()
    params.batch_size = 3
    params.drop_last = True
    loader, _ = Dataset(DATA, params).dataloader()
    assert [len(batch[0]) for batch in loader] == [3] * (len(DATA) // 3)
    params.sampler = ResumableSequentialSampler(DATA)
    dataset = Dataset(DATA, params)
    params.shuffle = True
    for use in (params.check, dataset.dataloader, lambda: Dataset(DATA, params)):
        with pytest.raises(ConfigurationError, match="shuffle=True and a sampler contradict each other: pass one"):
            use()
    params.sampler = None
    dataset.dataloader()
    params.batch_size = 0
    with pytest.raises(ConfigurationError, match="batch_size is 0: pass at least 1"):
        dataset.dataloader()


def test_a_dataset_as_arguments_of_create_dataloader() -> None:
    """`Dataset.dict` has the dataset and each parameter, under the names that `create_dataloader` takes."""
    dataset = Dataset(DATA, DataLoaderParams(random_seed=5, batch_size=4, shuffle=True))
    assert dataset.dict() == {"dataset": DATA, **dataset.params.to_dict()}
    assert order(create_dataloader(**dataset.dict())[0]) == order(dataset.dataloader()[0])


# ------------------------------------------------------------------------------------------------ collate functions


def test_collate_functions_by_name() -> None:
    """The default of torch is registered; a collate function is returned as it is, and what makes one is called."""
    assert COLLATE_FN_REGISTRY.get("default_collate") is default_collate
    assert create_collate_fn("default_collate") is default_collate

    def make_padded(length: int = 2) -> Callable[[list[int]], list[int]]:
        return lambda samples: [*samples, *[0] * (length - len(samples))]

    COLLATE_FN_REGISTRY.register(make_padded)
    try:
        assert create_collate_fn("make_padded")([1]) == [1, 0]
        assert create_collate_fn("make_padded", length=3)([1]) == [1, 0, 0]
    finally:
        del COLLATE_FN_REGISTRY._entries["make_padded"]
    with pytest.raises(UnknownNameError, match="did you mean 'default_collate'"):
        create_collate_fn("default_colate")


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"random_seed": -1}, ConfigurationError, "random seed -1 is out of range"),
        ({"random_seed": 1.5}, ConfigurationError, "random seed 1.5 is out of range"),
        ({"batch_size": 0}, ConfigurationError, "batch_size is 0: pass at least 1"),
        ({"batch_size": 2.0}, ArgumentTypeError, "batch_size is 2.0, a float: pass an integer of at least 1"),
        ({"batch_size": True}, ArgumentTypeError, "batch_size is True, a bool"),
        ({"batch_size": None}, ArgumentTypeError, "batch_size is None, a NoneType"),
        ({"num_workers": -1}, ConfigurationError, "num_workers is -1: pass at least 0"),
        ({"num_workers": "2"}, ArgumentTypeError, "num_workers is '2', a str"),
        ({"shuffle": 1}, ArgumentTypeError, "shuffle is 1, a int: pass True or False"),
        ({"drop_last": None}, ArgumentTypeError, "drop_last is None"),
        ({"debug_mode": "yes"}, ArgumentTypeError, "debug_mode is 'yes'"),
        ({"pin_memory": 1}, ArgumentTypeError, "pin_memory is 1"),
        ({"is_distributed": 0}, ArgumentTypeError, "is_distributed is 0"),
        ({"sampler": RandomSampler(DATA)}, ArgumentTypeError, "sampler RandomSampler cannot be resumed: derive it"),
        ({"sampler": [1, 2]}, ArgumentTypeError, "sampler list cannot be resumed"),
        ({"collate_fn": 3}, ArgumentTypeError, "collate_fn 3 cannot be called"),
        ({"persistent_workers": True}, ConfigurationError, "persistent_workers=True needs workers"),
        ({"timeout": "5"}, ArgumentTypeError, "timeout is '5', a str: pass seconds"),
        ({"timeout": True}, ArgumentTypeError, "timeout is True, a bool"),
        ({"timeout": -1}, ConfigurationError, "timeout is -1: pass seconds, or 0"),
        ({"timeout": float("nan")}, ConfigurationError, "timeout is nan"),
        ({"timeout": float("inf")}, ConfigurationError, "timeout is inf"),
        ({"timeout": 5}, ConfigurationError, "timeout=5 limits the wait for workers"),
        (
            {"shuffle": True, "sampler": ResumableSequentialSampler(DATA)},
            ConfigurationError,
            "shuffle=True and a sampler contradict each other",
        ),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, Any], error: type[Exception], message: str) -> None:
    """Every wrong value and combination is an error that names value, rule and remedy, in both functions."""
    with pytest.raises(error, match=message):
        DataLoaderParams(**params)
    with pytest.raises(error, match=message):
        create_dataloader(DATA, **params)


# -------------------------------------------------------------------------------------------------------------- loaders


def test_the_order_is_chosen() -> None:
    """The sampler beside the loader decides the order: shuffled, sequential, distributed, or the user's own."""
    loader, sampler = create_dataloader(DATA, 4, batch_size=3, shuffle=True)
    assert isinstance(sampler, ResumableRandomSampler)
    assert order(loader) == list(ResumableRandomSampler(DATA, seed=4))
    loader, sampler = create_dataloader(DATA, batch_size=3)
    assert isinstance(sampler, ResumableSequentialSampler)
    assert order(loader) == list(range(10))
    own = ResumableRandomSampler(DATA, seed=9)
    loader, sampler = create_dataloader(DATA, sampler=own)
    assert sampler is own
    assert order(loader) == list(own)
    loader, sampler = create_dataloader(DATA, is_distributed=True)
    assert isinstance(sampler, ResumableDistributedSampler)
    assert order(loader) == list(range(10))


def test_a_loader_without_a_seed_has_the_default_seed() -> None:
    """`random_seed=None` is the default seed."""
    with_default = create_dataloader(DATA, get_default_seed(), shuffle=True)[0]
    assert order(create_dataloader(DATA, shuffle=True)[0]) == order(with_default)
    assert order(create_dataloader(DATA, 1, shuffle=True)[0]) != order(with_default)


def test_batches_have_their_size() -> None:
    """The last batch is short, or left out; the length of the loader says how many there are."""
    for drop_last, expected in ((False, [4, 4, 2]), (True, [4, 4])):
        loader, _ = create_dataloader(DATA, batch_size=4, drop_last=drop_last)
        assert [len(batch[0]) for batch in loader] == expected
        assert len(loader) == len(expected)


def test_debug_mode_fetches_in_process() -> None:
    """`debug_mode` has no workers, whatever `num_workers` and `persistent_workers` are."""
    loader, _ = create_dataloader(DATA, num_workers=2, persistent_workers=True, debug_mode=True)
    assert loader.num_workers == 0
    assert order(loader) == list(range(10))


def test_memory_is_pinned_where_it_is_of_use() -> None:
    """`pin_memory=None` pins where CUDA is available; a value is used as it is."""
    assert create_dataloader(DATA)[0].pin_memory is torch.cuda.is_available()
    assert create_dataloader(DATA, pin_memory=True)[0].pin_memory is True


def test_a_stream_has_no_sampler() -> None:
    """An iterable dataset has its own order: there is no sampler, and passing one is refused."""
    loader, sampler = create_dataloader(Stream([3]), batch_size=2)
    assert sampler is None
    assert len(list(loader)) == 3  # Two batches, and the message that the stream has ended.
    with pytest.raises(ConfigurationError, match="shuffle=True cannot be used with an IterableDataset"):
        create_dataloader(Rewinding([3]), shuffle=True)
    with pytest.raises(ConfigurationError, match="a sampler cannot be used with an IterableDataset"):
        create_dataloader(Rewinding([3]), sampler=ResumableSequentialSampler(DATA))


class Shared(IterableDataset[int]):
    """Numbers that are divided among the ranks."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(get_global_rank(), 8, get_world_size()))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_have_the_rank_of_their_parent(method: str) -> None:
    """A dataset that divides its items by rank does so in a worker as in the parent, however workers are started."""
    set_dist_info(DistributedInfo(1, 2, 1, 2))
    try:
        loader, _ = create_dataloader(Shared(), batch_size=4, num_workers=1)
        loader.multiprocessing_context = method
        batches = iter(loader)
    finally:
        shutdown_dist()
    assert next(batches)[0].tolist() == [1, 3, 5, 7]


def test_bad_datasets_are_refused() -> None:
    """An empty dataset, an object that is no dataset, and a batch larger than an epoch are refused at once."""
    with pytest.raises(ConfigurationError, match="TensorDataset has 0 samples: a dataset must have at least one"):
        create_dataloader(TensorDataset(torch.zeros(0)))
    for nothing in ((i for i in range(3)), {1, 2}, 5):
        with pytest.raises(ArgumentTypeError, match=f"{type(nothing).__name__} cannot be loaded"):
            create_dataloader(nothing)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ConfigurationError, match="leaves no batch: batch_size is 11 and an epoch has 10"):
        create_dataloader(DATA, batch_size=11, drop_last=True)


def test_collate_functions_have_a_registry() -> None:
    """A registered collate function is made by name; an unknown name is an error that lists the known ones."""

    @COLLATE_FN_REGISTRY.register
    def counting_collate(scale: int) -> Any:
        return lambda samples: len(samples) * scale

    loader, _ = create_dataloader(DATA, batch_size=4, collate_fn=create_collate_fn("counting_collate", scale=3))
    assert list(loader) == [12, 12, 6]
    with pytest.raises(UnknownNameError, match="counting_collate"):
        create_collate_fn("no_such_collate")
