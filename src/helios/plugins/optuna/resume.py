"""`resume_study`, which continues a study after its processes were killed or its trials failed."""

from __future__ import annotations

import dataclasses
import sqlite3
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from helios.core.logging import get_root_logger
from helios.errors import ConfigurationError, MissingArgumentError, StudyInUseError, StudyStorageError
from helios.plugins.optuna.arguments import check_failed_states, check_flag, check_study_args
from helios.plugins.optuna.storage import backups, rdb
from helios.plugins.optuna.storage.errors import storage_errors
from helios.plugins.optuna.storage.heartbeat import STALE_AFTER
from helios.plugins.optuna.storage.locks import study_lock
from helios.plugins.optuna.storage.owners import is_alive, this_process

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import sqlalchemy
    from optuna.storages import BaseStorage


def resume_study(
    study_args: Mapping[str, Any],
    failed_states: Collection[TrialState] | TrialState = (TrialState.FAIL,),
    backup_study: bool = True,
) -> optuna.Study:
    """Resume an interrupted study: finished trials are kept, and failed trials are set to waiting.

    A study that does not exist is created; a study without trials is returned unchanged. Trials in `failed_states` wait
    with their numbers, parameters, attributes and intermediate values. A running trial outside `failed_states` whose
    process is gone is marked as failed. All of this is one transaction: a crash leaves either the old study or the new
    one. Other studies in the database are not changed.

    A trial counts as running if `OptunaPlugin` or `run_study` runs it in a live process on this host, or if it has a
    recent heartbeat of Optuna's. A trial with neither a recorded process nor a heartbeat counts as abandoned.

    Args:
        study_args: the arguments of `optuna.create_study`. `storage` must be a database URL, and `load_if_exists` must
            be true. Without `study_name`, the study is the only one in the database, or a new one if there is none.
            Sampler and pruner of the result are those given here; its directions and attributes are those of the study.
        failed_states: the states that count as failed, or a single one. `TrialState.RUNNING` states that no process
            runs the trials of processes on other hosts, which cannot be checked from here, nor those of this process.
        backup_study: whether to copy the study before it is changed: for SQLite the whole file, to `study-backup-1.db`
            and so on beside it; in other databases the study, to `<name>-backup-1` and so on in the database.

    Returns:
        The study.

    Raises:
        ArgumentTypeError: if `storage` is not a string, `failed_states` contains a value that is not a state, or
            another argument has the wrong type.
        MissingArgumentError: if `load_if_exists` is not true, or `study_name` is not given and the database has several
            studies.
        ConfigurationError: if `storage` is not a database URL, `failed_states` contains a state of finished trials, or
            `optuna.create_study` rejects `study_args`.
        StudyStorageError: if the database, or the disk of its backup, is full, damaged or unreachable; the study is
            unchanged.
        StudyInUseError: if a process runs a trial of the study, and the database is SQLite; the study is unchanged. In
            other databases such trials are skipped.
    """
    study_args, failed_states = check_study_args(study_args), check_failed_states(failed_states)
    check_flag("backup_study", backup_study)
    with storage_errors():
        database = rdb.open_storage(study_args["storage"])
    try:
        with storage_errors():
            name = study_args.get("study_name") or _find_only_study(database)
            study = _create_study({**study_args, "study_name": name, "storage": database})
            # `run_study` holds this lock until the owner of a new trial is recorded.
            with study_lock(study):
                _requeue(database.engine, study.study_name, failed_states, backup_study=backup_study)
    except BaseException:
        database.remove_session()
        database.engine.dispose()
        raise
    return study


def _find_only_study(database: BaseStorage) -> str | None:
    """Return the name of the only study in a database; `None` if there is none.

    Raises:
        MissingArgumentError: if there are several.
    """
    names = optuna.get_all_study_names(database)
    if len(names) > 1:
        raise MissingArgumentError(
            f"study_args lacks study_name, and the database has {len(names)}: choose from {names}"
        )
    return names[0] if names else None


