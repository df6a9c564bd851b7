"""What a run does once everything is set up: training, from wherever it was left, and testing."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from helios._version import __version__
from helios.checkpoint.passport import check_passport
from helios.core.distributed import global_print
from helios.core.shard_tree import is_sharded
from helios.core.state import Phase, TrainingState, TrainingUnit
from helios.core.stateful import ensure_state_dict
from helios.errors import CheckpointMismatchError, ConfigurationError, HeliosError
from helios.model.gradients import collect_gradients, restore_gradients
from helios.model.model import Model
from helios.plugins.table import overrides
from helios.trainer._checkpoints import CheckpointName, CheckpointStore, check_can_be_saved
from helios.trainer._checks import check_dtypes, list_dtypes
from helios.trainer._contents import FORMAT
from helios.trainer._loop import Outcome, TrainingLoop
from helios.trainer._passport import make_passport
from helios.trainer._ranks import check_lengths
from helios.trainer._session import Session
from helios.trainer._signals import SignalWatch
from helios.trainer._task import Result

if TYPE_CHECKING:
    from pathlib import Path

    from helios.core.control import Control
    from helios.trainer._task import Task


class TrainingJob:
    """Trains, and keeps what a later process needs in order to go on."""

    def __init__(self, session: Session) -> None:
        """Get the data, the checkpoints and the loop ready, and check that all of it can work."""
        options, control = session.options, session.control
        self._session = session
        self._control = control
        self._state = TrainingState()
        self._store = session.own_store()  # Again: setup may have given the model another name.
        self._signals = SignalWatch(enabled=self._store is not None)
        feed = session.open_training_feed()
        check_lengths(feed, control)
        validation = None if options.valid_frequency is None else session.open_evaluation(Phase.VALIDATION)
        self._passport = {} if self._store is None else make_passport(session, feed.description, validation)
        self._loop = TrainingLoop(
            options,
            model=session.model,
            plugins=session.plugins,
            state=self._state,
            feed=feed,
            validation=validation,
            save=None if self._store is None else self._save,
            interrupted=control.agree_on_leaving(self._signals.was_asked, lambda: self._state.global_iteration),
            key=session.key,
            mark=session.mark,
            control=control,
        )

    def run(self) -> bool:
        """Train from the newest checkpoint, or from the start.

        Returns:
            False if a signal has stopped it.
        """
        try:
            return self._run()
        finally:
            del self._loop  # It refers to this job; all that trains hangs on both, and would not be let go of for long.

    def _run(self) -> bool:
        session = self._session
        with self._signals:
            if self._store is not None:
                self._resume(self._store)
            if session.options.print_banner:
                self._print_banner()
            with session.open_bar("Training", self._done()) as bar:
                outcome = self._loop.run(bar)
        self._signals.report(is_leaving=outcome is Outcome.INTERRUPTED)
        session.log.info("%d iterations trained: %s", self._state.current_iteration, outcome.value)
        interrupted = outcome is Outcome.INTERRUPTED
        for plugin in session.plugins.values():
            plugin._after_training(interrupted=interrupted)  # noqa: SLF001 - the run's side of Plugin.
        return not interrupted

    def _done(self) -> int:
        is_epochs = self._session.options.train_unit is TrainingUnit.EPOCH
        return self._state.completed_epochs if is_epochs else self._state.current_iteration

    def _save(self) -> None:
        assert self._store is not None  # noqa: S101 - for the type checker: without a store, nothing calls this.
        name = self._control.share(self._store.fit_name(self._name_checkpoint()) if self._control.rank == 0 else None)
        assert name is not None  # noqa: S101 - for the type checker: it is rank 0's.
        path = self._store.save(name, self._collect(), self._control)
        self._session.log.debug("saved %s", path)

    def _name_checkpoint(self) -> CheckpointName:
        model, state = self._session.model, self._state
        name = CheckpointName(model.save_name, state.global_epoch, state.current_iteration)
        return name.with_stem(model.append_metadata_to_chkpt_name(name.stem), type(model).__name__)

    def _check_name(self, store: CheckpointStore) -> None:
        """Refuse names that are too long, before anything is trained."""
        name = CheckpointName(self._session.model.save_name, 0, 0)
        store.check_name(name)
        try:
            name = self._name_checkpoint()
        except ConfigurationError:
            raise
        except Exception:  # noqa: BLE001 - what it shows, such as a score, need not be there yet.
            return
        store.check_name(name)

    def _collect(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as plain data."""
        model, plugins = self._session.model, self._session.plugins
        is_accumulating = self._state.global_iteration % self._session.options.accumulation_steps != 0
        return {
            "format": FORMAT,
            "helios": __version__,
            "passport": self._passport,
            "model": {
                "class": type(model).__qualname__,
                "state": ensure_state_dict(model.state_dict(), type(model).__name__),
                "book": model._book_state(),  # noqa: SLF001 - the run's side of Model.
            },
            "plugins": {
                plug_id: ensure_state_dict(plugin.state_dict(), type(plugin).__name__)
                for plug_id, plugin in plugins.items()
            },
            "training": self._loop.state_dict(),
            "gradients": collect_gradients(model) if is_accumulating else {},
        }

    def _resume(self, store: CheckpointStore) -> None:
        """Go to where the newest checkpoint is, and check that this run will be able to write its own."""
        if self._control.rank == 0:
            self._check_name(store)
        check_can_be_saved(self._collect())  # What cannot be is to be known before the first batch.
        newest = store.load_newest(self._control, self._session.mesh)
        if newest is None:
            return
        path, data = newest
        policy = self._session.options.drift_policy
        check_passport(path, data.get("passport"), self._passport, policy, self._session.log)
        restore_model(self._session.model, path, data)
        self._session.model._load_book_state(data["model"]["book"])  # noqa: SLF001 - the run's side of Model.
        self._restore_plugins(data["plugins"])
        self._loop.load_state_dict(data["training"])
        # One rank may have some where another has none, and to give them back takes all.
        if any(self._control.gather(bool(data["gradients"]))):
            restore_gradients(self._session.model, data["gradients"])
        self._session.log.info("resumed from %s", path)

    def _restore_plugins(self, states: dict[str, Any]) -> None:
        plugins = self._session.plugins
        for plug_id, state in states.items():
            if plug_id in plugins:
                plugins[plug_id].load_state_dict(state)
            elif state:
                self._session.log.warning(
                    "the checkpoint has the state of a plug-in %r, which is not registered: its state is dropped",
                    plug_id,
                )

    def _print_banner(self) -> None:
        options, state = self._session.options, self._state
        unit, ranks = options.train_unit.value, self._control.world_size
        where = f"{self._session.device}" if ranks == 1 else f"{ranks} ranks, {self._session.device.type}"
        start = "from the start" if state.global_iteration == 0 else f"from {unit} {self._done()}"
        lines = [
            f"Helios {__version__}{f': {options.run_name}' if options.run_name else ''}",
            f"  model    {type(self._session.model).__name__} ({self._session.model.save_name}) on {where}",
            f"  training {options.total_steps} {unit}s {start}, seed {options.seed}",
            f"  plug-ins {', '.join(self._session.plugins) or 'none'}",
        ]
        global_print(self._session.model.append_to_banner("\n".join(lines)), flush=True)


