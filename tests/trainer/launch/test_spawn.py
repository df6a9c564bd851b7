"""What the process that has started ranks makes of how they end."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from typing import Any

import pytest

from helios.ranks.failures import Failure
from helios.trainer.launch.spawn import _choose_context, _describe_end, _RankPool
from tests.processes import survivors


def first_of(*failures: Failure) -> Failure:
    pool = object.__new__(_RankPool)
    pool._failures = {failure.rank: failure for failure in failures}
    return pool._first_failure()


def test_an_echo_is_never_first() -> None:
    """An echo may arrive before the failure of the lost rank; the lost rank is reported as the first."""
    echo, late_echo = (Failure(rank, "here", 1.0 + rank, "Connection closed", is_echo=True) for rank in (0, 1))
    killed, follower = (Failure(rank, "here", 3.0 + rank, "it was ended by SIGKILL") for rank in (2, 3))
    assert first_of(echo, late_echo, follower, killed) == killed
    assert first_of(late_echo, echo) == echo, "where there is nothing else, an echo is all that is known"


@pytest.mark.parametrize(
    ("code", "has_begun", "text"),
    [
        (-9, True, "it was ended by SIGKILL"),
        (-11, False, "it was ended by SIGSEGV"),
        (3, True, "it ended without a word, with exit code 3"),
        (0, True, "it ended without a word, with exit code 0"),
        (1, False, "it ended with exit code 1 before it could begin. If the script calls fit at its top level"),
    ],
)
def test_the_end_of_a_rank_is_described(code: int, text: str, *, has_begun: bool) -> None:
    """A signal is named; for a rank that never began, the text refers to the script."""
    assert _describe_end(code, has_begun=has_begun).startswith(text)


@pytest.mark.parametrize(
    ("chosen", "used"), [(None, "spawn"), ("spawn", "spawn"), ("forkserver", "forkserver"), ("fork", "spawn")]
)
def test_ranks_are_never_forked_from_the_calling_process(chosen: str | None, used: str) -> None:
    """A program that has chosen the fork server gets ranks from it; all others get new interpreters."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(chosen, force=True)
    try:
        assert _choose_context().get_start_method() == used
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_ctrl_c_during_the_shutdown_ends_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while finished ranks shut down slowly kills them; a rank that never started causes no error."""
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=time.sleep, args=(60,)) for _ in range(3)]
    for process in processes[:2]:
        process.start()
    pids = [process.pid for process in processes[:2] if process.pid is not None]
    join, joins = processes[0].join, itertools.count()

    def wait(timeout: float | None = None) -> None:
        if next(joins) == 0:
            raise KeyboardInterrupt
        join(timeout)

    monkeypatch.setattr(processes[0], "join", wait)
    pool: Any = object.__new__(_RankPool)
    pool._processes, pool._connections, pool._results, pool._world_size = processes, {}, {0: b"", 1: b""}, 2
    with pytest.raises(KeyboardInterrupt):
        pool._end()
    assert survivors(pids, patience=0) == []
