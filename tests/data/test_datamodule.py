from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from helios.core.rng import get_default_seed
from helios.data.datamodule import (
    DATASET_REGISTRY,
    DataLoaderParams,
    DataModule,
    Dataset,
    DatasetSplit,
    create_dataloader,
    create_dataset,
)
from helios.errors import ArgumentTypeError, ConfigurationError, UnknownNameError
from helios.model import Model
from helios.trainer import Trainer

SIZES = {"train": 12, "valid": 7, "test": 5}


class Numbers(DataModule):
    """Shuffled numbers for all three phases."""

    def __init__(self, params: Any = None) -> None:
        super().__init__()
        self.params = {"shuffle": True} if params is None else params

    def setup(self) -> None:
        for split, size in SIZES.items():
            dataset = self._create_dataset(TensorDataset(torch.arange(size)), self.params)
            setattr(self, f"_{split}_dataset", dataset)


def orders(module: DataModule) -> list[list[int]]:
    loaders = (module.train_dataloader(), module.valid_dataloader(), module.test_dataloader())
    return [[int(batch[0]) for batch in loader[0]] for loader in loaders if loader is not None]


def expected_orders(seed: int) -> list[list[int]]:
    loaders = [create_dataloader(TensorDataset(torch.arange(size)), seed, shuffle=True)[0] for size in SIZES.values()]
    return [[int(batch[0]) for batch in loader] for loader in loaders]


def test_loaders_are_those_of_the_datasets() -> None:
    """Each of the three loaders is that of its dataset, and the properties return the datasets themselves."""
    module = Numbers({"batch_size": 4})
    module.setup()
    for name, size in SIZES.items():
        loader, sampler = getattr(module, f"{name}_dataloader")()
        assert isinstance(loader, DataLoader)
        assert sampler.size == size == len(getattr(module, f"{name}_dataset"))
        assert [len(batch[0]) for batch in loader] == [4] * (size // 4) + [size % 4] * (size % 4 > 0)
    assert type(module.train_dataset) is TensorDataset


def test_without_a_dataset_there_is_no_loader() -> None:
    """A phase without data has neither a loader nor a dataset."""

    class Empty(DataModule):
        def setup(self) -> None:
            """Make no dataset."""

    module = Empty()
    module.setup()
    for name in SIZES:
        assert getattr(module, f"{name}_dataloader")() is None
        assert getattr(module, f"{name}_dataset") is None


def test_without_a_trainer_the_seed_is_the_default() -> None:
    """Outside of a run, the default seed decides the order."""
    module = Numbers()
    module.setup()
    assert orders(module) == expected_orders(get_default_seed())


class Reading(Model):
    def setup(self, fast_init: bool = False) -> None:
        pass

    def train_step(self, batch: Any, state: Any) -> None:
        pass


def test_the_seed_is_that_of_the_trainer_unless_given() -> None:
    """In a run, the seed of the trainer decides the order, or that of the parameters if they have one."""
    for params, expected in (({"shuffle": True}, 77), ({"shuffle": True, "random_seed": 5}, 5)):
        module = Numbers(params)
        Trainer(total_steps=1, random_seed=77, use_cpu=True, print_banner=False).fit(Reading("reading"), module)
        assert orders(module) == expected_orders(expected)


@pytest.mark.parametrize("params", [None, {"batch_size": 3}, DataLoaderParams(batch_size=3)])
def test_a_dataset_is_combined_with_its_parameters(params: Any) -> None:
    """Parameters are `DataLoaderParams`, a dictionary, or left out."""
    data = TensorDataset(torch.arange(4))
    dataset = Numbers()._create_dataset(data, params)
    assert dataset == Dataset(data, DataLoaderParams(batch_size=3) if params else DataLoaderParams())


def test_bad_parameters_are_refused() -> None:
    """Parameters of another type and a wrong value are refused."""
    module, data = Numbers(), TensorDataset(torch.arange(4))
    with pytest.raises(ArgumentTypeError, match="params is a list: pass DataLoaderParams or a dict"):
        module._create_dataset(data, [("batch_size", 3)])  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        module._create_dataset(data, {"batch_size": 0})


def test_a_split_reads_its_name() -> None:
    """A split is found by its name in upper or lower case; another name is an error that lists the names."""
    assert [DatasetSplit.from_str(name) for name in ("train", "VALID", "Test")] == list(DatasetSplit)
    for name in ("validation", "", None):
        with pytest.raises(ConfigurationError, match="is unknown: choose one of 'train', 'valid', 'test'"):
            DatasetSplit.from_str(name)  # type: ignore[arg-type]  # None, on purpose


def test_datasets_have_a_registry() -> None:
    """A registered dataset is made by name; an unknown name is an error that lists the known ones."""

    @DATASET_REGISTRY.register
    class TestDatamoduleSquares(TensorDataset):
        def __init__(self, size: int) -> None:
            super().__init__(torch.arange(size) ** 2)

    TestDatamoduleSquares.__test__ = False  # type: ignore[attr-defined]  # pytest reads it.
    assert create_dataset("TestDatamoduleSquares", size=3)[2] == (torch.tensor(4),)
    with pytest.raises(UnknownNameError, match="TestDatamoduleSquares"):
        create_dataset("NoSuchDataset")


def test_evaluation_sees_every_sample_once() -> None:
    """Ranks repeat samples in training, so that all have equally many, and not in evaluation."""
    module = Numbers({"is_distributed": True, "sampler": None})
    module.setup()
    for name, pads in (("train", True), ("valid", False), ("test", False)):
        _, sampler = getattr(module, f"{name}_dataloader")()
        assert sampler._pad is pads
