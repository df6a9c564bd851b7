"""One run at a time in a process: two would draw from the same random generators, and neither would be exact."""

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
    """A run that is in progress: who has started it, and what to call it."""

    trainer: Any
    thread: threading.Thread
    name: str
    trains_here: bool


_runs: Final[list[_Run]] = []
_lock: Any = threading.Lock()


def _forget_runs() -> None:
    """Begin without runs in a process that was just forked: those of its parent draw from the parent's generators."""
    global _lock  # noqa: PLW0603 - one held by another thread of the parent would stay locked for ever.
    _lock = threading.Lock()
    _runs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_runs)


@contextlib.contextmanager
def exclusive(trainer: Any, phase: Phase, save_name: str, *, trains_here: bool) -> Iterator[None]:
    """Register a run while the context lasts.

    Runs that train in processes of their own may be in progress side by side, each started by a thread and a trainer
    of its own.

    Args:
        trainer: the trainer that starts it.
        phase: training or testing.
        save_name: the name of its model.
        trains_here: whether it trains or tests in this process.

    Raises:
        RunInProgressError: if another run is in progress that it would disturb.
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
