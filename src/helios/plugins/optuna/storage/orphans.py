"""Trials whose process is gone: they wait again, with their numbers, parameters and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from helios.core.logging import get_root_logger
from helios.plugins.optuna.optuna_internals import find_all_waiting_trials, storage_of, trial_id_of
from helios.plugins.optuna.storage.delegating import database_of
from helios.plugins.optuna.storage.heartbeat import STALE_AFTER
from helios.plugins.optuna.storage.owners import OWNER_KEY, is_alive, owner_of, this_process
from helios.plugins.optuna.storage.rdb import delete_heartbeat, find_heartbeat_ages
from helios.plugins.optuna.storage.retry import retry

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

TrialKey: TypeAlias = tuple[int, str]

# Trials of this process that it no longer runs. Their storage still names it as the owner, because a write has failed.
abandoned_trials: Final[set[TrialKey]] = set()


def key_of(trial: optuna.Trial | FrozenTrial) -> TrialKey:
    """Return what identifies one run of a trial."""
    return trial.number, str(trial.datetime_start)


def requeue_orphans(study: optuna.Study) -> None:
    """Requeue all trials whose process is gone. The caller must hold the study's lock."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    stale = _find_stale(study) if trials else set()
    for trial in trials:
        owner = owner_of(trial)
        lives = None if owner is None else is_alive(owner)
        if owner == this_process() and key_of(trial) in abandoned_trials:
            lives = False
        # A trial without an owner belongs to a process that was killed before it recorded itself, under the lock.
        if owner is None or lives is False or (lives is None and trial_id_of(trial) in stale):
            get_root_logger().info("the process of trial %d is gone: the trial is run again", trial.number)
            requeue_trial(study, trial)


def _find_stale(study: optuna.Study) -> set[int]:
    """Return the ids of the running trials whose last heartbeat is too old."""
    storage = storage_of(study)
    database = database_of(storage)
    if database is None:
        return set()
    study_id = storage.get_study_id_from_name(study.study_name)
    limit, interval = STALE_AFTER, database.heartbeat_interval
    if interval is not None:  # With a grace period in the storage, Optuna would mark the trial as failed after it.
        limit = min(limit, database.grace_period or 2 * interval)
    ages = retry(lambda: find_heartbeat_ages(storage, study_id))
    return {trial_id for trial_id, age in ages.items() if age > limit}


def requeue_trial(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> None:
    """Set a trial to waiting. The caller must hold the study's lock: any process may take the trial afterwards."""
    storage, trial_id = storage_of(study), trial_id_of(trial)
    retry(lambda: delete_heartbeat(storage, trial_id))
    # This process may still be alive: a process that takes the trial next may be killed before it records itself.
    storage.set_trial_system_attr(trial_id, OWNER_KEY, None)
    storage.set_trial_state_values(trial_id, TrialState.WAITING)
    if isinstance(storage, InMemoryStorage):
        find_all_waiting_trials(storage, storage.get_study_id_from_name(study.study_name))
