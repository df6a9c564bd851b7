"""Samplers of a user's own that define `__iter__` and `set_epoch`, in the style of helios-ml 1.x."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from helios import DataModule, Model, TrainingState
from helios.core.safe_load import safe_torch_load
from helios.data import ResumableRandomSampler, ResumableSampler, ResumableSequentialSampler, create_dataloader
from helios.data.keyed_loader import adopt_loader
from helios.data.samplers import ResumableDistributedSampler
from helios.errors import ArgumentTypeError, ConfigurationError
from tests.trainer.parts import make_trainer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized
    from pathlib import Path

SAMPLES, BATCH = 11, 2


class Shuffling(ResumableSampler):
    """Shuffles with a generator that it seeds by epoch, and starts `start_iter` batches into the order."""

    per_iter = BATCH  # Indices for each `start_iter`.

    def __init__(self, dataset: Sized, batch_size: int) -> None:
        super().__init__(batch_size)
        self.dataset = dataset
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def draw(self) -> list[int]:
        generator = torch.Generator().manual_seed(7 + self.epoch)
        order: list[int] = torch.randperm(len(self.dataset), generator=generator).tolist()
        return order

    def __iter__(self) -> Iterator[int]:
        yield from self.draw()[self.start_iter * self.per_iter :]
        self.start_iter = 0

    def __len__(self) -> int:
        return len(self.dataset)


class BySample(Shuffling):
    """Counts its start in samples."""

    per_iter = 1


class Drawing(Shuffling):
    """Draws its order from the generators of the process, and has no length of its own."""

    def draw(self) -> list[int]:
        order: list[int] = torch.randperm(len(self.dataset)).tolist()
        random.shuffle(order)
        permuted: list[int] = np.random.permutation(order).tolist()
        return permuted

    def __len__(self) -> int:
        return ResumableSampler.__len__(self)


class Strided(Shuffling):
    """One rank's part of the order."""

    def __init__(self, dataset: Sized, batch_size: int, rank: int) -> None:
        super().__init__(dataset, batch_size)
        self.num_replicas = 2
        self.rank = rank

    def draw(self) -> list[int]:
        return super().draw()[self.rank : len(self.dataset) - 1 : 2]

    def __len__(self) -> int:
        return len(self.dataset) // 2


KINDS = [Shuffling, BySample, Drawing]


def order(sampler: ResumableSampler, epoch: int, position: int = 0) -> list[int]:
    sampler.seek(epoch, position)
    return list(sampler.remaining())


@pytest.mark.parametrize("kind", KINDS)
def test_seeking_gives_the_rest_of_the_epoch(kind: type[Shuffling]) -> None:
    """At every position of every epoch, the rest of the order comes, however `start_iter` is counted."""
    sampler = kind(range(SAMPLES), BATCH)
    whole = [order(sampler, epoch) for epoch in range(3)]
    assert all(sorted(indices) == list(range(SAMPLES)) for indices in whole)
    assert whole[0] != whole[1] != whole[2]
    for epoch in (2, 0, 1):
        for position in range(SAMPLES + 1):
            torch.rand(1)  # Draws between do not matter.
            assert order(kind(range(SAMPLES), BATCH), epoch, position) == whole[epoch][position:]
            assert order(sampler, epoch, position) == whole[epoch][position:]
            assert sampler.count_remaining(position) == SAMPLES - position
    assert (sampler.size, len(sampler), sampler.start_iter) == (SAMPLES, SAMPLES, 0)


def test_without_helios_a_sampler_starts_where_it_says() -> None:
    """Iterated by hand, `__iter__` starts at the `start_iter` that was set."""
    sampler = Shuffling(range(SAMPLES), BATCH)
    whole = list(sampler)
    sampler.start_iter = 2
    assert list(sampler) == whole[2 * BATCH :]
    assert list(sampler) == whole
    sampler.set_epoch(1)
    assert list(sampler) == order(sampler, 1)


def test_evaluating_an_order_leaves_the_generators_as_they_are() -> None:
    """An order that is drawn from the process's generators does not advance them."""
    torch.manual_seed(3)
    expected = torch.rand(2).tolist()
    torch.manual_seed(3)
    first = torch.rand(1).tolist()
    order(Drawing(range(SAMPLES), BATCH), 0)
    assert [*first, *torch.rand(1).tolist()] == expected


def test_the_ranks_of_a_sampler_that_divides_its_order() -> None:
    """With `num_replicas` and `rank`, positions count the samples of all ranks."""
    for rank in range(2):
        sampler = Strided(range(SAMPLES), BATCH, rank)
        whole = order(sampler, 4)
        assert sampler.size == 10
        for batches in range(3):
            position = batches * BATCH * 2
            assert order(sampler, 4, position) == whole[batches * BATCH :]
            assert sampler.count_remaining(position) == 5 - batches * BATCH
        assert order(sampler, 4, 10) == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_follows_the_sampler(kind: type[Shuffling], workers: int) -> None:
    """Loaders of `create_dataloader`, and torch's own, yield the batches that remain after a seek."""
    data = TensorDataset(torch.arange(SAMPLES))
    loader, sampler = create_dataloader(data, 5, batch_size=BATCH, num_workers=workers, sampler=kind(data, BATCH))
    assert sampler is not None
    whole = order(sampler, 1)
    for batches in (0, 3):
        sampler.seek(1, batches * BATCH)
        assert [i for (batch,) in loader for i in batch.tolist()] == whole[batches * BATCH :]
    own = kind(data, BATCH)
    adopted = adopt_loader(DataLoader(data, BATCH, sampler=own), own, 5)
    own.seek(1, BATCH)
    assert [i for (batch,) in adopted for i in batch.tolist()] == whole[BATCH:]
    batches_of_own = BatchSampler(own, BATCH, drop_last=False)

    class OwnLoader(DataLoader[Any]):
        """A subclass is used as it is."""

    with pytest.raises(ArgumentTypeError, match="which defines __iter__, cannot be sought through a OwnLoader"):
        adopt_loader(OwnLoader(data, batch_sampler=batches_of_own), own, 5)


