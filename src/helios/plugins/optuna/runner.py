"""`run_study`, which runs a study to its number of trials, in any number of processes and after any number of kills."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any, Final

from optuna.trial import TrialState

from helios.core.distributed import get_dist_info
from helios.core.logging import get_root_logger
from helios.errors import ArgumentTypeError, ConfigurationError, RankFailedError, StudyStorageError, TrainingError
from helios.plugins.optuna.arguments import check_callables, check_values, checked_study
from helios.plugins.optuna.distributed import follow_study, lead_study
from helios.plugins.optuna.optuna_internals import storage_of, trial_id_of
from helios.plugins.optuna.plugin import TrialInterrupted
from helios.plugins.optuna.storage.errors import find_storage_error, rescue_deleted_file, storage_errors
from helios.plugins.optuna.storage.heartbeat import heartbeats, record_heartbeat
from helios.plugins.optuna.storage.locks import study_lock
from helios.plugins.optuna.storage.orphans import abandoned_trials, key_of, requeue_orphans, requeue_trial
from helios.plugins.optuna.storage.owners import mark_owner, owner_of, this_process
from helios.plugins.optuna.storage.retry import is_creation_conflict, retry
from helios.plugins.optuna.storage.retrying import retry_storage
from helios.plugins.optuna.storage.trial_monitor import TrialMonitor
from helios.plugins.optuna.storage.wait_timer import check_give_up_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import optuna

    from helios.plugins.optuna.storage.orphans import TrialKey

_FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_MAX_FAILURES: Final = 100  # Consecutive trials without a value.
_POLL: Final = 0.5  # Seconds between two checks of the trials that other processes run.


def run_study(
    make_study: Callable[[], optuna.Study],
    objective: Callable[[optuna.Trial], Any],
    n_trials: int,
    *,
    give_up_after: float | None = None,
) -> optuna.Study:
    """Run a study until the given number of trials has finished, that is, is complete or pruned.

    Trials of all processes count. After a kill, run it again: it resumes the unfinished trials with their numbers, and
    then runs the remaining ones. Any number of processes may run it at the same time on one storage. If the study has
    finished already, no trial is run.

    A database that is locked or unreachable is retried for up to two minutes in each call. SQLite itself waits for
    5 s; `RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 100}})` makes that 100 s for all uses of the study,
    also before and after this call.

    With a database, each process records a heartbeat for its trial once a minute, in Optuna's own table. The trial of a
    process that cannot be seen from here (on another host, in another container, or on this host under a former host
    name) is run again when its last heartbeat is five minutes old. While this call waits for a process that may be
    gone, it logs a warning every minute, with the trial, the process and the remedy.

    Under `torchrun`, rank 0 creates the study, asks and tells, and every rank runs the objective with the same
    suggestions: the other ranks get a proxy for rank 0's trial. The study records rank 0's return value.

    Args:
        make_study: creates or loads the study; pass `load_if_exists=True` to `create_study` to make it resumable.
        objective: as for `optuna.Study.optimize`.
        n_trials: the number of finished trials at which the study ends, including those of earlier calls.
        give_up_after: the longest wait in seconds for another process that may be gone: one that runs the last trials,
            or one that was stopped while it held the study's lock. `None` for no limit.

    Returns:
        The study; under `torchrun`, on ranks other than 0, a read-only view of it. If a signal has interrupted a trial
        in this process (`TrialInterrupted`), the unfinished study is returned, and the trial waits to be resumed.

    Raises:
        ConfigurationError: if `n_trials` is below 1, or `give_up_after` not above 0.
        ArgumentTypeError: if an argument has the wrong type, if `make_study` does not return a study, or `objective`
            does not return a number.
        StudyStorageError: if the storage of the study is full, deleted, damaged or unreachable; the message contains
            the remedy. No trial is marked as failed: run the study again.
        TrainingError: if the objective returns nan for 100 trials in a row, or for `n_trials` if that is more.
        StudyTimeoutError: if the wait for another process has reached `give_up_after`.
        Exception: any exception of the objective; Optuna has marked the trial as failed, and it does not count.
        BaseException: any other exception of the objective, as `KeyboardInterrupt`; the trial waits to be resumed.
    """
    if isinstance(n_trials, bool) or not isinstance(n_trials, int):
        raise ArgumentTypeError(f"n_trials is {n_trials!r}: pass the number of finished trials at which the study ends")
    if n_trials < 1:
        raise ConfigurationError(f"n_trials is {n_trials}: pass at least 1")
    check_give_up_after(give_up_after)
    check_callables(make_study, objective)
    info = get_dist_info()
    if info.world_size == 1:
        return _run_here(make_study, objective, n_trials, give_up_after)
    if info.rank > 0:
        return follow_study(objective)
    return lead_study(lambda shared: _run_here(make_study, shared, n_trials, give_up_after), objective)


def _run_here(
    make_study: Callable[[], optuna.Study],
    objective: Callable[[optuna.Trial], Any],
    n_trials: int,
    give_up_after: float | None,
) -> optuna.Study:
    with storage_errors():
        study = retry(checked_study(make_study), is_creation_conflict)
    retry_storage(study)
    with rescue_deleted_file(study):
        return _run_to_end(study, objective, n_trials, give_up_after)


def _run_to_end(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], Any],
    n_trials: int,
    give_up_after: float | None,
) -> optuna.Study:
    lock = functools.partial(study_lock, study, give_up_after=give_up_after)
    monitor: TrialMonitor | None = None
    failures = _FailureLimit(max(_MAX_FAILURES, n_trials))
    while True:
        # The lock is held from the check for a remaining trial until the trial is running: otherwise two processes
        # could both start the last one.
        lock_context = contextlib.ExitStack()
        with lock_context:
            with storage_errors():
                lock_context.enter_context(lock())
                requeue_orphans(study)
            if _count(study, *_FINISHED, TrialState.RUNNING) >= n_trials:
                lock_context.close()
                if _count(study, *_FINISHED) >= n_trials:
                    return study
                monitor = monitor or TrialMonitor(study, give_up_after)
                monitor.check()
                time.sleep(_POLL)
                continue
            monitor = None
            try:
                with _abandoned_if_unrecorded() as started:
                    run = _prepare(study, failures.checked(study, objective), started, lock_context, lock)
                    study.optimize(run, n_trials=1)
            except _TrialTakenOver as error:
                get_root_logger().warning("%s", error)
            except _TrialLeft as left:
                if isinstance(left.reason, TrialInterrupted):
                    return study
                raise left.reason from None


def _count(study: optuna.Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


@contextlib.contextmanager
def _abandoned_if_unrecorded() -> Iterator[list[TrialKey]]:
    """Add the trials in the list to `abandoned_trials` if their end cannot be recorded."""
    started: list[TrialKey] = []
    try:
        yield started
    except (AssertionError, StudyStorageError, UnboundLocalError) as error:
        # Optuna fails with the first or the last of these if it cannot record the end of a trial.
        cause = find_storage_error(error)
        if cause is None:
            raise
        abandoned_trials.update(started)
        raise cause from None


class _FailureLimit:
    """Ends a study in which all trials fail without an error, which would otherwise run forever."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0

    def checked(self, study: optuna.Study, objective: Callable[[optuna.Trial], Any]) -> Callable[[optuna.Trial], Any]:
        """Return the objective with its return value checked: Optuna marks a trial with nan as failed."""
        count = len(study.directions)

        def run(trial: optuna.Trial) -> Any:
            values = objective(trial)
            self._in_a_row = 0 if check_values(values, trial, count) else self._in_a_row + 1
            if self._in_a_row >= self._limit:
                raise TrainingError(
                    f"the objective returned nan for {self._in_a_row} trials in a row, which counts as a failure: "
                    "return a number, or raise optuna.TrialPruned for trials without a useful value"
                )
            return values

        return run


