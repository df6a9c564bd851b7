"""What the tests of faults share: a limit of time, because what they prove is that nothing waits for ever."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest

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


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Have a test fail that has not ended after a minute: Python's own calls, such as `open`, are interrupted."""

    def fail(*_: object) -> None:
        pytest.fail("it waits for ever", pytrace=True)

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
