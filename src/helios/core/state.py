"""The counters of a run, as plain data."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping


class TrainingUnit(enum.Enum):
    """What `total_steps` and the frequencies of a trainer count."""

    EPOCH = "epoch"
    ITERATION = "iteration"

    @classmethod
    def from_str(cls, label: str) -> TrainingUnit:
        """Return the unit of this name, in upper or lower case.

        Raises:
            ConfigurationError: if there is no such unit.
        """
        try:
            return cls(label.lower())
        except (ValueError, AttributeError):
            names = ", ".join(repr(unit.value) for unit in cls)
            raise ConfigurationError(f"training unit {label!r} is unknown: choose one of {names}") from None


class Phase(enum.Enum):
    """The phase of a run."""

    TRAINING = "training"
    VALIDATION = "validation"
    TESTING = "testing"


@dataclasses.dataclass
class TrainingState:
    """The progress of a run.

    The state counts a batch from `process_training_batch` on: in the first batch's `train_step`, `global_iteration` is
    1. With accumulation, it counts an iteration from the batch that completes it. Attributes that a program adds to the
    state are saved in checkpoints like the counts; their values must be plain data.

    Attributes:
        current_iteration: iterations. If the training unit is "iteration", these are completed accumulations (optimizer
            steps); if it is "epoch", they are batches.
        global_iteration: batches.
        global_epoch: epochs started; the number of the current epoch, counting from 1.
        validation_cycles: completed validations; during a validation, the number of it, counting from 0.
        dataset_iter: batches of the current epoch; 0 between epochs.
        early_stop_count: consecutive validations without an improvement.
        average_iter_time: seconds per batch, averaged over this process's part of the run.
        running_iter: batches since the last validation: the number of summands in `Model._running_losses`.
        optimizer_steps: completed accumulations, in both units.
    """

    current_iteration: int = 0
    global_iteration: int = 0
    global_epoch: int = 0
    validation_cycles: int = 0
    dataset_iter: int = 0
    early_stop_count: int = 0
    average_iter_time: float = 0.0
    running_iter: int = 0
    optimizer_steps: int = 0

    @property
    def is_epoch_in_progress(self) -> bool:
        """Whether some, but not all, of an epoch is done."""
        return self.dataset_iter > 0

    @property
    def completed_epochs(self) -> int:
        """The number of complete epochs; also the index, from 0, of the current or next epoch."""
        return self.global_epoch - 1 if self.is_epoch_in_progress else self.global_epoch

    def count_batch(self, unit: TrainingUnit, accumulation_steps: int) -> bool:
        """Count the next batch; return whether it completes an accumulation of so many batches."""
        self.global_iteration += 1
        self.dataset_iter += 1
        self.running_iter += 1
        completes = self.global_iteration % accumulation_steps == 0
        if completes:
            self.optimizer_steps += 1
        if completes or unit is TrainingUnit.EPOCH:
            self.current_iteration += 1
        return completes

    def dict(self) -> dict[str, Any]:
        """Return the counts, and the attributes that were added to them, by name."""
        return dict(vars(self))

    def load_dict(self, counts: Mapping[str, Any]) -> None:
        """Set the attributes to those of `dict`, in place, so that every holder of this object sees them."""
        vars(self).update(counts)
