"""Parts of runs that several benchmarks train."""

from __future__ import annotations

from typing import Any

from helios import DataModule


class Shuffled(DataModule):
    """A dataset, shuffled.

    Args:
        dataset: the dataset.
        batch_size: samples per batch and rank.
    """

    def __init__(self, dataset: Any, batch_size: int) -> None:
        super().__init__()
        self._dataset = dataset
        self._batch_size = batch_size

    def setup(self) -> None:
        """Join the dataset with its parameters."""
        self._train_dataset = self._create_dataset(self._dataset, {"batch_size": self._batch_size, "shuffle": True})
