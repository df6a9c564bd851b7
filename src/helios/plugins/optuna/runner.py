"""A study that runs to its number of trials, however many processes run it and however often they are killed."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from optuna.storages import InMemoryStorage
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.trial import TrialState

from helios.core.distributed import get_dist_info
from helios.core.logging import get_root_logger
from helios.errors import ArgumentTypeError, ConfigurationError, RankFailedError
from helios.plugins.optuna._locks import study_lock
from helios.plugins.optuna._owners import OWNER_KEY, is_alive, mark_owner, owner_of
from helios.plugins.optuna._patience import be_patient, is_beginning, keep_trying
from helios.plugins.optuna._ranks import follow, lead
from helios.plugins.optuna.plugin import TrialInterrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna

_FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_POLL: Final = 0.5  # Seconds between looks at the trials that other processes run.


def run_study(
    make_study: Callable[[], optuna.Study], objective: Callable[[optuna.Trial], Any], n_trials: int
) -> optuna.Study:
    """Run a study until it has finished a number of trials: those complete and those pruned, in all of its processes.

    Run it again after a kill, and it takes up the trials that the killed process left, in their own slots, and goes on.
    Any number of processes may run it side by side on one storage. A study that is finished runs nothing.

    A database that is locked, or a server that restarts, is waited for: up to two minutes for each thing to read or
    write. SQLite itself waits for 5 s; `RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 100}})` makes that
    100 s for every use of the study, also before and after this call.

    Under `torchrun`, rank 0 makes the study, asks and tells, and every rank runs the objective, each with the same
    suggestions: on the other ranks the trial is a stand-in for rank 0's. What the objective returns counts on rank 0.

    Args:
        make_study: makes or loads the study, with `load_if_exists=True` for one that shall survive.
        objective: as for `optuna.Study.optimize`.
        n_trials: how many trials the study shall have finished in the end, not how many this call adds.

    Returns:
        The study; under `torchrun`, on ranks other than 0, a view of it that can only be read. If a signal has stopped
        a trial in this process (`TrialInterrupted`), it is returned as it is, unfinished, and the trial waits to be
        gone on with.

    Raises:
        ConfigurationError: if `n_trials` is below 1.
        ArgumentTypeError: if `n_trials` is no integer.
        Exception: whatever the objective raises; Optuna has marked the trial as failed then, and it does not count.
        BaseException: whatever else ends the objective, as `KeyboardInterrupt`; the trial waits to be gone on with.
    """
    if isinstance(n_trials, bool) or not isinstance(n_trials, int):
        raise ArgumentTypeError(f"n_trials is {n_trials!r}: pass how many trials the study shall have finished")
    if n_trials < 1:
        raise ConfigurationError(f"n_trials is {n_trials}: pass at least 1")
    info = get_dist_info()
    if info.world_size == 1:
        return _run_here(make_study, objective, n_trials)
    if info.rank > 0:
        return follow(objective)
    return lead(lambda announced: _run_here(make_study, announced, n_trials), objective)


def _run_here(
    make_study: Callable[[], optuna.Study], objective: Callable[[optuna.Trial], Any], n_trials: int
) -> optuna.Study:
    study = keep_trying(make_study, is_beginning)
    be_patient(study)
    is_waiting = False
    while True:
        # Whether there is a slot is looked up and taken by one process at a time: two that see the last one free would
        # both take it.
        turn = contextlib.ExitStack()
        with turn:
            turn.enter_context(study_lock(study))
            _take_back_orphans(study)
            if not _has_slot(study, n_trials):
                turn.close()
                if _count(study, *_FINISHED) >= n_trials:
                    return study
                if not is_waiting:
                    get_root_logger().info("every trial that is left is being run by another process: waiting for them")
                is_waiting = True
                time.sleep(_POLL)
                continue
            try:
                study.optimize(_once_taken(study, objective, turn), n_trials=1)
            except _LeftTrial as left:
                if isinstance(left.reason, TrialInterrupted):
                    return study
                raise left.reason from None


class _LeftTrial(BaseException):
    """Passes through Optuna, and the trial stays as it is; a `KeyboardInterrupt` would have made a failed one of it."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(reason)
        self.reason = reason


def _once_taken(
    study: optuna.Study, objective: Callable[[optuna.Trial], Any], turn: contextlib.ExitStack
) -> Callable[[optuna.Trial], Any]:
    """Return the objective, which lets the next process have its turn as soon as it has its trial."""

    def run(trial: optuna.Trial) -> Any:
        try:
            mark_owner(trial)
            turn.close()
            return objective(trial)
        except BaseException as reason:
            # A rank that was killed has not failed in its trial, no more than this process would have.
            if isinstance(reason, Exception) and not (isinstance(reason, RankFailedError) and reason.is_lost):
                raise
            turn.close()
            with study_lock(study):
                _let_wait(study, trial)
            raise _LeftTrial(reason) from reason

    return run


def _has_slot(study: optuna.Study, n_trials: int) -> bool:
    return _count(study, *_FINISHED, TrialState.RUNNING) < n_trials


def _count(study: optuna.Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def _take_back_orphans(study: optuna.Study) -> None:
    """Let the trials wait again whose processes are gone: in their slots, with their parameters and reports."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    storage: Any = study._storage  # noqa: SLF001 - Optuna has no public way to it.
    # On other hosts, a heartbeat tells. Optuna would fail such a trial, once there is a slot for the next one.
    silent = {*storage._get_stale_trial_ids(study._study_id)} if trials and is_heartbeat_enabled(storage) else set()  # noqa: SLF001 - as above.
    for trial in trials:
        owner = owner_of(trial)
        lives = None if owner is None else is_alive(owner)
        # A trial without an owner was taken, and its process killed before it could sign: signing needs the lock.
        if owner is None or lives is False or (lives is None and trial._trial_id in silent):  # noqa: SLF001 - as above.
            get_root_logger().info("trial %d was left by a process that is gone: it waits for its next", trial.number)
            _let_wait(study, trial)


def _let_wait(study: optuna.Study, trial: optuna.Trial | optuna.trial.FrozenTrial) -> None:
    """Put a trial back into its slot. Only with the study's lock: without an owner, it is there for anybody to take."""
    storage, trial_id = study._storage, trial._trial_id  # noqa: SLF001 - Optuna has no public way to let a trial wait.
    # The process may live on. Whoever takes the trial next, and is killed before it can sign, leaves no stale mark so.
    storage.set_trial_system_attr(trial_id, OWNER_KEY, None)
    storage.set_trial_state_values(trial_id, TrialState.WAITING)
    if isinstance(storage, InMemoryStorage):
        # It looks for waiting trials from where it last found one: it holds that none before can come to wait again.
        storage._prev_waiting_trial_number[study._study_id] = 0  # noqa: SLF001 - as above.
