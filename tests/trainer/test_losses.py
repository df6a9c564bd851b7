"""What a run keeps in the model while it trains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from tests.trainer.parts import CountingModel, ListData, SimplePlugin, make_trainer

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState


def test_running_losses_stay_tensors_and_are_cleared_after_validation() -> None:
    """Losses add up on the device, without gradients, between validations; items last one batch."""
    seen: list[tuple[float, list[str]]] = []

    class Losing(CountingModel):
        def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
            assert self._loss_items == {}
            super().train_step(batch, state)
            loss = self.net.weight.sum() * 0 + state.global_iteration
            if state.global_iteration % 2 == 0:
                self._loss_items["loss"] = loss
            else:
                self._loss_items = {"loss": loss}  # Another dictionary is as good.

        def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
            del state, should_log
            loss = self._running_losses["loss"]
            assert isinstance(loss, torch.Tensor)
            assert not loss.requires_grad
            seen.append((float(loss), list(self._loss_items)))

        def on_validation_start(self, validation_cycle: int) -> None:
            assert list(self._running_losses) == ["loss"]
            assert self._val_scores == {}
            self._val_scores["score"] = validation_cycle

    make_trainer(total_steps=2, valid_frequency=1).fit(Losing(), ListData())
    assert seen == [(float(total), ["loss"]) for total in (1, 3, 6, 4, 9, 15)]


@pytest.mark.parametrize("accumulation_steps", [1, 2, 3, 4])
@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_the_model_is_told_when_to_step(unit: str, accumulation_steps: int) -> None:
    """`is_optimizer_step` is alike in every hook of a batch; `optimizer_steps` counts accumulations across epochs."""
    answers: list[list[bool]] = []
    counts: list[tuple[int, int]] = []

    class Asking(CountingModel):
        def on_training_batch_start(self, state: TrainingState) -> None:
            answers.append([self.is_optimizer_step(state)])

        def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
            del batch
            answers[-1].append(self.is_optimizer_step(state))

        def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
            del should_log
            answers[-1].append(self.is_optimizer_step(state))
            counts.append((state.current_iteration, state.optimizer_steps))

    steps = 2 if unit == "epoch" else 6 // accumulation_steps
    make_trainer(train_unit=unit, total_steps=steps, accumulation_steps=accumulation_steps).fit(Asking(), ListData())
    batches = range(1, 7 if unit == "epoch" else steps * accumulation_steps + 1)
    assert answers == [[i % accumulation_steps == 0] * 3 for i in batches]
    assert counts == [(i if unit == "epoch" else i // accumulation_steps, i // accumulation_steps) for i in batches]


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_running_losses_over_running_iter_is_the_mean(unit: str) -> None:
    """`_running_losses[name] / running_iter` is the mean over the batches, with accumulation and after validations."""
    means: list[float] = []

    class Averaging(CountingModel):
        def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
            del batch
            self._loss_items["loss"] = torch.tensor(float(state.global_iteration))

        def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
            del should_log
            means.append(float(self._running_losses["loss"] / state.running_iter))

    trainer = make_trainer(train_unit=unit, total_steps=2, valid_frequency=1, accumulation_steps=3)
    trainer.fit(Averaging(), ListData())
    assert means == [1.0, 1.5, 2.0, 4.0, 4.5, 5.0]


class Ranked(CountingModel):
    """Has a loss of its own on each rank, and does nothing at the end of a batch."""

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        super().train_step(batch, state)
        self._loss_items["loss"] = torch.tensor(state.global_iteration - 1 + 10.0 * self.rank)


class Reading(SimplePlugin):
    """Puts into the queue what it reads of the losses after each batch."""

    def on_training_batch_end(self, state: TrainingState) -> None:
        model = self.trainer.model
        losses = float(model._loss_items["loss"]), float(model._running_losses["loss"])
        self.trainer.queue.put((self.rank, state.global_iteration, *losses))


def test_plugins_read_averaged_losses_whatever_the_model_overrides() -> None:
    """When losses are logged, a plug-in reads their means over the ranks, on all ranks alike."""
    trainer = make_trainer(train_unit="iteration", total_steps=3, print_frequency=3, num_processes=2)
    trainer.register_plugin(Reading())
    trainer.fit(Ranked(), ListData())
    told = sorted(trainer.queue.get() for _ in range(6))
    first = [(0, 1, 0.0, 0.0), (0, 2, 1.0, 1.0), (0, 3, 7.0, 18.0)]  # Means at the third: of 2 and 12, of 3 and 33.
    assert told == [*first, (1, 1, 10.0, 10.0), (1, 2, 11.0, 21.0), (1, *first[2][1:])]


class Exploding(CountingModel):
    """Has a loss that is no longer finite from a batch on, beside one that stays so."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__()
        self.at, self.value = at, value

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        super().train_step(batch, state)
        explodes = state.global_iteration == self.at
        self._loss_items = {"good": torch.tensor(1.0), "bad": torch.tensor(self.value if explodes else 2.0)}


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"print_frequency": 1, "train_unit": "iteration", "total_steps": 9}, "in batch 5"),
        ({"print_frequency": 2, "train_unit": "iteration", "total_steps": 9}, "in one of the batches 5 to 6"),
        ({"valid_frequency": 4, "train_unit": "iteration", "total_steps": 9}, "in one of the batches 5 to 6"),
        ({"valid_frequency": 1, "total_steps": 3}, "in one of the batches 4 to 6"),
        ({"total_steps": 3}, "in one of the batches 4 to 6"),
        ({"chkpt_frequency": 5, "train_unit": "iteration", "total_steps": 9}, "in one of the batches 4 to 5"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, object], where: str, value: float
) -> None:
    """A loss that becomes NaN or infinite is warned of once, by its name and the batches in which it must have."""
    root = tmp_path if "chkpt_frequency" in options else None
    assert make_trainer(root, **options).fit(Exploding(5, value), ListData())
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    name = "NaN" if math.isnan(value) else "infinite"
    assert told.startswith(f"Exploding: the loss 'bad' has become {name} {where}; training continues")


def test_a_loss_that_was_not_finite_before_a_resume_is_told_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that is resumed from a checkpoint with a NaN among its running losses says so."""
    make_trainer(tmp_path, total_steps=1).fit(Exploding(2, math.nan), ListData())
    caplog.clear()
    make_trainer(tmp_path, total_steps=2).fit(Exploding(0, 0.0), ListData())
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "'bad' has become NaN in one of the batches 1 to 3" in told


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_losses_that_are_finite_raise_no_alarm(caplog: pytest.LogCaptureFixture, dtype: torch.dtype) -> None:
    """Numbers that a half-precision sum cannot hold, integers and tensors of several numbers raise no false alarm."""

    class Large(CountingModel):
        def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
            super().train_step(batch, state)
            self._loss_items = {"large": torch.full((2,), 60000, dtype=dtype), "number": 1.5}  # type: ignore[dict-item]  # a float is taken as well

    make_trainer(total_steps=3, print_frequency=1, valid_frequency=1).fit(Large(), ListData())
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
