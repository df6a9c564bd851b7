"""A study that runs to its number of trials, however many processes run it and however often they are killed."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from optuna.storages import InMemoryStorage
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.trial import TrialState

from helios.core.distributed import get_dist_info
from helios.core.logging import get_root_logger
from helios.errors import ArgumentTypeError, ConfigurationError, RankFailedError, StudyStorageError, TrainingError
from helios.plugins.optuna._arguments import check_callables, check_values, checked_study
from helios.plugins.optuna._ranks import follow, lead
from helios.plugins.optuna.plugin import TrialInterrupted
from helios.plugins.optuna.storage import rdb as _rdb
from helios.plugins.optuna.storage.errors import find_storage_error, rescued, storage_errors
from helios.plugins.optuna.storage.heartbeat import SILENCE, beating, record_heartbeat
from helios.plugins.optuna.storage.locks import study_lock
from helios.plugins.optuna.storage.other_processes import OtherProcesses
from helios.plugins.optuna.storage.owners import OWNER_KEY, is_alive, mark_owner, owner_of, this_process
from helios.plugins.optuna.storage.retry import be_patient, is_beginning, keep_trying
from helios.plugins.optuna.storage.waiting import check_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import optuna

_FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_FAILURES: Final = 100  # So many trials without a value in a row are too many.
_POLL: Final = 0.5  # Seconds between looks at the trials that other processes run.


def run_study(
    make_study: Callable[[], optuna.Study],
    objective: Callable[[optuna.Trial], Any],
    n_trials: int,
    *,
    give_up_after: float | None = None,
) -> optuna.Study:
    """Run a study until it has finished a number of trials: those complete and those pruned, in all of its processes.

    Run it again after a kill, and it takes up the trials that the killed process left, in their own slots, and goes on.
    Any number of processes may run it side by side on one storage. A study that is finished runs nothing.

    A database that is locked, or a server that restarts, is waited for: up to two minutes for each thing to read or
    write. SQLite itself waits for 5 s; `RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 100}})` makes that
    100 s for every use of the study, also before and after this call.

    On a database, each process records a heartbeat for its trial once a minute, in Optuna's own table. So the trial of
    a process that cannot be seen from here (on another host, in another container, or on this host under its former
    name) is taken up when nothing was heard of it for five minutes. Whenever this call waits for a process that gives
    no sign of life, it warns every minute, with the trial, the process and what to do.

    Under `torchrun`, rank 0 makes the study, asks and tells, and every rank runs the objective, each with the same
    suggestions: on the other ranks the trial is a stand-in for rank 0's. What the objective returns counts on rank 0.

    Args:
        make_study: makes or loads the study, with `load_if_exists=True` for one that shall survive.
        objective: as for `optuna.Study.optimize`.
        n_trials: how many trials the study shall have finished in the end, not how many this call adds.
        give_up_after: how many seconds to wait at most for another process that gives no sign of life: one that runs
            the last trials, or that was stopped while it held the study's lock. `None` for no limit.

    Returns:
        The study; under `torchrun`, on ranks other than 0, a view of it that can only be read. If a signal has stopped
        a trial in this process (`TrialInterrupted`), it is returned as it is, unfinished, and the trial waits to be
        gone on with.

    Raises:
        ConfigurationError: if `n_trials` is below 1, or `give_up_after` not above 0.
        ArgumentTypeError: if an argument has the wrong type, if `make_study` does not return a study, or `objective` no
            number.
        StudyStorageError: if the storage of the study is full, deleted, damaged or out of reach; the message says what
            to do. No trial has failed by that: run the study again.
        TrainingError: if the objective returns nan for 100 trials in a row, or for `n_trials` if that is more.
        StudyTimeoutError: if another process was waited for as long as `give_up_after` says.
        Exception: whatever the objective raises; Optuna has marked the trial as failed then, and it does not count.
        BaseException: whatever else ends the objective, as `KeyboardInterrupt`; the trial waits to be gone on with.
    """
    if isinstance(n_trials, bool) or not isinstance(n_trials, int):
        raise ArgumentTypeError(f"n_trials is {n_trials!r}: pass how many trials the study shall have finished")
    if n_trials < 1:
        raise ConfigurationError(f"n_trials is {n_trials}: pass at least 1")
    check_limit(give_up_after)
    check_callables(make_study, objective)
    info = get_dist_info()
    if info.world_size == 1:
        return _run_here(make_study, objective, n_trials, give_up_after)
    if info.rank > 0:
        return follow(objective)
    return lead(lambda announced: _run_here(make_study, announced, n_trials, give_up_after), objective)


def _run_here(
    make_study: Callable[[], optuna.Study],
    objective: Callable[[optuna.Trial], Any],
    n_trials: int,
    give_up_after: float | None,
) -> optuna.Study:
    with storage_errors():
        study = keep_trying(checked_study(make_study), is_beginning)
    be_patient(study)
    with rescued(study):
        return _run_to_end(study, objective, n_trials, give_up_after)


def _run_to_end(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], Any],
    n_trials: int,
    give_up_after: float | None,
) -> optuna.Study:
    lock = functools.partial(study_lock, study, give_up_after=give_up_after)
    others: OtherProcesses | None = None
    failures = _Failures(max(_FAILURES, n_trials))
    while True:
        # Whether there is a slot is looked up and taken by one process at a time: two that see the last one free would
        # both take it.
        turn = contextlib.ExitStack()
        with turn:
            with storage_errors():
                turn.enter_context(lock())
                _take_back_orphans(study)
            if not _has_slot(study, n_trials):
                turn.close()
                if _count(study, *_FINISHED) >= n_trials:
                    return study
                others = others or OtherProcesses(study, give_up_after)
                others.look()
                time.sleep(_POLL)
                continue
            others = None
            try:
                with _left_if_unrecorded() as taken:
                    study.optimize(
                        _once_taken(study, failures.counted(study, objective), taken, turn, lock), n_trials=1
                    )
            except _LostTrial as lost:
                get_root_logger().warning("%s", lost)
            except _LeftTrial as left:
                if isinstance(left.reason, TrialInterrupted):
                    return study
                raise left.reason from None


# Trials of this process that nobody runs any more, though their storage says so: it could not be written.
_Key: TypeAlias = tuple[int, str]
_left: Final[set[_Key]] = set()


def _key_of(trial: optuna.Trial | optuna.trial.FrozenTrial) -> _Key:
    return trial.number, str(trial.datetime_start)


@contextlib.contextmanager
def _left_if_unrecorded() -> Iterator[list[_Key]]:
    """Note the trials put into the list as left by this process if their storage fails."""
    taken: list[_Key] = []
    try:
        yield taken
    except (AssertionError, StudyStorageError, UnboundLocalError) as error:
        # "Should not reach", says Optuna of a trial whose end could not be recorded.
        cause = find_storage_error(error)
        if cause is None:
            raise
        _left.update(taken)
        raise cause from None


class _Failures:
    """Ends a study whose trials all fail, and none of them with an error: it would never come to its end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row = 0

    def counted(self, study: optuna.Study, objective: Callable[[optuna.Trial], Any]) -> Callable[[optuna.Trial], Any]:
        """Return the objective, with what it returns checked, and nan counted: Optuna makes a failed trial of it."""
        count = len(study.directions)

        def run(trial: optuna.Trial) -> Any:
            values = objective(trial)
            self._in_a_row = 0 if check_values(values, trial, count) else self._in_a_row + 1
            if self._in_a_row >= self._most:
                raise TrainingError(
                    f"the objective returned nan for {self._in_a_row} trials in a row, which counts as a failure: let "
                    "it return a number, or raise optuna.TrialPruned for trials that lead nowhere"
                )
            return values

        return run


