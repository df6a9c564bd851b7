"""The hooks of a model: what a subclass may override, beside its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

    from helios.core.state import TrainingState


class ModelHooks:
    """The hooks of a model, none of which has to be overridden, and the losses and scores that they work on.

    In a run, the trainer clears losses and scores and adds up the running losses itself, so an override need not call
    the method of this class. Called by hand, as in a test, a method of this class does it.
    """

    def __init__(self) -> None:
        """Start without losses and scores."""
        super().__init__()
        self._loss_items: dict[str, torch.Tensor] = {}
        self._running_losses: dict[str, torch.Tensor] = {}
        self._val_scores: dict[str, Any] = {}
        self._test_scores: dict[str, Any] = {}
        self._helios_has_counted = False  # Whether the losses of the current batch are in the running ones.

    def on_training_start(self) -> None:
        """Run when training starts or is resumed, after everything has been set up and restored."""

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """Run before the first batch of an epoch; `current_epoch` counts from 1."""

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Run before `train_step`; `state` counts the batch. The losses of the last batch are cleared."""
        del state
        self._loss_items.clear()
        self._helios_has_counted = False

    def on_optimizer_step(self, state: TrainingState) -> None:
        """Run after a batch that completes an accumulation, once `train_step` has returned.

        An accumulation is `Trainer(accumulation_steps=...)` batches. A model that follows `is_optimizer_step` has
        stepped its optimizers then. It runs before `on_training_batch_end`, and `state` counts the batch.
        """

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Run after `train_step`.

        Args:
            state: how far training has come, this batch included.
            should_log: whether the trainer's `print_frequency` asks for a log entry now. Elsewhere, reading a number
                from the device (`.item()`) only makes it wait.
        """
        del state, should_log
        if not self._helios_has_counted:  # In a run the trainer has done it, whatever the subclass overrides.
            self._helios_end_batch()

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """Run after the last batch of an epoch and the validation that belongs to it."""

    def on_training_end(self) -> None:
        """Run when training has come to its end."""

    def on_validation_start(self, validation_cycle: int) -> None:
        """Run before a validation; `validation_cycle` counts from 0. The scores of the last one are cleared."""
        del validation_cycle
        self._val_scores.clear()

    def on_validation_batch_start(self, step: int) -> None:
        """Run before `valid_step`; `step` counts from 0."""

    def on_validation_batch_end(self, step: int) -> None:
        """Run after `valid_step`; `step` counts from 0."""

    def on_validation_end(self, validation_cycle: int) -> None:
        """Run after a validation: the place to fill `metrics`."""

    def on_testing_start(self) -> None:
        """Run before testing. The scores of the last test are cleared."""
        self._test_scores.clear()

    def on_testing_batch_start(self, step: int) -> None:
        """Run before `test_step`; `step` counts from 0."""

    def on_testing_batch_end(self, step: int) -> None:
        """Run after `test_step`; `step` counts from 0."""

    def on_testing_end(self) -> None:
        """Run after testing."""

    def on_checkpoint_saved(self, path: Path, state: TrainingState) -> None:
        """Run on every rank after a checkpoint has been written and is durable.

        What this changes in the model is in the next checkpoint, not in this one.

        Args:
            path: the checkpoint: a file, or a folder if its tensors are sharded. Rank 0 has written it.
            state: the progress of training that it holds.
        """

    def have_metrics_improved(self) -> bool:
        """Return whether the last validation was better than those before; asked after every validation."""
        return True

    def should_training_stop(self) -> bool:
        """Return whether training ends after the current batch; asked after the plug-ins."""
        return False

    def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
        """Return the name of a checkpoint, without its suffix, with something of the model's own added at the end."""
        return chkpt_name

    def append_to_banner(self, banner: str) -> str:
        """Return the text that is printed when training starts, with something of the model's own added."""
        return banner

    def _helios_end_batch(self) -> None:
        """Add the losses of this batch to the running ones, on the device that they are on."""
        self._helios_has_counted = True
        running = self._running_losses
        for name, loss in self._loss_items.items():
            value = loss.detach() if isinstance(loss, torch.Tensor) else torch.as_tensor(loss)
            running[name] = running[name] + value if name in running else value.clone()
