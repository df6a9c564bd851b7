"""Epochs that end before all of their batches have come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from helios.data import DataLoaderParams, ResumableSampler
from helios.errors import TrainingError
from helios.testing import TinyDataModule, TinyModel
from tests.trainer.parts import CountingModel, Failing, ListData, SimplePlugin, make_trainer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helios import TrainingState

SAMPLES = 12


def stop() -> NoReturn:
    """Raise what `next` raises for an iterator that has ended."""
    raise StopIteration


class Stopping(Dataset[list[torch.Tensor]]):
    """Raises `StopIteration` for one sample, or for all of them at once."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __len__(self) -> int:
        if self.where == "len":
            stop()
        return SAMPLES

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        if self.where == "getitem" and index == 7:
            stop()
        return [torch.full((3,), float(index)), torch.ones(1)]


class StoppingQuietly(Stopping):
    """One that is fetched without keying."""

    draws_nothing = True


class StoppingInBatches(Stopping):
    """One that fetches several samples at once."""

    def __getitems__(self, indices: list[int]) -> list[list[torch.Tensor]]:
        return [self[index] for index in indices]


def stop_collating(samples: list[Any]) -> Any:
    """Collate nothing."""
    return next(iter(samples[:0]))


class StoppingData(TinyDataModule):
    """Trains, validates and tests on a dataset."""

    def __init__(self, dataset: Any, phase: str = "train", **params: Any) -> None:
        super().__init__()
        self.dataset, self.phase = dataset, phase
        self.loading = DataLoaderParams(batch_size=4, **params)

    def setup(self) -> None:
        super().setup()
        setattr(self, f"_{self.phase}_dataset", self._create_dataset(self.dataset, self.loading))


@pytest.mark.parametrize(
    ("dataset", "workers", "message"),
    [
        (Stopping("getitem"), 0, r"Stopping raised StopIteration for sample 7: the epoch would have ended there"),
        (Stopping("getitem"), 2, r"Stopping raised StopIteration for sample 7:"),
        (StoppingQuietly("getitem"), 0, r"StoppingQuietly raised StopIteration for sample 7:"),
        (StoppingInBatches("getitem"), 0, r"StoppingInBatches raised StopIteration for samples \[4, 5, 6, 7\]:"),
    ],
)
def test_stop_iteration_out_of_a_dataset_is_an_error(dataset: Stopping, workers: int, message: str) -> None:
    """A dataset that raises `StopIteration` fails the run by name and index: it does not shorten the epoch."""
    with pytest.raises(TrainingError, match=message):
        make_trainer().fit(TinyModel(), StoppingData(dataset, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_iteration_out_of_a_collate_function_is_an_error(workers: int) -> None:
    """A collate function that raises `StopIteration` fails the run by its name."""
    data = StoppingData(TensorDataset(torch.ones(SAMPLES)), collate_fn=stop_collating, num_workers=workers)
    with pytest.raises(TrainingError, match=r"the collate function stop_collating raised StopIteration"):
        make_trainer().fit(TinyModel(), data)


@pytest.mark.parametrize("phase", ["valid", "test"])
def test_an_evaluation_is_not_shortened_either(phase: str) -> None:
    """`StopIteration` out of the data of a validation or a test is an error as well."""
    trainer, data = make_trainer(valid_frequency=1), StoppingData(Stopping("getitem"), phase)
    with pytest.raises(TrainingError, match="Stopping raised StopIteration for sample 7"):
        (trainer.fit if phase == "valid" else trainer.test)(TinyModel(), data)


def test_a_length_that_raises_stop_iteration_is_an_error() -> None:
    """`StopIteration` out of `__len__` leaves `fit` as an error that a caller's loop does not take for its end."""
    with pytest.raises(TrainingError, match=r"Stopping\.__len__ raised StopIteration"):
        make_trainer().fit(TinyModel(), StoppingData(Stopping("len")))


@pytest.mark.parametrize("where", ["step", "valid", "plugin"])
def test_stop_iteration_out_of_a_model_or_a_plugin_leaves_fit(where: str) -> None:
    """What a model or a plug-in raises in the batch loop leaves `fit`, `StopIteration` too."""

    class StoppingPlugin(SimplePlugin):
        def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
            del state
            return batch if where != "plugin" else stop()

    trainer = make_trainer(valid_frequency=1)
    trainer.register_plugin(StoppingPlugin())
    with pytest.raises(StopIteration):
        trainer.fit(Failing(where, StopIteration()), ListData())


class Short(ResumableSampler):
    """Yields fewer indices than it says that it has."""

    def indices(self, epoch: int, position: int) -> Iterator[int]:
        del epoch
        return iter(range(position, self.size - 5))


@pytest.mark.parametrize("phase", ["train", "valid", "test"])
def test_an_epoch_with_fewer_batches_than_its_length_is_an_error(phase: str) -> None:
    """An epoch that ends early, whatever has ended it, fails the run with the two numbers."""
    dataset = TensorDataset(torch.ones(SAMPLES, 3), torch.ones(SAMPLES, 1))
    trainer, data = make_trainer(valid_frequency=1), StoppingData(dataset, phase, sampler=Short(range(SAMPLES)))
    with pytest.raises(TrainingError, match=r"ended after 2 of 3 batches.*__len__"):
        (trainer.test if phase == "test" else trainer.fit)(TinyModel(), data)


def test_a_list_that_ends_early_is_an_error() -> None:
    """Batches that are ready are counted, too: a list whose iterator ends early does not shorten the epoch."""

    class Ending(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(self[:2])

    class EndingData(ListData):
        def train_dataloader(self) -> Any:
            return Ending(super().train_dataloader()[0]), None

    with pytest.raises(TrainingError, match="ended after 2 of 3 batches"):
        make_trainer().fit(CountingModel(), EndingData())


def test_a_resumed_epoch_is_counted_from_where_it_is(tmp_path: Path) -> None:
    """What was trained before a resume counts, also with batches of another size: no false alarm, and no miss."""

    def data(batch_size: int, sampler: ResumableSampler | None = None) -> TinyDataModule:
        params = DataLoaderParams(batch_size=batch_size, shuffle=sampler is None, sampler=sampler)
        return TinyDataModule(samples=SAMPLES, params=params)

    options: dict[str, Any] = {"train_unit": "iteration", "chkpt_frequency": 1, "on_drift": "warn"}
    make_trainer(tmp_path, total_steps=1, **options).fit(TinyModel(), data(4))
    model = TinyModel()
    assert make_trainer(tmp_path, total_steps=5, **options).fit(model, data(2))  # 8 samples in 4 batches.
    assert model.batches_seen == 5
    with pytest.raises(TrainingError, match=r"ended after 4 of 6 batches"):
        make_trainer(tmp_path, total_steps=20, **options).fit(TinyModel(), data(2, Short(range(SAMPLES))))
