"""What ranks do side by side, on two of them that meet over gloo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios.core.distributed import DistributedInfo
from helios.errors import ConfigurationError, TrainingError
from helios.ranks.host_group import HostGroup
from helios.trainer._ranks import average_losses, check_lengths, in_step
from tests.ranks.host_groups import join_host_group
from tests.ranks.ranks import run_ranks
from tests.trainer.parts import CountingModel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Feed:
    """Batches of which nothing but their number is known, if that is."""

    def __init__(self, batches: int | None) -> None:
        self._batches = batches

    def batches_per_epoch(self) -> int | None:
        return self._batches


def walk(rank: int, lengths: list[int]) -> tuple[list[int], int]:
    """Return what is trained on, and how much is read, of a supply that is longer on one rank than on the other."""
    read = 0

    def supply() -> Iterator[int]:
        nonlocal read
        for number in range(lengths[rank]):
            read += 1
            yield number

    return list(in_step(supply(), join_host_group())), read


@pytest.mark.parametrize("lengths", [[3, 5], [5, 3], [4, 4], [0, 2], [0, 0]])
def test_ranks_train_in_step(tmp_path: Path, lengths: list[int]) -> None:
    """All ranks train on as many batches as the shortest has; the others read theirs to the end."""
    told = run_ranks(tmp_path, 2, walk, lengths)
    assert told == [(list(range(min(lengths))), length) for length in lengths]


def test_alone_every_batch_is_trained_on() -> None:
    """A process alone is always in step with itself."""
    assert list(in_step(iter([1, 2, 3]), HostGroup())) == [1, 2, 3]


def compare(rank: int, lengths: list[int | None]) -> str:
    """Return what is said about the lengths of two ranks' epochs."""
    source: Any = Feed(lengths[rank])
    try:
        check_lengths(source, join_host_group())
    except ConfigurationError as error:
        return str(error)
    return ""


def test_epochs_of_different_lengths_are_refused_on_all_ranks(tmp_path: Path) -> None:
    """A rank that had more batches would wait for ever: all are told how many each has, and what to do."""
    text = "an epoch has 3, 4 batches on ranks 0 to 1: each must train on equally many; leave the sampler to"
    for told in run_ranks(tmp_path, 2, compare, [3, 4]):
        assert told.startswith(text)
    assert run_ranks(tmp_path, 2, compare, [3, 3]) == ["", ""]
    assert run_ranks(tmp_path, 2, compare, [None, None]) == ["", ""]
    alone: Any = Feed(3)
    check_lengths(alone, HostGroup())


def losses_of(rank: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a rank's losses of a batch and its running ones, in an order of its own."""
    items = {
        "total": torch.tensor(1.0 + rank),
        "parts": torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (1 + 2 * rank),
        "half": torch.tensor(0.5 + rank, dtype=torch.bfloat16),
        "count": torch.tensor(3 + rank),
        "number": 2.5 * rank,
        "double": torch.tensor(1.0 + rank * 2.0**-40, dtype=torch.float64),
        "with grad": torch.tensor(2.0 * rank, requires_grad=True),
    }
    running = {"total": torch.tensor(10.0 + 4 * rank), "count": torch.tensor(2 - rank)}
    return dict(reversed(items.items())) if rank else items, running


def average(rank: int) -> list[dict[str, tuple[Any, str, bool]]]:
    """Return value, dtype and whether it needs gradients of each loss, once they are averaged."""
    model = CountingModel()
    model._loss_items, model._running_losses = losses_of(rank)
    host_group = join_host_group()
    average_losses(model, host_group)
    tables = [model._loss_items, model._running_losses]
    model._loss_items, model._running_losses = {}, {}
    average_losses(model, host_group)  # Where there is none, nothing happens.
    return [
        {name: (loss.tolist(), str(loss.dtype), loss.requires_grad) for name, loss in sorted(table.items())}
        for table in tables
    ]


def test_losses_are_those_of_all_ranks(tmp_path: Path) -> None:
    """What is logged is the mean over the ranks, of each loss by its name, shape and dtype."""
    told = run_ranks(tmp_path, 2, average)
    assert told[0] == told[1]
    assert told[0] == [
        {
            "count": (3.5, "torch.float32", False),
            "double": (1.0 + 2.0**-41, "torch.float64", False),
            "half": (1.0, "torch.bfloat16", False),
            "number": (1.25, "torch.float32", False),
            "parts": ([[2.0, 4.0], [6.0, 8.0]], "torch.float32", False),
            "total": (1.5, "torch.float32", False),
            "with grad": (1.0, "torch.float32", False),
        },
        {"count": (1.5, "torch.float32", False), "total": (12.0, "torch.float32", False)},
    ]


ONE = torch.tensor(1.0)


def average_apart(rank: int, tables: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Return what is said about losses that the other rank has not."""
    model = CountingModel()
    model._loss_items, model._running_losses = tables[rank]
    try:
        average_losses(model, join_host_group())
    except TrainingError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("tables", "described"),
    [
        ([({"a": ONE, "b": ONE}, {}), ({"a": ONE}, {})], ["'b' of shape ()", "nothing"]),
        ([({"a": ONE}, {}), ({"b": ONE}, {})], ["'a' of shape ()", "'b' of shape ()"]),
        ([({"a": ONE}, {}), ({}, {})], ["'a' of shape ()", "nothing"]),
        ([({"a": ONE}, {"a": ONE}), ({"a": ONE}, {})], ["running 'a' of shape ()", "nothing"]),
        ([({"a": ONE}, {}), ({"a": ONE.reshape(1, 1)}, {})], ["'a' of shape ()", "'a' of shape (1, 1)"]),
        ([({"a": ONE}, {}), ({"a": ONE.double()}, {})], ["'a' of shape ()", "'a' of shape () in double precision"]),
    ],
)
def test_losses_that_differ_are_refused_on_all_ranks(tmp_path: Path, tables: list[Any], described: list[str]) -> None:
    """Losses that not all ranks have are no hang and no nonsense, but an error that says how they differ."""
    for rank, told in enumerate(run_ranks(tmp_path, 2, average_apart, tables)):
        ours, theirs = described[rank], described[1 - rank]
        assert told.startswith(f"rank {rank} has {ours} among its losses where rank {1 - rank} has {theirs}: when ")


def test_alone_losses_stay_as_they_are() -> None:
    """In one process nothing is computed: each loss is the object that the model has put there."""
    model, host_group = CountingModel(), HostGroup(DistributedInfo())
    before: dict[str, Any] = {"a": torch.tensor(1.0, requires_grad=True), "b": 2}
    model._loss_items = dict(before)
    average_losses(model, host_group)
    assert all(model._loss_items[name] is loss for name, loss in before.items())