def _create_study(study_args: Mapping[str, Any]) -> optuna.Study:
    try:
        return optuna.create_study(**study_args)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"optuna.create_study rejects study_args ({error}): correct them") from error


def _requeue(
    engine: sqlalchemy.Engine, study_name: str, failed_states: Collection[TrialState], *, backup_study: bool
) -> None:
    is_file = engine.dialect.name == "sqlite"
    with rdb.transaction(engine, study_name) as (connection, study_id):
        if not rdb.has_trials(connection, study_id):
            return
        plan = _make_plan(rdb.read_trials(connection, study_id, {*failed_states, TrialState.RUNNING}), failed_states)
        if is_file:
            plan.ensure_free(study_name)
        if backup_study:
            back_up = backups.back_up_file if is_file else backups.back_up_study
            try:
                backup = back_up(connection, study_name)
            except (OSError, sqlite3.Error) as error:
                raise StudyStorageError(
                    f"study {study_name!r} could not be backed up ({error}), and was not changed: make room beside its "
                    "database, or pass backup_study=False"
                ) from error
            get_root_logger().info("the backup of study %r is %s", study_name, backup)
        rdb.requeue(connection, plan.waiting)
        rdb.mark_failed(connection, plan.failing)
    plan.report()


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The changes to the unfinished trials of a study.

    Attributes:
        waiting: ids of the trials to set to waiting.
        failing: ids of the trials to mark as failed.
        running: trials that a process runs.
        unclear: trials that may be run by a process on another host or in another container.
    """

    waiting: list[int]
    failing: list[int]
    running: list[rdb.TrialRow]
    unclear: list[rdb.TrialRow]

    def ensure_free(self, study_name: str) -> None:
        """Raise if a process runs a trial, or may run one."""
        if self.running:
            raise StudyInUseError(
                f"study {study_name!r} is in use: {_describe(self.running)}. Wait for them, or end these processes"
            )
        if self.unclear:
            raise StudyInUseError(
                f"study {study_name!r} may be in use, by processes that cannot be seen from here:"
                f" {_describe(self.unclear)}. If they are gone, add TrialState.RUNNING to failed_states"
            )

    def report(self) -> None:
        """Log the changes, and the trials that were skipped."""
        logger = get_root_logger()
        if self.waiting or self.failing:
            logger.info("set %d trials to waiting and %d to failed", len(self.waiting), len(self.failing))
        if self.running:
            logger.info("skipped because they are running: %s", _describe(self.running))
        if self.unclear:
            logger.warning(
                "skipped because their processes cannot be seen from here: %s. If they are gone, add TrialState.RUNNING"
                " to failed_states",
                _describe(self.unclear),
            )


def _make_plan(rows: list[rdb.TrialRow], failed_states: Collection[TrialState]) -> _Plan:
    plan = _Plan([], [], [], [])
    for row in rows:
        has_failed = row.state in failed_states
        is_running = row.state is TrialState.RUNNING and _is_running(row)
        if is_running and not (has_failed and row.owner == this_process()):
            plan.running.append(row)
        elif has_failed:
            plan.waiting.append(row.trial_id)
        elif is_running is None:
            plan.unclear.append(row)
        else:
            plan.failing.append(row.trial_id)
    return plan


def _is_running(row: rdb.TrialRow) -> bool | None:
    """Return whether a process runs a trial, or `None` if this process cannot tell."""
    has_recent_heartbeat = None if row.heartbeat_age is None else row.heartbeat_age < STALE_AFTER
    if row.owner is None:
        return bool(has_recent_heartbeat)
    lives = is_alive(row.owner)
    return has_recent_heartbeat if lives is None else lives


def _describe(rows: list[rdb.TrialRow]) -> str:
    return ", ".join(f"trial {row.number} by {row.owner or 'a process with a recent heartbeat'}" for row in rows)