class _LeftTrial(BaseException):
    """Passes through Optuna, and the trial stays as it is; a `KeyboardInterrupt` would have made a failed one of it."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(reason)
        self.reason = reason


class _LostTrial(BaseException):
    """Passes through Optuna, as `_LeftTrial`: another process has the trial, and what happened to it here is void."""


def _once_taken(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], Any],
    taken: list[_Key],
    turn: contextlib.ExitStack,
    lock: Callable[[], contextlib.AbstractContextManager[None]],
) -> Callable[[optuna.Trial], Any]:
    """Return the objective, which lets the next process have its turn as soon as it has its trial."""
    storage: Any = study._storage  # noqa: SLF001 - Optuna has no public way to it.

    def run(trial: optuna.Trial) -> Any:
        taken.append(_key_of(trial))
        _left.discard(taken[-1])
        try:
            record_heartbeat(storage, trial._trial_id)  # noqa: SLF001 - storages know ids alone.
            mark_owner(trial)
            turn.close()
            with beating(storage, trial._trial_id):  # noqa: SLF001 - as above.
                try:
                    return objective(trial)
                finally:
                    _ensure_owned(storage, trial)
        except BaseException as reason:
            # A rank that was killed has not failed in its trial, no more than this process would have.
            is_lost = isinstance(reason, RankFailedError) and reason.is_lost
            if isinstance(reason, Exception) and not (is_lost or isinstance(reason, StudyStorageError)):
                raise
            turn.close()
            if isinstance(reason, _LostTrial):
                raise
            try:
                with lock():
                    _let_wait(study, trial)
            except StudyStorageError:  # The storage fails still: the trial stays as it is, for the next call.
                _left.add(taken[-1])
            raise _LeftTrial(reason) from reason

    return run


def _ensure_owned(storage: Any, trial: optuna.Trial) -> None:
    owner = owner_of(storage.get_trial(trial._trial_id))  # noqa: SLF001 - storages know ids alone.
    if owner != this_process():
        raise _LostTrial(
            f"trial {trial.number} was taken over by {owner or 'nobody yet'}, while nothing was heard of this process:"
            " what it has come to here is dropped"
        )


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
    silences = keep_trying(lambda: _rdb.find_silences(storage, study._study_id)) if trials else {}  # noqa: SLF001 - as above.
    silent.update(trial_id for trial_id, seconds in silences.items() if seconds > SILENCE)
    for trial in trials:
        owner = owner_of(trial)
        lives = None if owner is None else is_alive(owner)
        # A trial without an owner was taken, and its process killed before it could sign: signing needs the lock.
        if owner == this_process() and _key_of(trial) in _left:
            lives = False
        if owner is None or lives is False or (lives is None and trial._trial_id in silent):  # noqa: SLF001 - as above.
            get_root_logger().info("trial %d was left by a process that is gone: it waits for its next", trial.number)
            _let_wait(study, trial)


def _let_wait(study: optuna.Study, trial: optuna.Trial | optuna.trial.FrozenTrial) -> None:
    """Put a trial back into its slot. Only with the study's lock: without an owner, it is there for anybody to take."""
    storage, trial_id = study._storage, trial._trial_id  # noqa: SLF001 - Optuna has no public way to let a trial wait.
    keep_trying(lambda: _rdb.forget_heartbeat(storage, trial_id))
    # The process may live on. Whoever takes the trial next, and is killed before it can sign, leaves no stale mark so.
    storage.set_trial_system_attr(trial_id, OWNER_KEY, None)
    storage.set_trial_state_values(trial_id, TrialState.WAITING)
    if isinstance(storage, InMemoryStorage):
        # It looks for waiting trials from where it last found one: it holds that none before can come to wait again.
        storage._prev_waiting_trial_number[study._study_id] = 0  # noqa: SLF001 - as above.
