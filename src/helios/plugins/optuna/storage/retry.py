"""Waiting for a database that is locked, or away for a moment, instead of losing a trial to it."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sql
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage

from helios.core.logging import get_root_logger
from helios.plugins.optuna.storage.errors import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import optuna
    from optuna.trial import TrialState

PATIENCE: Final = 120.0  # Seconds after which a database that does not come back is given up.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0

# Each is one transaction, which has happened or not when it fails, and may be tried again.
_CALLS: Final = (
    "_create_new_trial",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
    "_get_trials",
    "_set_trial_param",
    "get_all_studies",
    "get_study_directions",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_system_attrs",
    "get_study_user_attrs",
    "get_trial",
    "get_trial_id_from_study_id_trial_number",
    "record_heartbeat",
    "set_study_system_attr",
    "set_study_user_attr",
    "set_trial_intermediate_value",
    "set_trial_system_attr",
    "set_trial_user_attr",
)

_Result = TypeVar("_Result")


def is_locked(error: BaseException) -> bool:
    """Return whether SQLite has waited, and another connection held the file all the while."""
    cause = _cause_of(error)
    return isinstance(cause, sql.exc.OperationalError) and "is locked" in str(cause.orig)


def is_passing(error: BaseException) -> bool:
    """Return whether an error may be gone a moment later: a locked file, a server that restarts, a lost connection."""
    cause = _cause_of(error)
    if not isinstance(cause, sql.exc.DBAPIError):
        return False
    if type(cause.orig).__module__.startswith("sqlite3"):
        return is_locked(error)
    return cause.connection_invalidated or isinstance(cause, sql.exc.OperationalError)


def is_beginning(error: BaseException) -> bool:
    """Return whether making a study may have failed because of others who were making it, or its tables, as well."""
    cause = _cause_of(error)
    if not isinstance(cause, sql.exc.DBAPIError):
        return False
    return is_locked(error) or isinstance(cause, sql.exc.IntegrityError) or "already exists" in str(cause.orig)


def _cause_of(error: BaseException) -> BaseException | None:
    return error.__cause__ if isinstance(error, StorageInternalError) else error


def keep_trying(call: Callable[[], _Result], can_pass: Callable[[BaseException], bool] = is_passing) -> _Result:
    """Return what a call returns, tried again for up to two minutes while its errors may pass.

    Args:
        call: what can be done again when it has failed.
        can_pass: says of an error whether to try again.
    """
    pause, deadline = _FIRST_PAUSE, time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except (StorageInternalError, sql.exc.DBAPIError) as error:
            if not can_pass(error) or time.monotonic() + pause > deadline:
                raise
            get_root_logger().warning("the database cannot be used: trying again in %.1f s (%s)", pause, _say(error))
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _say(error: BaseException) -> str:
    cause = _cause_of(error)
    text = str(cause.orig) if isinstance(cause, sql.exc.DBAPIError) else str(cause)
    return text.strip().partition("\n")[0]


class PatientStorage(RDBStorage):
    """Optuna's own storage in a database, which waits where the original raises."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state, once, though the answer to the first attempt may have been lost."""
        attempts = 0

        def attempt() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                if attempts > 1 and RDBStorage.get_trial(self, trial_id).state == state:
                    return True
                raise

        with storage_errors():
            return keep_trying(attempt)


def _make_patient(name: str) -> Any:
    original = getattr(RDBStorage, name)

    @functools.wraps(original)
    def call(self: RDBStorage, *args: Any, **kwargs: Any) -> Any:
        with storage_errors():
            return keep_trying(functools.partial(original, self, *args, **kwargs))

    return call


for _name in _CALLS:
    setattr(PatientStorage, _name, _make_patient(_name))


def be_patient(study: optuna.Study) -> None:
    """Let a study's storage wait for its database from now on; storages of other kinds stay as they are."""
    backend: Any = getattr(study._storage, "_backend", None)  # noqa: SLF001 - optuna has no public way to the database.
    # The object is shared by all who use the study, and keeps its connections: only what its calls do is changed.
    if type(backend) is RDBStorage:
        backend.__class__ = PatientStorage
