"""What a run keeps in the model while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from helios import TrainingState


def test_running_losses_stay_tensors_and_are_cleared_after_validation() -> None:
    """SPEC E1: losses add up on the device, without gradients, between validations; items last one batch."""
    seen: list[tuple[float, list[str]]] = []

    class Losing(CountingModel):
        def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
            assert self._loss_items == {}
            super().train_step(batch, state)
            loss = self.net.weight.sum() * 0 + state.global_iteration + 1
            if state.global_iteration % 2:
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
def test_the_model_is_told_when_to_step(accumulation_steps: int) -> None:
    """SPEC E1: `is_optimizer_step` is true at every so many batches, and iterations count those, across epochs."""
    steps: list[bool] = []
    iterations: list[int] = []

    class Asking(CountingModel):
        def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
            del batch
            steps.append(self.is_optimizer_step(state))

        def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
            del should_log
            iterations.append(state.current_iteration)

    make_trainer(total_steps=2, accumulation_steps=accumulation_steps).fit(Asking(), ListData())
    assert steps == [(i + 1) % accumulation_steps == 0 for i in range(6)]
    assert iterations == [(i + 1) // accumulation_steps for i in range(6)]
