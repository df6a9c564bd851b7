"""The training loop, for both units.

After each iteration and each epoch the loop asks what is due at that boundary, and only the chosen unit answers. A
checkpoint is taken at such a boundary, when every hook of what it completes has run. Nothing that a checkpoint holds is
remembered here: what has happened is in the state, and what comes next follows from it.
"""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Any

from helios.core.rng import SeedSequence, derive_seed
from helios.core.state import TrainingUnit
from helios.errors import TrainingError
from helios.model.model import Model
from helios.plugins.table import overrides
from helios.trainer._checks import list_dtypes
from helios.trainer._plugin_hooks import PluginHooks
from helios.trainer._ranks import average_losses, in_step
from helios.trainer._stopping import StopVote
from helios.trainer._watches import LossWatch, OptimizerWatch, warn_of_evaluation_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helios.core.state import TrainingState
    from helios.data.sources import BatchSource
    from helios.parallel.gradients import GradientWatch
    from helios.plugins.table import PluginTable
    from helios.ranks.host_group import HostGroup
    from helios.trainer._evaluation import EvaluationLoop
    from helios.trainer._options import TrainerOptions
    from helios.trainer._plugin_hooks import KeyedHook
    from helios.trainer._progress import ProgressBar


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
        save: Callable[..., None] | None,
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
            save: writes a checkpoint; is told whether it is the last (`is_last`).
            interrupted: whether the run shall leave here; answered alike on every rank.
            seed_fn: sets the generators to the stream of a seed.
            save_rng_state: notes where the generators are, and returns what puts them back there.
            host_group: what the ranks agree through.
            gradients: looks at the steps of optimizers in a batch after which a checkpoint is going to be taken.
        """
        self.is_stopped = False
        self._options = options
        self._unit = options.train_unit
        self._model = model
        self._hooks = PluginHooks(
            plugins, seed=options.seed, rank=host_group.rank, seed_fn=seed_fn, save_rng_state=save_rng_state
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
        self._steps, self._seconds = 0, 0.0
        self._optimizer_watch, self._loss_watch = OptimizerWatch(model), LossWatch(model)
        self._stop_vote = StopVote(model, plugins, host_group)
        self._dtypes = list_dtypes(model)  # As setup has made them: what training makes of them is another matter.

    def state_dict(self) -> dict[str, Any]:
        """Return, as plain data, where training is."""
        return {
            "state": self._state.to_dict(),
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
        self._call("start", self._hooks.bind("on_training_start"), self._model.on_training_start)
        if not self._is_resumed and overrides(self._model, "train", Model):
            self._model.train()  # Otherwise, every module has the mode that `setup`, or the checkpoint, has given it.
        warn_of_evaluation_mode(self._model)
        # A run that was complete when it was saved has nothing left but its end.
        outcome = self._outcome(ask=self._state.global_iteration > 0)
        if outcome is Outcome.INTERRUPTED and self._save is not None:
            self._save(is_last=False)  # Whoever is told that training was interrupted finds a checkpoint.
        while outcome is Outcome.CONTINUE:
            outcome = self._run_epoch()
        if outcome is not Outcome.INTERRUPTED:
            self._finish()
        return outcome

    def _finish(self) -> None:
        # After the last checkpoint on purpose: resuming a complete run, or one killed in these hooks, runs them again
        # on the same state, and a run that is given more steps goes on as if they had never run.
        if self._state.is_epoch_in_progress:
            self._end_epoch()
        self._call("end", self._hooks.bind("on_training_end"), self._model.on_training_end)

    def _end_epoch(self) -> None:
        self._optimizer_watch.check(self._state.current_iteration)
        self._loss_watch.look(self._state.global_iteration)
        epoch = self._state.global_epoch
        self._call("epoch end", self._hooks.bind("on_training_epoch_end"), self._model.on_training_epoch_end, epoch)

    def _call(self, where: str, plugin_hooks: list[KeyedHook], model_hook: Callable[..., Any], *args: int) -> None:
        """Run a hook that is not part of a step, with the generators keyed by its place."""
        for hook, own_seeds in plugin_hooks:
            if own_seeds is not None:
                self._seed_fn(own_seeds[args[0] if args else 0])
            hook(*args)
        self._seed_fn(derive_seed(self._options.seed, where, self._rank, *args))
        model_hook(*args)

    def _run_epoch(self) -> Outcome:
        state = self._state
        epoch = state.completed_epochs
        if not state.is_epoch_in_progress:
            state.global_epoch += 1
            hooks = self._hooks.bind("on_training_epoch_start")
            self._call("epoch start", hooks, self._model.on_training_epoch_start, state.global_epoch)
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
                f"epoch {state.global_epoch} has no batch, so training would never end: a data set must yield at "
                "least one in every epoch; an iterable one that keeps its position must go back to its start when it "
                "has ended",
            )
        return self._after_epoch()

    def _run_batches(self, batches: Any) -> Outcome:  # noqa: C901, PLR0912, PLR0915 - the hot path: written out, no calls.
        state, model, seed_fn = self._state, self._model, self._seed_fn
        seeds = SeedSequence(self._options.seed, "step", self._rank)
        processes, starts = self._hooks.bind("process_training_batch"), self._hooks.bind("on_training_batch_start")
        model_start = model.on_training_batch_start if overrides(model, "on_training_batch_start", Model) else None
        train_step, accumulation_steps = model.train_step, self._options.accumulation_steps
        end_batch = model._end_batch  # noqa: SLF001 - a part of the base class that no subclass may lose.
        model_end = model.on_training_batch_end if overrides(model, "on_training_batch_end", Model) else None
        plugin_ends = self._hooks.bind_batch_ends(is_last=model_end is None and not self._stop_vote.asks_model)
        may_stop, has_stop_news = self._stop_vote.may_stop, self._stop_vote.has_news
        asks_every_iteration, interrupted = self._unit is TrainingUnit.ITERATION, self._interrupted
        logs, is_watching = self._options.print_frequency is not None, self._optimizer_watch.is_waiting
        next_save = self._next_save()
        clock, steps = time.perf_counter, self._steps
        began = clock() - self._seconds

        for batch in batches:
            if state.global_iteration + 1 >= next_save:
                self._gradients.arm()
            for process, own_seeds in processes:
                if own_seeds is not None:
                    seed_fn(own_seeds[state.global_iteration])
                batch = process(batch, state)  # noqa: PLW2901 - what a plug-in returns takes the batch's place.
            model._loss_items.clear()  # noqa: SLF001 - subclasses use it; a step may well assign another dict to it.
            for hook, own_seeds in starts:
                if own_seeds is not None:
                    seed_fn(own_seeds[state.global_iteration])
                hook(state)
            seed_fn(seeds[state.global_iteration])  # After the plug-ins: what they draw never reaches the model.
            if model_start is not None:
                model_start(state)
            train_step(batch, state)
            state.global_iteration += 1
            state.dataset_iter += 1
            completes = state.global_iteration % accumulation_steps == 0
            if completes:
                state.current_iteration += 1
                state.running_iter += 1
            if model._loss_items:  # noqa: SLF001 - see above.
                end_batch()
            should_log = logs and self._should_log(completes)
            if should_log:
                self._average_losses()
            if plugin_ends is not None:
                plugin_ends(state)
            if model_end is not None:
                model_end(state, should_log)
            if is_watching and completes:
                is_watching = self._optimizer_watch.look(state.current_iteration)
            steps += 1
            state.average_iter_time = (clock() - began) / steps
            has_news = may_stop and has_stop_news()
            if has_news or (completes and asks_every_iteration) or interrupted():
                paused = clock()
                outcome = self._after_batch(completes, ask=has_news)
                if outcome is not Outcome.CONTINUE:
                    return outcome
                began += clock() - paused
                next_save = self._next_save()
        self._steps, self._seconds = steps, clock() - began
        return Outcome.CONTINUE

    def _should_log(self, completes: bool) -> bool:
        state, every = self._state, self._options.print_frequency
        if every is None:
            return False
        if self._unit is TrainingUnit.ITERATION:
            return completes and is_due(state.current_iteration, every)
        # An epoch is logged at its last batch; one whose length nobody knows has none that can be told.
        return is_due(state.global_epoch, every) and state.dataset_iter == self._source.batches_at_end()

    def _average_losses(self) -> None:
        """Average the losses over the ranks, before anybody reads them: plug-ins and the model see the same."""
        average_losses(self._model, self._host_group)
        self._loss_watch.look(self._state.global_iteration)

    def _after_batch(self, completes: bool, *, ask: bool) -> Outcome:
        is_boundary = completes and self._unit is TrainingUnit.ITERATION
        count = self._state.current_iteration if is_boundary else None
        if count is not None and is_due(count, self._options.valid_frequency):
            self._validate()
            ask = True
        return self._at_boundary(count, ask=ask)

    def _after_epoch(self) -> Outcome:
        state, is_boundary = self._state, self._unit is TrainingUnit.EPOCH
        if is_boundary and is_due(state.global_epoch, self._options.valid_frequency):
            self._validate()
        self._end_epoch()
        state.dataset_iter = 0
        return self._at_boundary(state.global_epoch if is_boundary else None, ask=True)

    def _at_boundary(self, count: int | None, *, ask: bool) -> Outcome:
        """Decide how to go on, and save if that is due.

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
            self._save(is_last=outcome in (Outcome.COMPLETE, Outcome.STOPPED))
        return outcome

    def _next_save(self) -> float:
        """Return after which batch the next checkpoint is going to be taken, unless something comes before."""
        if self._save is None:
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

    def _outcome(self, *, ask: bool = False) -> Outcome:
        state, options = self._state, self._options
        done = state.current_iteration if self._unit is TrainingUnit.ITERATION else state.completed_epochs
        if done >= options.total_steps:
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

    def _validate(self) -> None:
        state, model = self._state, self._model
        assert self._validation is not None  # noqa: S101 - for the type checker: valid_frequency without one is refused.
        cycle = state.validation_cycles + 1
        self._loss_watch.look(state.global_iteration)  # Before the running losses are cleared.
        self._validation.run(cycle)
        state.validation_cycles = cycle
        state.running_iter = 0
        model._running_losses.clear()  # noqa: SLF001 - subclasses use it.
        if self._options.early_stop_cycles is not None:
            # Every rank is asked, because asking may do something; rank 0 is believed.
            has_improved = self._host_group.broadcast_object(bool(model.have_metrics_improved()))
            state.early_stop_count = 0 if has_improved else state.early_stop_count + 1
