"""What is due, and when: pure questions about the counts of a training and the arguments of its trainer."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from helios.core.state import TrainingUnit

if TYPE_CHECKING:
    from helios.core.state import TrainingState
    from helios.data.sources import BatchSource
    from helios.trainer._options import TrainerOptions


class Outcome(enum.Enum):
    """How a boundary, or the whole loop, turned out."""

    CONTINUE = "there is more to train"
    COMPLETE = "all the steps asked for are done"
    STOPPED = "the model, a plug-in or early stopping has ended training"
    PRUNED = "a plug-in has given this training up, for now"
    INTERRUPTED = "a signal asked the process to leave; there is more to train"


def is_due(count: int, every: int | None) -> bool:
    """Whether something that happens every so many counts happens at this one."""
    return every is not None and count % every == 0


class Schedule:
    """Answers what is due at the counts of a state."""

    def __init__(self, options: TrainerOptions, state: TrainingState, source: BatchSource, *, saves: bool) -> None:
        """Bind what is asked.

        Args:
            options: the arguments of the trainer.
            state: the counts.
            source: the batches, which know how long an epoch is.
            saves: whether checkpoints are written at all.
        """
        self._options = options
        self._unit = options.train_unit
        self._state = state
        self._source = source
        self._saves = saves

    def is_complete(self) -> bool:
        """Return whether all steps are done."""
        state = self._state
        done = state.current_iteration if self._unit is TrainingUnit.ITERATION else state.completed_epochs
        return done >= self._options.total_steps

    def is_log_due(self, *, completes: bool) -> bool:
        """Return whether the batch that was just trained is one to log.

        Args:
            completes: whether it completes an accumulation.
        """
        counts = completes or self._unit is TrainingUnit.EPOCH  # By epoch, each batch is an iteration.
        return counts and is_due(self._state.current_iteration, self._options.print_frequency)

    def next_save(self) -> float:
        """Return after which batch the next checkpoint is going to be taken, unless something else comes before."""
        if not self._saves:
            return float("inf")
        state, options, every = self._state, self._options, self._options.chkpt_frequency
        if self._unit is TrainingUnit.ITERATION:
            count = options.total_steps if every is None else (state.current_iteration // every + 1) * every
            return min(count, options.total_steps) * options.accumulation_steps
        length, epoch = self._source.batches_per_epoch(), state.global_epoch
        is_save_due = is_due(epoch, every) or epoch >= options.total_steps
        if length is None or not (state.is_epoch_in_progress or state.dataset_iter == 0) or not is_save_due:
            return float("inf")
        return state.global_iteration - state.dataset_iter + length