def restore_model(model: Model, path: Path, data: dict[str, Any], *, fast_init: bool = False) -> None:
    """Give a model the state that a checkpoint holds.

    Args:
        model: the model, set up.
        path: the checkpoint, for messages.
        data: what it holds.
        fast_init: whether only the networks have been set up.

    Raises:
        CheckpointMismatchError: if the checkpoint is of a newer format or of another class, or the state does not fit.
    """
    if data.get("format", FORMAT) > FORMAT:
        raise CheckpointMismatchError(
            f"{path} has format {data['format']}, written by Helios {data.get('helios')}; this is Helios "
            f"{__version__}, which reads formats up to {FORMAT}: update Helios",
        )
    saved_class = data["model"]["class"]
    if saved_class != type(model).__qualname__:
        raise CheckpointMismatchError(
            f"{path} belongs to a {saved_class}, and this model is a {type(model).__qualname__}: give each its own "
            "save_name",
        )
    try:
        check_dtypes(data["training"].get("dtypes", {}), list_dtypes(model), type(model).__name__)
        model.load_state_dict(data["model"]["state"], fast_init=fast_init)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, HeliosError) or overrides(model, "load_state_dict", Model):
            raise  # What a model's own method raises is the user's.
        raise CheckpointMismatchError(
            f"{path} holds a state that does not fit {type(model).__name__} ({type(error).__name__}: {error}): it was "
            "written by another program, or by another version of this one"
        ) from error


def run_test(session: Session, trained_state: dict[str, Any] | None) -> None:
    """Test the model as its newest checkpoint has it.

    Args:
        session: the run.
        trained_state: the state of the model if it has been trained in this process; used if there is no checkpoint.
    """
    model, root = session.model, session.options.chkpt_root
    newest = None if root is None else CheckpointStore(root, model.save_name).load_newest(session.control, session.mesh)
    if newest is not None:
        restore_model(model, *newest, fast_init=True)
    elif trained_state is not None:
        model.load_state_dict(trained_state, fast_init=True)
    else:
        model.load_for_testing()
    session.open_evaluation(Phase.TESTING).run()


def run_task(task: Task, control: Control) -> Result:
    """Run this process's part of a task.

    Args:
        task: a call of `fit` or `test`.
        control: what the ranks agree through.
    """
    with Session(task, control) as session:
        if task.phase is Phase.TRAINING:
            session.own_store()
        session.set_up()
        if task.phase is Phase.TESTING:
            run_test(session, task.trained_state)
            is_finished = True
        else:
            is_finished = TrainingJob(session).run()
        return _conclude(task, control, is_finished=is_finished)


def _conclude(task: Task, control: Control, *, is_finished: bool) -> Result:
    if control.world_size == 1:
        return Result(is_finished)
    words = control.share({plug_id: plugin._parting_words() for plug_id, plugin in task.plugins.items()})  # noqa: SLF001 - the run's side of Plugin.
    task.hear(words)
    is_kept = task.phase is Phase.TESTING or task.options.chkpt_root is not None
    return Result(is_finished, task.model.metrics, words, None if is_kept else _on_cpu(task.model.state_dict()))


def _on_cpu(value: Any) -> Any:
    """Return a state with its tensors on the CPU, put together where each rank has a part of them."""
    if isinstance(value, dict):
        state = copy.copy(value)  # A network's has the versions of its modules beside its items.
        state.update({key: _on_cpu(item) for key, item in value.items()})
        return state
    if isinstance(value, list | tuple):
        return type(value)([_on_cpu(item) for item in value])
    if is_sharded(value):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value
