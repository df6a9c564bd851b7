"""The training loop, for both units.

After each iteration and each epoch the loop asks what is due at that boundary, and only the chosen unit answers. A
checkpoint is taken at such a boundary, when every hook of what it completes has run. Nothing that a checkpoint holds is
remembered here: what has happened is in the state, and what comes next follows from it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from helios.core.rng import SeedSequence
from helios.core.state import TrainingUnit
from helios.errors import TrainingError
from helios.model.model import Model
from helios.plugins.table import overrides
from helios.trainer._checks import list_dtypes
from helios.trainer._hooks import Hooks
from helios.trainer._ranks import average_losses, in_step
from helios.trainer._schedule import Outcome, Schedule, is_due
from helios.trainer._stopping import StopVote
from helios.trainer._watches import LossWatch, OptimizerWatch, warn_of_evaluation_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from helios.core.state import TrainingState
    from helios.data.sources import BatchSource
    from helios.parallel.gradients import GradientWatch
    from helios.plugins.table import PluginTable
    from helios.ranks.host_group import HostGroup
    from helios.trainer._evaluation import EvaluationLoop
    from helios.trainer._options import TrainerOptions
    from helios.trainer._progress import ProgressBar


class TrainingLoop:
    """Trains a model, from wherever the state says that training is."""

    def __init__(
        self,
        options: TrainerOptions,
        *,
        model: Model,
        plugins: PluginTable,
        state: TrainingState,
        source: BatchSource,
        validation: EvaluationLoop | None,
        save: Callable[..., Path] | None,
        interrupted: Callable[[], bool],
        seed_fn: Callable[[int], None],
        save_rng_state: Callable[[], Callable[[], None]],
        host_group: HostGroup,
        gradients: GradientWatch,
    ) -> None:
        """Bind what is called.

        Args:
            options: the arguments of the trainer.
            model: the model.
            plugins: the plug-ins.
            state: how far training has come.
            source: the batches.
            validation: what a validation runs.
            save: writes a checkpoint with the state of this loop; is told whether it is the last (`is_last`).
            interrupted: whether the run stops here because of a signal; answered alike on every rank.
            seed_fn: sets the generators to the stream of a seed.
            save_rng_state: notes where the generators are, and returns what puts them back there.
            host_group: what the ranks agree through.
            gradients: looks at the steps of optimizers in a batch after which a checkpoint is going to be taken.
        """
        self.is_stopped = False
        self._options, self._unit = options, options.train_unit
        self._model = model
        self._hooks = Hooks(
            model, plugins, seed=options.seed, rank=host_group.rank, seed_fn=seed_fn, save_rng_state=save_rng_state
        )
        self._state = state
        self._source = source
        self._validation = validation
        self._save = save
        self._interrupted = interrupted
        self._seed_fn = seed_fn
        self._host_group = host_group
        self._gradients = gradients
        self._is_resumed = False
        self._rank = host_group.rank
        self._bar: ProgressBar | None = None
        self._position: Mapping[str, Any] | None = None
        self._schedule = Schedule(options, state, source, saves=save is not None)
        self._seeds = SeedSequence(options.seed, "step", host_group.rank)
        self._logs = options.print_frequency is not None
        self._asks_always = options.train_unit is TrainingUnit.ITERATION  # After each iteration, whether it is over.
        self._steps, self._seconds = 0, 0.0
        self._optimizer_watch, self._loss_watch = OptimizerWatch(model), LossWatch(model)
        self._stop_vote = StopVote(model, plugins, host_group, save_rng_state)
        self._dtypes = list_dtypes(model)  # As setup has made them: what training makes of them is another matter.

    def state_dict(self) -> dict[str, Any]:
        """Return, as plain data, where training is."""
        return {
            "state": self._state.dict(),
            "stopped": self.is_stopped,
            "has_stepped": self._optimizer_watch.has_stepped,
            "dtypes": self._dtypes,
            "feed": self._source.position_state(self._state.dataset_iter),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._state.load_dict(state_dict["state"])
        self.is_stopped = state_dict["stopped"]
        self._optimizer_watch.has_stepped = state_dict.get("has_stepped", True)
        self._position = state_dict["feed"]
        self._is_resumed = True

    def run(self, bar: ProgressBar | None = None) -> Outcome:
        """Train to the end, or to the next interruption.

        Args:
            bar: is filled step by step, in the unit of training.

        Returns:
            How it ended: anything but `Outcome.CONTINUE`.
        """
        self._bar = bar
        self._optimizer_watch.open()
        self._loss_watch.look(self._state.global_iteration)
        try:
            return self._run()
        finally:
            self._optimizer_watch.close()

    def _run(self) -> Outcome:
        self._hooks.call("start", "on_training_start")
        if not self._is_resumed and overrides(self._model, "train", Model):
            self._model.train()  # Otherwise, every module has the mode that `setup`, or the checkpoint, has given it.
        warn_of_evaluation_mode(self._model)
        # A run that was complete when it was saved has nothing left but its end.
        outcome = self._outcome(ask=self._state.global_iteration > 0)
        if outcome is Outcome.INTERRUPTED and self._save is not None:
            self._write(self._save, is_last=False)  # Whoever is told that training was interrupted finds a checkpoint.
        while outcome is Outcome.CONTINUE:
            outcome = self._run_epoch()
        if outcome is not Outcome.INTERRUPTED:
            self._finish()
        return outcome

    def _finish(self) -> None:
        # After the last checkpoint on purpose: resuming a complete run, or one killed in these hooks, runs them again
        # on the same state, and a run that is given more steps continues as if they had never run.
        if self._state.is_epoch_in_progress:
            self._end_epoch()
        self._hooks.call("end", "on_training_end")

    def _end_epoch(self) -> None:
        self._optimizer_watch.check(self._state.optimizer_steps)
        self._loss_watch.look(self._state.global_iteration)
        self._hooks.call("epoch end", "on_training_epoch_end", self._state.global_epoch)

    def _run_epoch(self) -> Outcome:
        state = self._state
        epoch = state.completed_epochs
        if not state.is_epoch_in_progress:
            state.global_epoch += 1
            self._hooks.call("epoch start", "on_training_epoch_start", state.global_epoch)
        position, self._position = self._position, None
        batches = self._source.iterate(epoch, state.dataset_iter, position)
        if self._host_group.world_size > 1 and self._source.batches_per_epoch() is None:
            batches = in_step(batches, self._host_group)
        outcome = self._run_batches(batches)
        if outcome is not Outcome.CONTINUE:
            return outcome
        self._source.check_end(state.dataset_iter, f"epoch {state.global_epoch}")
        if not state.is_epoch_in_progress:
            raise TrainingError(
                f"epoch {state.global_epoch} has no batch, so training would never end: a dataset must yield at "
                "least one in every epoch; an iterable one that keeps its position must go back to its start when it "
                "has ended",
            )
        return self._after_epoch()

    def _run_batches(self, batches: Any) -> Outcome:  # noqa: C901 - the hot path: written out, with few calls.
        state, model, seed_fn, seeds, vote = self._state, self._model, self._seed_fn, self._seeds, self._stop_vote
        process, start, model_start, train_step, end_batch, step_end, end, model_end = self._hooks.bind_all(vote)
        may_stop, has_stop_news, requests, interrupted = vote.may_stop, vote.has_news, vote.requests, self._interrupted
        is_watching, next_save, clock = self._optimizer_watch.is_waiting, self._schedule.next_save(), time.perf_counter
        steps, unit, accumulation_steps = self._steps, self._unit, self._options.accumulation_steps
        began = clock() - self._seconds
        for batch in batches:
            completes = state.count_batch(unit, accumulation_steps)
            if state.global_iteration >= next_save:
                self._gradients.arm()
            if process is not None:
                batch = process(batch, state)  # noqa: PLW2901 - what a plug-in returns takes the batch's place.
            model._loss_items.clear()  # noqa: SLF001 - subclasses use it; a step may well assign another dict to it.
            if start is not None:
                start(state)
            seed_fn(seeds[state.global_iteration - 1])  # After the plug-ins: what they draw never reaches the model.
            if model_start is not None:
                model_start(state)
            train_step(batch, state)
            if model._loss_items:  # noqa: SLF001 - see above.
                end_batch()
            if completes and step_end is not None:
                step_end(state)
            should_log = self._logs and self._log_if_due(completes)
            if end is not None:
                end(state)
            if model_end is not None:
                model_end(state, should_log)
            if is_watching and completes:
                is_watching = self._optimizer_watch.look(state.optimizer_steps)
            steps += 1
            state.average_iter_time = (clock() - began) / steps
            has_news = (may_stop and has_stop_news()) or bool(requests)
            if has_news or (completes and self._asks_always) or interrupted():
                outcome, pause = self._after_batch(completes, ask=has_news)
                if outcome is not Outcome.CONTINUE:
                    return outcome
                began, next_save = began + pause, self._schedule.next_save()
        self._steps, self._seconds = steps, clock() - began
        return Outcome.CONTINUE

    def _log_if_due(self, completes: bool) -> bool:
        """Return whether a log entry is due; if so, average the losses over the ranks before anybody reads them."""
        should_log = self._schedule.is_log_due(completes=completes)
        if should_log:
            average_losses(self._model, self._host_group)
            self._loss_watch.look(self._state.global_iteration)
        return should_log

    def _after_batch(self, completes: bool, *, ask: bool) -> tuple[Outcome, float]:
        """Do what is due after a batch; return how it turned out, and how many seconds it took."""
        began = time.perf_counter()
        is_boundary = completes and self._unit is TrainingUnit.ITERATION
        count = self._state.current_iteration if is_boundary else None
        if count is not None and is_due(count, self._options.valid_frequency):
            self._validate()
            ask = True
        return self._at_boundary(count, ask=ask), time.perf_counter() - began

    def _after_epoch(self) -> Outcome:
        state, is_boundary = self._state, self._unit is TrainingUnit.EPOCH
        if is_boundary and is_due(state.global_epoch, self._options.valid_frequency):
            self._validate()
        self._end_epoch()
        state.dataset_iter = 0
        return self._at_boundary(state.global_epoch if is_boundary else None, ask=True)

    def _at_boundary(self, count: int | None, *, ask: bool) -> Outcome:
        """Decide how training continues, and save if that is due.

        Args:
            count: steps done in the unit of training; `None` if this is no boundary of that unit.
            ask: whether there is something to ask those who may end training; where a checkpoint is due, they are.
        """
        if count is not None and self._bar is not None:
            self._bar.update(1)
        is_save_due = count is not None and is_due(count, self._options.chkpt_frequency)
        # Asked before saving, so that the last checkpoint says whether training was stopped.
        outcome = self._outcome(ask=ask or is_save_due)
        if self._save is not None and (is_save_due or outcome not in (Outcome.CONTINUE, Outcome.PRUNED)):
            self._loss_watch.look(self._state.global_iteration)
            self._write(self._save, is_last=outcome in (Outcome.COMPLETE, Outcome.STOPPED))
        return outcome

    def _outcome(self, *, ask: bool = False) -> Outcome:
        state, options = self._state, self._options
        if self._schedule.is_complete():
            return Outcome.COMPLETE
        for_good, for_now = self._stop_vote.ask(state) if ask else (False, False)
        self.is_stopped = self.is_stopped or for_good
        if self.is_stopped:
            return Outcome.STOPPED
        if for_now:
            return Outcome.PRUNED
        if options.early_stop_cycles is not None and state.early_stop_count >= options.early_stop_cycles:
            return Outcome.STOPPED
        return Outcome.INTERRUPTED if self._interrupted() else Outcome.CONTINUE

    def _write(self, save: Callable[..., Path], *, is_last: bool) -> None:
        path = save(self.state_dict(), is_last=is_last)
        self._hooks.notify("on_checkpoint_saved", self._state.global_iteration, path, self._state)

    def _validate(self) -> None:
        state, model = self._state, self._model
        assert self._validation is not None  # noqa: S101 - for the type checker: valid_frequency without one is refused.
        cycle = state.validation_cycles  # Validations count from 0; this one is not among the completed ones yet.
        self._loss_watch.look(state.global_iteration)  # Before the running losses are cleared.
        self._validation.run(cycle)
        state.validation_cycles = cycle + 1
        state.running_iter = 0
        model._running_losses.clear()  # noqa: SLF001 - subclasses use it.
        if overrides(model, "have_metrics_improved", Model):
            # Every rank is asked, because asking may do something; the answer of rank 0 decides.
            has_improved = self._host_group.broadcast_object(bool(model.have_metrics_improved()))
            state.early_stop_count = 0 if has_improved else state.early_stop_count + 1
