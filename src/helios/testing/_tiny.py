"""A model and data that train in milliseconds, and with which an inexact resume is visible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import TensorDataset

from helios.data.datamodule import DataModule
from helios.data.params import DataLoaderParams
from helios.model.model import Model

if TYPE_CHECKING:
    from helios.core.state import TrainingState


class TinyModel(Model):
    """A linear layer with dropout, trained by SGD with momentum, a scheduler and a batch counter.

    Args:
        save_name: as in `Model`.
        learning_rate: of SGD; halved after every epoch.
    """

    def __init__(self, save_name: str = "tiny", learning_rate: float = 0.1) -> None:
        super().__init__(save_name)
        self._learning_rate = learning_rate
        self.batches_seen = 0

    def setup(self, fast_init: bool = False) -> None:
        """Make the layer, the optimizer and the scheduler."""
        self.batches_seen = 0
        self.net = nn.Sequential(nn.Dropout(0.25), nn.Linear(3, 1)).to(self.device)
        if fast_init:
            return
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=self._learning_rate, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=1, gamma=0.5)

    def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
        """Train on a batch of inputs of shape (N, 3) and targets of shape (N, 1)."""
        self.batches_seen += 1
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has not annotated it.
        self._loss_items["loss"] = loss.detach()
        if self.is_optimizer_step(state):
            self.optimizer.step()
            self.optimizer.zero_grad()

    def valid_step(self, batch: list[torch.Tensor], step: int) -> None:
        """Sum the loss over the batches."""
        del step
        self._val_scores["loss"] = self._val_scores.get("loss", 0.0) + self._loss(batch)

    def test_step(self, batch: list[torch.Tensor], step: int) -> None:
        """Sum the loss over the batches."""
        del step
        self._test_scores["loss"] = self._test_scores.get("loss", 0.0) + self._loss(batch)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """Lower the learning rate."""
        del current_epoch
        self.scheduler.step()

    def on_validation_end(self, validation_cycle: int) -> None:
        """Set the loss as a metric."""
        del validation_cycle
        self.metrics["loss"] = float(self._val_scores["loss"])

    def on_testing_end(self) -> None:
        """Set the loss as a metric."""
        self.metrics["test_loss"] = float(self._test_scores["loss"])

    def _loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)


class TinyDataModule(DataModule):
    """Inputs of shape (3,) and targets of shape (1,), a linear function of them; float32, for all three phases.

    Args:
        samples: the number of samples; unless it is a multiple of the batch size, the last batch is short.
        params: how the training samples are loaded; in shuffled batches of 4 if it is `None`.
    """

    def __init__(self, samples: int = 10, params: DataLoaderParams | None = None) -> None:
        super().__init__()
        self._samples = samples
        self._params = DataLoaderParams(batch_size=4, shuffle=True) if params is None else params

    def setup(self) -> None:
        """Make the samples, all different."""
        inputs = torch.linspace(-1, 1, 3 * self._samples).reshape(-1, 3).sin()
        data = TensorDataset(inputs, inputs @ torch.tensor([[1.0], [-2.0], [3.0]]) + 0.5)
        self._train_dataset = self._create_dataset(data, self._params)
        in_order = DataLoaderParams(batch_size=4)
        self._valid_dataset = self._test_dataset = self._create_dataset(data, in_order)
