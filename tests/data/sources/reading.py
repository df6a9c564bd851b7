"""Reading batches and positions from sources, for the tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import TensorDataset

from helios.checkpoint.plain import decode, encode
from helios.data.loading import create_dataloader
from helios.data.sources import BatchSource, make_source

if TYPE_CHECKING:
    from collections.abc import Iterator


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
