"""Heartbeats of the process that runs a trial, for processes on other hosts and in other containers.

They are stored in Optuna's own table, and `run_study` records them in every database, whether or not the storage was
created with `heartbeat_interval`. With that argument Optuna also *fails* every trial whose heartbeat is stale, for
example that of a stopped process on this host, which `run_study` requeues instead.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Final

from helios.core.logging import get_root_logger
from helios.plugins.optuna.storage.delegating import database_of
from helios.plugins.optuna.storage.locks import sqlite_path
from helios.plugins.optuna.storage.owners import owner_of, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna.storages import BaseStorage

HEARTBEAT_INTERVAL: Final = 60.0  # Seconds.
# Seconds without a heartbeat after which a process counts as gone. It exceeds `RETRY_TIMEOUT`, during which a process
# that waits for its database cannot record one.
STALE_AFTER: Final = 300.0


def record_heartbeat(storage: Any, trial_id: int) -> None:
    """Record a heartbeat for a trial, if the storage supports them."""
    if supports_heartbeats(storage):
        storage.record_heartbeat(trial_id)


def supports_heartbeats(storage: BaseStorage) -> bool:
    """Return whether other processes can read heartbeats from a storage."""
    database = database_of(storage)
    if database is None:
        return False
    # Each connection to a SQLite database in memory has a database of its own.
    return database.engine.dialect.name != "sqlite" or bool(sqlite_path(database.engine))


@contextlib.contextmanager
def heartbeats(storage: Any, trial_id: int) -> Iterator[None]:
    """Record heartbeats for a trial in a thread while the context lasts and this process owns the trial."""
    if not supports_heartbeats(storage):
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(
        target=_record_until, args=(stop, storage, trial_id), name="helios-heartbeat", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _record_until(stop: threading.Event, storage: Any, trial_id: int) -> None:
    while not stop.wait(HEARTBEAT_INTERVAL):
        try:
            # Another process may have taken the trial over while this one was stopped.
            if owner_of(storage.get_trial(trial_id)) != this_process():
                return
            storage.record_heartbeat(trial_id)
        except Exception as error:  # noqa: BLE001 - drivers raise errors of all kinds, and the next attempt may succeed.
            get_root_logger().warning("the heartbeat of a trial could not be recorded: %s", error)
        finally:
            storage.remove_session()  # Each thread has its own.
