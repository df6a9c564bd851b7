"""A run on a GPU in which everything takes part that a GPU may do otherwise, and what it has done."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from helios import DataModule, Model, Plugin, Trainer
from helios.core.distributed import get_world_size
from helios.plugins import CUDAPlugin, DevicePlugin

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState

BATCHES = 3  # In an epoch; an odd number, so that an accumulation of two is under way at every other end.


class Killed(BaseException):
    """Ends a run as SIGKILL would, as far as the checkpoints go: nothing is saved, no hook of an end is run."""


class Drawing(Dataset[list[torch.Tensor]]):
    """Draws on a device for each sample, as an augmentation there would."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size, self._device = size, device

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [torch.rand(2, device=self._device) + index]


class Samples(DataModule):
    """Samples on the host, or on the device; in the latter case, in a `TensorDataset` or drawn one by one."""

    def __init__(self, kind: str = "host", *, workers: int = 0) -> None:
        super().__init__()
        self.kind, self.workers = kind, workers

    def setup(self) -> None:
        size = BATCHES * 4 * get_world_size()
        samples = torch.arange(2.0 * size).reshape(size, 2) / size
        dataset: Any = TensorDataset(samples.to(self.device) if self.kind == "device" else samples)
        if self.kind == "drawing":
            dataset = Drawing(size, self.device)
        params: dict[str, Any] = {"batch_size": 4, "shuffle": True, "num_workers": self.workers}
        if self.kind == "drawing":
            params["pin_memory"] = False
        self._train_dataset = self._create_dataset(dataset, params)
        self._valid_dataset = self._test_dataset = self._create_dataset(dataset, params | {"shuffle": False})


@dataclasses.dataclass
class Notes:
    """What one life of a run has seen; it is no state, and in no checkpoint."""

    drawn: dict[int, list[float]] = dataclasses.field(default_factory=dict)
    places: set[tuple[str, torch.device, int]] = dataclasses.field(default_factory=set)
    kept: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def note(self, where: str, device: torch.device) -> None:
        self.places.add((where, device, torch.cuda.current_device() if device.type == "cuda" else -1))


_NOTES: weakref.WeakKeyDictionary[Model, Notes] = weakref.WeakKeyDictionary()


class OnDevice(Model):
    """Has dropout and numbers drawn on the device, moments, a schedule, gradients in flight, and losses on both sides.

    Args:
        kill_at: the batch after which the run is killed, counted from 1.
        by_signal: whether that is done by SIGKILL, and not by an exception.
        scales: whether the loss is scaled, as in mixed precision; every third step the scale grows.
        is_strict: whether what makes the host wait for the device raises: from the first batch of an epoch to its last,
            and in validations. Between them, where losses are looked at, it may wait.
    """

    def __init__(
        self, *, kill_at: int = 0, by_signal: bool = False, scales: bool = False, is_strict: bool = False
    ) -> None:
        super().__init__("on-device")
        self._kill_at, self._by_signal, self._scales, self._is_strict = kill_at, by_signal, scales, is_strict

    @property
    def notes(self) -> Notes:
        return _NOTES.setdefault(self, Notes())

    def setup(self, fast_init: bool = False) -> None:
        network = nn.Sequential(nn.Dropout(0.25), nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
        self.net = self.wrap(network)
        self.notes.note("setup", next(self.net.parameters()).device)
        if not fast_init:
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
            self.scaler = torch.amp.GradScaler(self.device.type, growth_interval=3, enabled=self._scales)
            self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    def _be_strict(self, *, is_strict: bool) -> None:
        if self._is_strict:
            torch.cuda.set_sync_debug_mode("error" if is_strict else "default")

    def on_training_batch_start(self, state: TrainingState) -> None:
        del state
        self._be_strict(is_strict=True)

    def train_step(self, batch: list[torch.Tensor], state: TrainingState) -> None:
        inputs = batch[0]
        self.notes.note("train", inputs.device)
        noise = torch.rand_like(inputs)
        completes = self.is_optimizer_step(state)
        # Between two steps each rank keeps its gradients for itself, as a checkpoint there has to.
        with self._exchange(keeps=self.is_distributed and not completes):
            loss = self.net(inputs + noise).square().mean()
            self.scaler.scale(loss).backward()
        if completes:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            self.scheduler.step()
        self._loss_items = {"loss": loss, "count": torch.tensor(1.0)}
        self.notes.kept.append(noise)

    def _exchange(self, *, keeps: bool) -> contextlib.AbstractContextManager[None]:
        network: Any = self.net
        if hasattr(network, "set_requires_gradient_sync"):
            network.set_requires_gradient_sync(not keeps)
        elif keeps:
            kept: contextlib.AbstractContextManager[None] = network.no_sync()
            return kept
        return contextlib.nullcontext()

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        del should_log
        if not self._is_strict:
            self.notes.drawn[state.global_iteration] = self.notes.kept.pop().flatten().tolist()
        self._be_strict(is_strict=state.dataset_iter < BATCHES)
        if state.global_iteration == self._kill_at:
            if self._by_signal:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed

    def on_validation_start(self, validation_cycle: int) -> None:
        del validation_cycle
        self._be_strict(is_strict=True)

    def on_validation_end(self, validation_cycle: int) -> None:
        del validation_cycle
        self._be_strict(is_strict=False)

    def valid_step(self, batch: list[torch.Tensor], step: int) -> None:
        self.notes.note("valid", batch[0].device)
        self._val_scores[f"{step}"] = self.net(batch[0]).sum()

    def test_step(self, batch: list[torch.Tensor], step: int) -> None:
        del step
        self.notes.note("test", batch[0].device)
        self.net(batch[0])

    def tell(self) -> dict[str, Any]:
        """Return all that must be the same in the end, on the host."""
        moments = [state["exp_avg"] for state in self.optimizer.state.values()]
        tensors = [*self.net.state_dict().values(), *moments, *self._running_losses.values()]
        return {
            "tensors": [getattr(tensor, "to_local", lambda: tensor)().detach().cpu() for tensor in tensors],  # noqa: B023 - called at once.
            "rate": self.scheduler.get_last_lr(),
            "scale": self.scaler.get_scale(),
            "losses": {name: str(loss.device.type) for name, loss in self._running_losses.items()},
        }


class Gambler(Plugin):
    """Draws on the device wherever it is called."""

    def __init__(self) -> None:
        super().__init__("gambler")

    def setup(self) -> None:
        """Make nothing."""

    def on_training_batch_start(self, state: TrainingState) -> None:
        del state
        torch.rand(3, device=self.device)

    def on_validation_start(self, validation_cycle: int) -> None:
        del validation_cycle
        torch.rand(3, device=self.device)


def make_trainer(root: Path | None = None, *, plugin: str = "device", **options: Any) -> Trainer:
    """Return a trainer of 4 epochs, or iterations, on one GPU, that moves batches with a plug-in."""
    one_gpu = {} if {"gpus", "use_cpu", "num_processes"} & set(options) else {"gpus": [0]}
    trainer = Trainer(
        chkpt_root=root,
        chkpt_frequency=None if root is None else 1,
        **{"total_steps": 4, "print_banner": False, "print_frequency": 1, **one_gpu, **options},
    )
    (CUDAPlugin() if plugin == "cuda" else DevicePlugin()).configure_trainer(trainer)
    return trainer
