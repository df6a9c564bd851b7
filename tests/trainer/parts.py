"""Models, plug-ins and data that several tests of the trainer share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from helios import DataModule, Model, Plugin, Trainer

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState


class SimplePlugin(Plugin):
    """A plug-in that does nothing."""

    def __init__(self, plug_id: str = "simple") -> None:
        super().__init__(plug_id)

    def setup(self) -> None:
        """Get nothing ready."""


class ListData(DataModule):
    """Batches that are ready: for each phase the tensors [k] of numbers that tell them apart."""

    def __init__(self, train: int = 3, valid: int = 2, test: int = 2) -> None:
        super().__init__()
        self.sizes = train, valid, test

    def setup(self) -> None:
        """Make nothing: the batches below are data enough."""

    def train_dataloader(self) -> Any:
        return self._batches(0, 100)

    def valid_dataloader(self) -> Any:
        return self._batches(1, 200)

    def test_dataloader(self) -> Any:
        return self._batches(2, 300)

    def _batches(self, which: int, first: int) -> Any:
        return [torch.tensor([float(first + i)]) for i in range(self.sizes[which])], None


class CountingModel(Model):
    """Has one weight, which every batch changes in a way of its own, and keeps the batches it saw."""

    def __init__(self, save_name: str = "counting") -> None:
        super().__init__(save_name)
        self.seen: list[float] = []

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        self.seen = []
        self.net = nn.Linear(1, 1, bias=False)

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        del state
        self.seen.append(float(batch[0]))
        with torch.no_grad():
            self.net.weight.mul_(0.9).add_(batch[0] * torch.rand(()))

    def valid_step(self, batch: torch.Tensor, step: int) -> None:
        """Learn nothing."""

    def test_step(self, batch: torch.Tensor, step: int) -> None:
        """Learn nothing."""

    @property
    def weight(self) -> float:
        return float(self.net.weight.detach())


class Pruned(Exception):  # noqa: N818 - control flow, and no error.
    """As a plug-in would raise it."""


class Failing(CountingModel):
    """Raises where it is told to."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__()
        self.where, self.error = where, error

    def _maybe(self, where: str) -> None:
        if where == self.where:
            raise self.error

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self._maybe("setup")

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        super().train_step(batch, state)
        self._maybe("step")

    def valid_step(self, batch: torch.Tensor, step: int) -> None:
        del batch, step
        self._maybe("valid")

    def test_step(self, batch: torch.Tensor, step: int) -> None:
        del batch, step
        self._maybe("step")

    def on_training_end(self) -> None:
        self._maybe("end")


def make_trainer(root: Path | None = None, **options: Any) -> Trainer:
    """Return a quiet trainer, of 2 epochs unless told otherwise."""
    return Trainer(**{"total_steps": 2, "chkpt_root": root, "print_banner": False, "use_cpu": True, **options})
