"""Datasets that draw from every generator, for the tests of this folder."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from helios.core.rng import get_default_numpy_rng

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def draw() -> list[float]:
    """Return a draw from each generator that user code draws from: torch, legacy NumPy, default NumPy, Python."""
    return [
        float(torch.rand((), dtype=torch.float64)),
        float(np.random.rand()),
        float(get_default_numpy_rng().generator.random()),
        random.random(),
    ]


class Drawing(Dataset[torch.Tensor]):
    """Sample i is i and a draw; the fetched indices are appended to a file that the workers share."""

    def __init__(self, size: int, log: Any = None) -> None:
        self.size = size
        self.log = log

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.log is not None:
            with self.log.open("ab") as file:  # A short write in append mode is atomic.
                file.write(b"%d\n" % index)
        return torch.tensor([index, *draw()], dtype=torch.float64)


class DrawingInBatches(Drawing):
    """A dataset that fetches several samples at once, and draws once for all of them."""

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        drawn = draw()
        return [torch.tensor([index, *drawn], dtype=torch.float64) for index in indices]


class Stream(IterableDataset[list[float]]):
    """A stream without state. Worker w yields `sizes[w]` items: its number, the item's, and a draw."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes

    @property
    def worker(self) -> int:
        info = get_worker_info()
        return 0 if info is None else info.id

    @property
    def size(self) -> int:
        return self.sizes[self.worker]

    def item(self, number: int) -> list[float]:
        return [self.worker, number, *draw()]

    def __iter__(self) -> Iterator[list[float]]:
        return map(self.item, range(self.size))


class Rewinding(Stream):
    """A stream with state that returns to its start at its end."""

    position = 0

    def __iter__(self) -> Iterator[list[float]]:
        while self.position < self.size:
            self.position += 1
            yield self.item(self.position - 1)
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


class StayingAtEnd(Rewinding):
    """A stream that stays at its end until the next iteration; a loaded state is used for one iteration."""

    loaded = 0

    def __iter__(self) -> Iterator[list[float]]:
        start, self.loaded = self.loaded, 0
        for number in range(start, self.size):
            self.position = number + 1
            yield self.item(number)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = self.position = state_dict["position"]


class Reshuffling(Rewinding):
    """A stream that draws the order of its next epoch at its end, and is one item shorter in every other epoch."""

    rounds = 0

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(sizes)
        self.order = list(range(max(sizes)))

    def __iter__(self) -> Iterator[list[float]]:
        while self.position < max(0, self.size - self.rounds % 2):
            self.position += 1
            yield self.item(self.order[self.position - 1])
        self.position = 0
        self.rounds += 1
        self.order = torch.randperm(len(self.order)).tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "rounds": self.rounds, "order": self.order}  # Not copied, on purpose.

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


class Restarting(Rewinding):
    """A stream with `set_epoch` that draws its order before the first item, and is longer every epoch."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[list[float]]:
        order = torch.randperm(self.size + self.epoch).tolist()
        return self._items(order)

    def _items(self, order: list[int]) -> Iterator[list[float]]:
        while self.position < len(order):
            self.position += 1
            yield [self.epoch, *self.item(order[self.position - 1])]


class RestartingWithoutState(Stream):
    """A stream with `set_epoch` and without state."""

    epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[float]]:
        return ([self.epoch, *self.item(number)] for number in torch.randperm(self.size + self.epoch).tolist())
