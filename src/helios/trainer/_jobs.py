"""Training and testing, after the setup of a run."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from helios._version import __version__
from helios.checkpoint.format import FORMAT
from helios.checkpoint.passport import check_passport
from helios.checkpoint.rank_deltas import apply_rank_delta
from helios.checkpoint.shard_tree import is_sharded
from helios.checkpoint.store import CheckpointStore, check_can_be_saved
from helios.core.distributed import global_print
from helios.core.state import Phase, TrainingState, TrainingUnit
from helios.errors import CheckpointMismatchError, HeliosError
from helios.model.model import Model
from helios.parallel.gradients import GradientWatch, restore_gradients
from helios.plugins.table import overrides
from helios.trainer._checks import check_dtypes, list_dtypes
from helios.trainer._loop import TrainingLoop
from helios.trainer._passport import make_passport
from helios.trainer._ranks import check_lengths
from helios.trainer._saving import Saver, states_in
from helios.trainer._schedule import Outcome
from helios.trainer._session import Session
from helios.trainer._signals import SignalWatch
from helios.trainer._task import Result

if TYPE_CHECKING:
    from pathlib import Path

    from helios.ranks.host_group import HostGroup
    from helios.trainer._states import PartStates
    from helios.trainer._task import Task


class TrainingJob:
    """Trains, saves checkpoints, and resumes from them."""

    def __init__(self, session: Session) -> None:
        """Prepare the data, the checkpoints and the loop, and check them."""
        options, host_group = session.options, session.host_group
        self._session = session
        self._host_group = host_group
        self._state = TrainingState()
        self._store = session.own_store()  # Again, because setup may have given the model another name.
        self._signals = SignalWatch(enabled=self._store is not None)
        self._gradients = GradientWatch(session.model)
        session.callback(self._gradients.close)
        source = session.open_training_source()
        check_lengths(source, host_group)
        validation = None if options.valid_frequency is None else session.open_evaluation(Phase.VALIDATION)
        self._passport = {} if self._store is None else make_passport(session, source.description, validation)
        self._saver: Saver | None = None
        if self._store is not None:
            self._saver = Saver(session, self._store, self._state, self._gradients, self._passport)
        state = (
            self._state
        )  # The function below must not refer to this job: the loop holds it, and the job holds the loop.
        self._loop = TrainingLoop(
            options,
            model=session.model,
            plugins=session.plugins,
            state=self._state,
            source=source,
            validation=validation,
            save=None if self._saver is None else self._saver.save,
            interrupted=host_group.make_stop_check(self._signals.was_asked, lambda: state.global_iteration),
            seed_fn=session.seed_fn,
            save_rng_state=session.save_rng_state,
            host_group=host_group,
            gradients=self._gradients,
        )

    def run(self) -> bool:
        """Train from the newest checkpoint, or from the start.

        Returns:
            False if a signal has stopped it.
        """
        session = self._session
        with self._signals:
            if self._store is not None and self._saver is not None:
                self._resume(self._store, self._saver)
            if session.options.print_banner:
                self._print_banner()
            with session.open_bar("Training", self._done()) as bar:
                outcome = self._loop.run(bar)
            if self._saver is not None and outcome in (Outcome.COMPLETE, Outcome.STOPPED):
                self._saver.record_end()
        self._signals.report(is_leaving=outcome is Outcome.INTERRUPTED)
        session.log.info("%d iterations trained: %s", self._state.current_iteration, outcome.value)
        interrupted = outcome is Outcome.INTERRUPTED
        for plugin in session.plugins.values():
            plugin.on_fit_end(interrupted=interrupted)
        return not interrupted

    def _done(self) -> int:
        is_epochs = self._session.options.train_unit is TrainingUnit.EPOCH
        return self._state.completed_epochs if is_epochs else self._state.current_iteration

    def _resume(self, store: CheckpointStore, saver: Saver) -> None:
        """Restore the newest checkpoint, and check that this run can save its own."""
        if self._host_group.rank == 0:
            saver.check_name()
        check_can_be_saved(saver.collect(self._loop.state_dict()))  # An error must come before the first batch.
        newest = store.load_newest(self._host_group, self._session.mesh)
        if newest is None:
            return
        path, data = newest
        check_fits(self._session.model, path, data)
        policy = self._session.options.drift_policy
        check_passport(path, data.get("passport"), self._passport, policy, self._session.log)
        self._restore_states(path, data)
        self._loop.load_state_dict(data["training"])
        # A rank without gradients must take part, because restoring them is a collective.
        if any(self._host_group.all_gather_object(bool(data["gradients"]))):
            session = self._session
            restore_gradients(session.model, data["gradients"], session.states.others, session.strategy)
        self._session.log.info("resumed from %s", path)

    def _restore_states(self, path: Path, data: dict[str, Any]) -> None:
        model = self._session.model
        try:
            self._session.states.restore(data)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, HeliosError) or overrides(model, "load_state_dict", Model):
                raise  # The error comes from the user's own method.
            raise CheckpointMismatchError(
                f"{path} holds a state that does not fit {type(model).__name__} ({type(error).__name__}: {error}): it "
                "was written by another program, or by another version of this one"
            ) from error

    def _print_banner(self) -> None:
        options, state = self._session.options, self._state
        unit, ranks = options.train_unit.value, self._host_group.world_size
        where = f"{self._session.device}" if ranks == 1 else f"{ranks} ranks, {self._session.device.type}"
        start = "from the start" if state.global_iteration == 0 else f"from {unit} {self._done()}"
        lines = [
            f"Helios {__version__}{f': {options.run_name}' if options.run_name else ''}",
            f"  model    {type(self._session.model).__name__} ({self._session.model.save_name}) on {where}",
            f"  training {options.total_steps} {unit}s {start}, seed {options.seed}",
            f"  plug-ins {', '.join(self._session.plugins) or 'none'}",
        ]
        global_print(self._session.model.append_to_banner("\n".join(lines)), flush=True)


def check_fits(model: Model, path: Path, data: dict[str, Any]) -> None:
    """Check that a checkpoint belongs to a run of a model.

    Raises:
        CheckpointMismatchError: if the checkpoint is of another format or of another class.
    """
    written = data.get("format", FORMAT)
    if written != FORMAT:
        raise CheckpointMismatchError(
            f"{path} has format {written}, written by Helios {data.get('helios')}; this is Helios {__version__}, which "
            f"reads format {FORMAT}: {'update Helios' if written > FORMAT else 'finish the run with that version'}",
        )
    saved_class = data["model"]["class"]
    if saved_class != type(model).__qualname__:
        raise CheckpointMismatchError(
            f"{path} belongs to a {saved_class}, and this model is a {type(model).__qualname__}: give each its own "
            "save_name",
        )
    check_dtypes(data["training"].get("dtypes", {}), list_dtypes(model), type(model).__name__)


def run_test(session: Session, trained_state: dict[str, Any] | None) -> None:
    """Test the model as `fit` left it.

    Args:
        session: the run.
        trained_state: the states of the parts, if this trainer has trained them; otherwise the newest checkpoint is
            used.
    """
    model, root = session.model, session.options.chkpt_root
    if trained_state is not None:
        session.states.restore_for_testing(trained_state)
    else:
        store = None if root is None else CheckpointStore(root, model.save_name)
        newest = None if store is None else store.load_newest(session.host_group, session.mesh)
        if newest is None:
            model.load_for_testing()
        else:
            path, data = newest
            check_fits(model, path, data)
            session.states.restore_for_testing(apply_rank_delta(states_in(data), data.get("ended", [])))
    evaluation = session.open_evaluation(Phase.TESTING)
    if evaluation is not None:
        evaluation.run()


def run_task(task: Task, host_group: HostGroup) -> Result:
    """Run this process's part of a task.

    Args:
        task: a call of `fit` or `test`.
        host_group: the host-side collectives of the ranks.
    """
    with Session(task, host_group) as session:
        if task.phase is Phase.TRAINING:
            session.own_store()
        session.set_up()
        if task.phase is Phase.TESTING:
            run_test(session, task.trained_state)
            is_finished = True
        else:
            is_finished = TrainingJob(session).run()
        return _conclude(task, host_group, session.states, is_finished=is_finished)


def _conclude(task: Task, host_group: HostGroup, states: PartStates, *, is_finished: bool) -> Result:
    if host_group.world_size == 1:
        return Result(is_finished)
    own = {key: plugin.rank0_result() for key, plugin in task.plugins.items()} if host_group.rank == 0 else {}
    results = host_group.broadcast_object(own)
    task.receive_results(results)
    is_kept = task.phase is Phase.TESTING or task.options.chkpt_root is not None
    return Result(is_finished, task.model.metrics, results, None if is_kept else _on_cpu(states.collect()))


def _on_cpu(value: Any) -> Any:
    """Return a state with its tensors on the CPU, and sharded tensors as whole ones."""
    if isinstance(value, dict):
        state = copy.copy(value)  # The state of a network has the versions of its modules as an attribute.
        state.update({key: _on_cpu(item) for key, item in value.items()})
        return state
    if isinstance(value, list | tuple):
        return type(value)([_on_cpu(item) for item in value])
    if is_sharded(value):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value
