"""Only one run at a time may train in a process: two would draw from the same random generators."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from typing import TYPE_CHECKING, Any, Final

from helios.core.state import Phase
from helios.errors import RunInProgressError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """A run that is in progress: its trainer and thread, and its name for errors."""

    trainer: Any
    thread: threading.Thread
    name: str
    trains_here: bool


_runs: Final[list[_Run]] = []
_lock: Any = threading.Lock()


def _forget_runs() -> None:
    """Forget the runs in a forked process: those of its parent use the parent's generators."""
    global _lock  # noqa: PLW0603 - a lock held by another thread of the parent would stay locked forever.
    _lock = threading.Lock()
    _runs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_runs)


@contextlib.contextmanager
def exclusive(trainer: Any, phase: Phase, save_name: str, *, trains_here: bool) -> Iterator[None]:
    """Register a run while the context lasts.

    Runs that train in other processes may be in progress at the same time, each with its own thread and trainer.

    Args:
        trainer: the trainer that starts the run.
        phase: training or testing.
        save_name: the name of its model.
        trains_here: whether it trains or tests in this process.

    Raises:
        RunInProgressError: if it would disturb another run that is in progress.
    """
    name = f"{'test' if phase is Phase.TESTING else 'fit'} of {save_name!r}"
    run = _Run(trainer, threading.current_thread(), name, trains_here)
    with _lock:
        for other in _runs:
            _ensure_apart(run, other)
        _runs.append(run)
    try:
        yield
    finally:
        with _lock:
            _runs.remove(run)


def _ensure_apart(run: _Run, other: _Run) -> None:
    if run.thread is other.thread:
        raise RunInProgressError(
            f"{run.name} was called while {other.name} is in progress in the same thread, by a hook of it: call it "
            "when that has returned, or in another process"
        )
    where = f"{run.name} was called while {other.name} is in progress in thread {other.thread.name!r}"
    if run.trains_here and other.trains_here:
        raise RunInProgressError(
            f"{where} of this process, and both would draw from the same random generators: start them one after the "
            "other, or each in a process of its own"
        )
    if run.trainer is other.trainer:
        raise RunInProgressError(f"{where}, with the same trainer: give each thread a trainer of its own")
