"""Which gradients a checkpoint keeps: those that no optimizer has used yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import helios
from helios.checkpoint.archive import load_archive
from helios.testing import TinyDataModule
from helios.trainer import Trainer, find_last_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helios import TrainingState


class Stepping(helios.Model):
    """Leaves gradients behind in a way of its own."""

    def __init__(self, step: Callable[[Any, int], None]) -> None:
        super().__init__("stepping")
        self.step = step

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        self.first, self.second = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
        self.free = torch.ones(1, requires_grad=True)
        self.optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.first, self.second)]
        self.optimizers.append(torch.optim.SGD([self.free], lr=0.1))

    def train_step(self, batch: Any, state: TrainingState) -> None:
        self.inputs = batch[0]
        self.step(self, state.global_iteration - 1)

    def backward(self, net: nn.Module) -> None:
        (net(self.inputs).sum() * self.free).backward()


def zero_after(model: Stepping, _: int) -> None:
    for net, optimizer in zip((model.first, model.second), model.optimizers, strict=False):
        model.backward(net)
        optimizer.step()
    model.optimizers[2].step()
    for optimizer in model.optimizers:
        optimizer.zero_grad()


def zero_first(model: Stepping, _: int) -> None:
    for optimizer in model.optimizers:
        optimizer.zero_grad()
    for net in (model.first, model.second):
        model.backward(net)
    for optimizer in model.optimizers:
        optimizer.step()


def accumulate(model: Stepping, number: int) -> None:
    model.backward(model.first)
    if number % 2 == 0:
        model.optimizers[0].step()
        model.optimizers[0].zero_grad()


def add_after_a_step(model: Stepping, number: int) -> None:
    zero_first(model, number)
    model.backward(model.second)


def alternate(model: Stepping, number: int) -> None:
    model.optimizers[0].zero_grad()
    model.backward(model.first)
    model.optimizers[0].step()
    model.backward(model.second)
    if number == 0:
        model.optimizers[1].step()
        model.optimizers[1].zero_grad()


def never_zero(model: Stepping, _: int) -> None:
    model.backward(model.first)
    model.optimizers[0].step()


def zero_every_third(model: Stepping, number: int) -> None:
    model.backward(model.first)
    model.optimizers[0].step()
    if number % 3 == 0:
        model.optimizers[0].zero_grad()


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (zero_after, set()),
        (zero_first, set()),
        (accumulate, {"first.weight", "free"}),
        (add_after_a_step, {"second.weight", "free"}),
        (alternate, {"second.weight", "free"}),
        (never_zero, {"first.weight", "free"}),
        (zero_every_third, {"first.weight", "free"}),
    ],
)
def test_a_checkpoint_keeps_gradients_in_flight(step: Any, kept: set[str], unit: str, tmp_path: Path) -> None:
    """Gradients are kept that were added since their optimizer stepped, or are never set to zero; others are not."""
    total = 8 if unit == "epoch" else 24  # An epoch has three batches.
    model = Stepping(step)
    trainer = Trainer(train_unit=unit, total_steps=total, chkpt_root=tmp_path, use_cpu=True, print_banner=False)
    assert trainer.fit(model, TinyDataModule())
    path = find_last_checkpoint(tmp_path / "stepping")
    assert path is not None
    gradients = load_archive(path)["gradients"]
    assert set(gradients) == kept
    held = {"first.weight": model.first.weight, "second.weight": model.second.weight, "free": model.free}
    assert all(torch.equal(gradient, held[name].grad) for name, gradient in gradients.items())  # type: ignore[arg-type]  # there is one


class Training(helios.Plugin):
    """Trains a network of its own, every third batch."""

    def __init__(self) -> None:
        super().__init__("training")

    def setup(self) -> None:
        self.net = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.batches = 0

    def on_training_batch_end(self, state: TrainingState) -> None:
        del state
        self.batches += 1
        (self.net(torch.ones(1, 3)) * self.batches).pow(2).sum().backward()
        if self.batches % 3 == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()


def test_gradients_of_a_plugin_are_in_flight_as_well(tmp_path: Path) -> None:
    """A plug-in that accumulates for a network of its own is exact; one that is not registered any more is no error."""

    def fit(root: Path, total: int, *, registers: bool = True) -> Training:
        trainer = Trainer(train_unit="iteration", total_steps=total, chkpt_root=root, use_cpu=True, print_banner=False)
        plugin = Training()
        if registers:
            trainer.register_plugin(plugin)
        assert trainer.fit(Stepping(zero_after), TinyDataModule())
        return plugin

    whole = fit(tmp_path / "whole", 7)
    for stop in (1, 2, 4):
        fit(tmp_path / str(stop), stop)
        assert torch.equal(fit(tmp_path / str(stop), 7).net.weight, whole.net.weight)
    fit(tmp_path / "gone", 2)
    fit(tmp_path / "gone", 7, registers=False)