class _TrialLeft(BaseException):
    """Ends `study.optimize` without changing the trial; for a `KeyboardInterrupt`, Optuna would mark it as failed."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(reason)
        self.reason = reason


class _TrialTakenOver(BaseException):
    """Ends `study.optimize` without changing the trial, which another process runs now."""


def _prepare(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], Any],
    started: list[TrialKey],
    lock_context: contextlib.ExitStack,
    lock: Callable[[], contextlib.AbstractContextManager[None]],
) -> Callable[[optuna.Trial], Any]:
    """Return the objective, which first records the owner of its trial and releases the study's lock."""
    storage = storage_of(study)

    def run(trial: optuna.Trial) -> Any:
        trial_id = trial_id_of(trial)
        started.append(key_of(trial))
        abandoned_trials.discard(started[-1])
        try:
            record_heartbeat(storage, trial_id)
            mark_owner(trial)
            lock_context.close()
            with heartbeats(storage, trial_id):
                try:
                    return objective(trial)
                finally:
                    _ensure_owned(study, trial)
        except BaseException as reason:
            # The loss of another rank is no failure of the trial, like a kill of this process.
            is_lost = isinstance(reason, RankFailedError) and reason.is_lost
            if isinstance(reason, Exception) and not (is_lost or isinstance(reason, StudyStorageError)):
                raise
            lock_context.close()
            if isinstance(reason, _TrialTakenOver):
                raise
            try:
                with lock():
                    requeue_trial(study, trial)
            except StudyStorageError:  # The next call of `run_study` requeues it.
                abandoned_trials.add(started[-1])
            raise _TrialLeft(reason) from reason

    return run


def _ensure_owned(study: optuna.Study, trial: optuna.Trial) -> None:
    owner = owner_of(storage_of(study).get_trial(trial_id_of(trial)))
    if owner != this_process():
        raise _TrialTakenOver(
            f"trial {trial.number} was taken over by {owner or 'another process'}, because this process had recorded no"
            " heartbeat: its result here is dropped"
        )