def test_the_seed_decides_what_a_sampler_draws() -> None:
    """Orders that are drawn from the process's generators differ by seed, and are repeated with the same one."""
    data = TensorDataset(torch.arange(SAMPLES))
    orders = []
    for seed in (1, 2, 1):
        sampler = Drawing(data, BATCH)
        create_dataloader(data, seed, batch_size=BATCH, sampler=sampler)
        orders.append(order(sampler, 0))
    assert orders[0] == orders[2] != orders[1]


def test_mistakes_in_samplers_are_named() -> None:
    """A batch size of 0, no dataset or two, and `start_iter` where `seek` decides, are refused with the remedy."""
    with pytest.raises(ConfigurationError, match="batch_size is 0: pass an integer of at least 1"):
        Shuffling(range(3), 0)
    for arguments in ({}, {"data_source": range(3), "dataset": range(3)}):
        with pytest.raises(ConfigurationError, match="pass data_source or dataset, and not both"):
            ResumableSequentialSampler(**arguments)
    sampler = ResumableSequentialSampler(range(3))
    with pytest.raises(ConfigurationError, match=r"start_iter is set to 1, but .*: call seek with the number of"):
        sampler.start_iter = 1


def test_samplers_take_the_dataset_by_its_name() -> None:
    """`dataset=` is another name of the first argument; `set_epoch` starts an epoch."""
    random_sampler = ResumableRandomSampler(dataset=range(5), seed=3)
    assert list(random_sampler) == list(ResumableRandomSampler(range(5), 3))
    random_sampler.seek(0, 2)
    random_sampler.set_epoch(1)
    assert list(random_sampler) == list(ResumableRandomSampler(range(5), 3).indices(1, 0))
    assert list(ResumableSequentialSampler(dataset=range(5))) == [0, 1, 2, 3, 4]
    assert list(ResumableDistributedSampler(dataset=range(4), num_replicas=2, rank=1, shuffle=False)) == [1, 3]


class Recorder(Model):
    """Remembers the numbers that it was given, and moves a weight by each batch."""

    def __init__(self, die_at: int) -> None:
        super().__init__("recorder")
        self.die_at = die_at
        self.seen: list[int] = []

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=0.9)

    def train_step(self, batch: Any, state: TrainingState) -> None:
        del state
        self.seen += batch[0].tolist()
        self.optimizer.zero_grad()
        ((self.weight - batch[0].float().mean()) ** 2).sum().backward()
        self.optimizer.step()

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        del state, should_log
        if len(self.seen) == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


class Numbers(DataModule):
    def __init__(self, kind: type[Shuffling], workers: int) -> None:
        super().__init__()
        self.kind, self.workers = kind, workers

    def setup(self) -> None:
        data = TensorDataset(torch.arange(SAMPLES))
        params = {"batch_size": BATCH, "sampler": self.kind(data, BATCH), "num_workers": self.workers}
        self._train_dataset = self._create_dataset(data, params)


def live(root: Path, kind: type[Shuffling], workers: int, die_at: int) -> None:
    torch.set_num_threads(1)
    model = Recorder(die_at)
    trainer = make_trainer(root, train_unit="iteration", total_steps=14, chkpt_frequency=1, enable_file_logging=False)
    trainer.fit(model, Numbers(kind, workers))
    torch.save((model.seen, model.weight.detach()), root / "result.pth")


@pytest.mark.parametrize(("kind", "workers"), [(Shuffling, 0), (BySample, 2), (Drawing, 0)])
def test_a_killed_run_sees_the_same_samples(tmp_path: Path, kind: type[Shuffling], workers: int) -> None:
    """Killed three times in its epochs, a run ends with the data and the weights of one that was not."""
    context = multiprocessing.get_context("forkserver")
    for name, deaths in (("whole", [-1]), ("killed", [6, 13, 24, -1])):
        (tmp_path / name).mkdir()
        for die_at in deaths:
            process = context.Process(target=live, args=(tmp_path / name, kind, workers, die_at))
            process.start()
            process.join(120)
            assert process.exitcode == (0 if die_at < 0 else -signal.SIGKILL)
    (seen, weight), (seen_again, weight_again) = (
        safe_torch_load(tmp_path / name / "result.pth") for name in ("whole", "killed")
    )
    assert len(seen) == 2 * SAMPLES + BATCH * 2
    assert seen == seen_again
    assert torch.equal(weight, weight_again)
