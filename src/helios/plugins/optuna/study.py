"""Studies that are taken up again after they were interrupted."""

from __future__ import annotations

import dataclasses
import sqlite3
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from helios.core.logging import get_root_logger
from helios.errors import ConfigurationError, StudyInUseError, StudyStorageError
from helios.plugins.optuna._arguments import check_failed_states, check_flag, check_study_args
from helios.plugins.optuna.storage import backups, rdb
from helios.plugins.optuna.storage.errors import storage_errors
from helios.plugins.optuna.storage.heartbeat import SILENCE
from helios.plugins.optuna.storage.locks import study_lock
from helios.plugins.optuna.storage.owners import is_alive, this_process

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import sqlalchemy


def resume_study(
    study_args: Mapping[str, Any],
    failed_states: Collection[TrialState] | TrialState = (TrialState.FAIL,),
    backup_study: bool = True,
) -> optuna.Study:
    """Take up a study where it was interrupted: what has finished stays as it is, what failed waits for its next run.

    A study that does not exist is created; one without trials is returned as it is. Trials in `failed_states` wait in
    the slots of their own numbers, with their parameters, attributes and intermediate values. A running trial outside
    `failed_states` whose process is gone is marked as failed. All this happens in one transaction: a crash leaves the
    old study or the new one. Other studies in the database are not touched.

    A trial is known to be run by a live process if `OptunaPlugin` or `run_study` runs it on this host, or if it has a
    fresh heartbeat of Optuna's. A trial with neither mark nor heartbeat counts as left behind.

    Args:
        study_args: the arguments of `optuna.create_study`. `storage` must be a database URL, `study_name` must be
            given, and `load_if_exists` must be true. Sampler and pruner of the result are those given here; its
            directions and attributes are those of the study.
        failed_states: the states that count as failed, or one alone. With `TrialState.RUNNING` among them, the caller
            says that nobody runs the trials whose processes cannot be seen from here (on other hosts), nor those of
            this process.
        backup_study: keep a copy of what the study was before: for SQLite, of the whole file beside it
            (`study-backup-1.db` and so on); in other databases, of the study beside it (`<name>-backup-1` and so on).

    Returns:
        The study.

    Raises:
        ArgumentTypeError: if `storage` is no string, `failed_states` holds something else than states, or another
            argument has the wrong type.
        MissingArgumentError: if `load_if_exists` is not true, or `study_name` is not given.
        ConfigurationError: if `storage` is no database URL, states of finished trials are among `failed_states`, or no
            study can be made of `study_args`.
        StudyStorageError: if the database, or the disk of its backup, is full, damaged or out of reach; nothing has
            changed then.
        StudyInUseError: if a process runs a trial of the study, and the database is SQLite; nothing has changed then.
            In other databases such trials are left alone.
    """
    study_args, failed_states = check_study_args(study_args), check_failed_states(failed_states)
    check_flag("backup_study", backup_study)
    with storage_errors():
        database = rdb.open_storage(study_args["storage"])
    try:
        with storage_errors():
            study = _create_study({**study_args, "storage": database})
            # Under this lock `run_study` marks its trials: none is found before its mark.
            with study_lock(study):
                _take_up(database.engine, study.study_name, failed_states, backup_study=backup_study)
    except BaseException:
        database.remove_session()
        database.engine.dispose()
        raise
    return study


def _create_study(study_args: Mapping[str, Any]) -> optuna.Study:
    try:
        return optuna.create_study(**study_args)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"no study can be made of study_args ({error}): correct them") from error


def _take_up(
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
                kept = back_up(connection, study_name)
            except (OSError, sqlite3.Error) as error:
                raise StudyStorageError(
                    f"study {study_name!r} could not be backed up ({error}), and was not changed: make room beside its "
                    "database, or pass backup_study=False"
                ) from error
            get_root_logger().info("study %r as it was is kept in %s", study_name, kept)
        rdb.requeue(connection, plan.waiting)
        rdb.let_fail(connection, plan.failing)
    plan.report()


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What becomes of the trials that have not finished.

    Attributes:
        waiting: ids of trials that shall wait.
        failing: ids of trials that shall be marked as failed.
        running: trials that a process runs.
        unclear: trials of which nobody here can tell whether a process runs them.
    """

    waiting: list[int]
    failing: list[int]
    running: list[rdb.TrialRow]
    unclear: list[rdb.TrialRow]

    def ensure_free(self, study_name: str) -> None:
        """Refuse if anybody runs a trial, or might."""
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
        """Say what was done, and what was left."""
        logger = get_root_logger()
        if self.waiting or self.failing:
            logger.info("%d trials wait again, %d are marked as failed", len(self.waiting), len(self.failing))
        if self.running:
            logger.info("left alone: %s", _describe(self.running))
        if self.unclear:
            logger.warning(
                "left alone, though their processes cannot be seen from here and may be gone: %s. If they are, add"
                " TrialState.RUNNING to failed_states",
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
    """Return whether a process runs a trial, or `None` where that cannot be known."""
    is_beating = None if row.silence is None else row.silence < SILENCE
    if row.owner is None:
        return bool(is_beating)
    lives = is_alive(row.owner)
    return is_beating if lives is None else lives


def _describe(rows: list[rdb.TrialRow]) -> str:
    return ", ".join(f"trial {row.number} by {row.owner or 'a process with a fresh heartbeat'}" for row in rows)
