"""Signs of life of the process that runs a trial, for those who cannot see that process.

They are Optuna's own heartbeats, in its table, and each `run_study` on a database records them, whether or not its
storage was made with `heartbeat_interval`. That argument stays the user's: it would also have Optuna *fail* trials that
are silent, those of stopped processes on this host among them, where a study that is to end exactly lets them wait.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Final

from optuna.storages import RDBStorage

from helios.core.logging import get_root_logger
from helios.plugins.optuna.storage.locks import sqlite_path
from helios.plugins.optuna.storage.owners import owner_of, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator

BEAT: Final = 60.0  # Seconds between two signs of life.
# A process that beats at all, and has not for so long, is gone. Databases may be away for two minutes: see PATIENCE.
SILENCE: Final = 300.0


def record_heartbeat(storage: Any, trial_id: int) -> None:
    """Give a sign of life for a trial, on a storage that has a place for it."""
    if has_heartbeats(storage):
        storage.record_heartbeat(trial_id)


def has_heartbeats(storage: Any) -> bool:
    """Return whether other processes can read a sign of life from a storage."""
    backend = getattr(storage, "_backend", storage)
    if not isinstance(backend, RDBStorage):
        return False
    # A database in memory is one for each of its connections, and this process's alone.
    return backend.engine.dialect.name != "sqlite" or bool(sqlite_path(backend.engine))


@contextlib.contextmanager
def beating(storage: Any, trial_id: int) -> Iterator[None]:
    """Give signs of life for a trial, in a thread, while the context lasts and the trial is this process's."""
    if not has_heartbeats(storage):
        yield
        return
    is_over = threading.Event()
    thread = threading.Thread(target=_beat, args=(storage, trial_id, is_over), name="helios-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _beat(storage: Any, trial_id: int, is_over: threading.Event) -> None:
    while not is_over.wait(BEAT):
        try:
            # Somebody may have taken the trial while this process was stopped.
            if owner_of(storage.get_trial(trial_id)) != this_process():
                return
            storage.record_heartbeat(trial_id)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises: the trial goes on, and the next beat may come through.
            get_root_logger().warning("the heartbeat of a trial could not be recorded: %s", error)
        finally:
            storage.remove_session()  # Each thread has one of its own.
