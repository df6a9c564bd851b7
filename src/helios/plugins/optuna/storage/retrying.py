"""`RetryingStorage`, a storage that waits for its database instead of failing a trial."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from optuna.exceptions import UpdateFinishedTrialError

from helios.plugins.optuna.optuna_internals import (
    find_stale_trial_ids,
    register_heartbeats,
    set_storage,
    storage_of,
)
from helios.plugins.optuna.storage.delegating import DelegatingStorage, database_of
from helios.plugins.optuna.storage.errors import storage_errors
from helios.plugins.optuna.storage.retry import retry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, TrialState

_NOT_RETRIED: Final = ("create_new_study", "delete_study", "remove_session")


class RetryingStorage(DelegatingStorage):
    """A storage that repeats a call of the storage that it wraps while its database is locked or cannot be reached.

    Each call is one transaction, so that a failed call has either changed nothing or, where only the connection was
    lost after the commit, everything. Study creation and deletion are not repeated: a second call would find the
    result of the first.

    Args:
        wrapped: a storage in a relational database, or Optuna's cache of one.
    """

    def __init__(self, wrapped: BaseStorage) -> None:
        super().__init__(wrapped)
        register_heartbeats(type(self))

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the wrapped storage by its name, and repeat it while its errors are transient.

        Raises:
            StudyStorageError: if the database fails for good.
        """
        call = functools.partial(super().call, name, *args, **kwargs)
        if name in _NOT_RETRIED:
            return call()
        with storage_errors():
            return retry(call)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state once, also where the connection was lost after the first attempt had succeeded."""
        attempts = 0

        def attempt() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                return self.wrapped.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if attempts > 1 and self.wrapped.get_trial(trial_id).state == state:
                    return True
                raise

        with storage_errors():
            return retry(attempt)

    def record_heartbeat(self, trial_id: int) -> None:
        """Record the heartbeat of a trial."""
        self.call("record_heartbeat", trial_id)

    def get_heartbeat_interval(self) -> int | None:
        """Return the interval at which Optuna records heartbeats; `None` if it does not."""
        interval: int | None = self.call("get_heartbeat_interval")
        return interval

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, FrozenTrial], None] | None:
        """Return what Optuna calls with a trial that it has marked as failed because its heartbeat was stale."""
        callback: Callable[[optuna.Study, FrozenTrial], None] | None = self.call("get_heartbeat_stale_trial_callback")
        return callback

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:  # Optuna calls it by this name.
        with storage_errors():
            return retry(functools.partial(find_stale_trial_ids, self.wrapped, study_id))


def retry_storage(study: optuna.Study, trial: optuna.Trial | None = None) -> None:
    """Wrap the storage of a study in a `RetryingStorage` if it is a relational database that is not wrapped yet.

    Args:
        study: the study; its storage is replaced.
        trial: a trial of the study that was created before, if there is one; its storage is replaced as well.
    """
    storage = storage_of(study)
    if not isinstance(storage, RetryingStorage):
        if database_of(storage) is None:
            return
        storage = RetryingStorage(storage)
        set_storage(study, storage)
    if trial is not None:
        trial.storage = storage
