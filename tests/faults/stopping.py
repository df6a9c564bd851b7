"""Processes that are stopped for a while, as by SIGSTOP from a terminal."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def stopped(pid: int | None) -> Iterator[None]:
    """Have a process be stopped while the context lasts."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # Somebody has ended it.
            os.kill(pid, signal.SIGCONT)
