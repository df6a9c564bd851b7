"""Who has started a process, and is gone, is missed: by which way it went makes no difference."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import Dataset

from helios.data.loading import create_dataloader
from helios.ranks.processes import end_process, follow_parent, settle, settle_before_forks
from tests.processes import survivors

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PATIENCE = 60  # seconds; whoever needs longer waits for what will not come
TASKS = Path("/proc/self/task")
BRIEF = 4 << 20  # bytes, which are stirred in a twentieth of a second
SOON = 5  # seconds; a look is taken every second
FORKSERVER = multiprocessing.get_context("forkserver")


def follow(told: Connection) -> None:
    follow_parent()
    told.send((True, os.getpid()))
    time.sleep(PATIENCE)


def follow_late(told: Connection) -> None:
    """Begin to follow when the parent is gone."""
    parent = os.getppid()
    told.send((True, os.getpid()))
    while os.getppid() == parent:
        time.sleep(0.01)
    follow_parent()
    time.sleep(PATIENCE)


def stay(told: Connection) -> None:
    """Hold the ends of all pipes that the parent has, and follow nobody."""
    told.send((False, os.getpid()))
    time.sleep(PATIENCE)


def be_parent(told: Connection, method: str, work: Any) -> None:
    context: Any = multiprocessing.get_context(method)
    context.Process(target=work, args=(told,)).start()
    multiprocessing.get_context("fork").Process(target=stay, args=(told,)).start()
    time.sleep(PATIENCE)


@pytest.mark.parametrize(
    ("method", "work"), [("fork", follow), ("fork", follow_late), ("spawn", follow), ("forkserver", follow)]
)
def test_a_process_follows_its_parent(method: str, work: Any) -> None:
    """A process ends soon after its parent, however it was started, even if others hold the parent's pipe."""
    told, there = FORKSERVER.Pipe()
    parent = FORKSERVER.Process(target=be_parent, args=(there, method, work))
    parent.start()
    there.close()
    others: list[int] = []
    followers: list[int] = []
    for _ in range(2):
        does_follow, pid = told.recv()
        (followers if does_follow else others).append(pid)
    assert len(survivors([*followers, *others], patience=0)) == 2
    parent.kill()
    parent.join()
    left = survivors(followers, patience=SOON)
    for pid in (*others, *(int(line.split()[0]) for line in left)):
        os.kill(pid, signal.SIGKILL)
    assert left == []


class Slow(Dataset[torch.Tensor]):
    """Tells which process has fetched a sample."""

    draws_nothing = True

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(os.getpid())


def train(told: Connection) -> None:
    """Hold a lock that this process has in common with its data loader's workers, as when it ends an epoch."""
    batches = iter(create_dataloader(Slow(), num_workers=2)[0])
    workers = [int(next(batches)) for _ in range(2)]
    lock: Any = batches._workers_done_event._cond  # type: ignore[attr-defined]  # of torch's iterator
    with lock:
        told.send(workers)
        time.sleep(PATIENCE)


def test_workers_end_with_a_killed_process_that_holds_their_lock() -> None:
    """The workers of a data loader end with their killed process, also while they wait for it in torch."""
    told, there = FORKSERVER.Pipe()
    parent = FORKSERVER.Process(target=train, args=(there,), daemon=False)
    parent.start()
    there.close()
    workers = told.recv()
    parent.kill()
    parent.join()
    left = survivors(workers, patience=SOON)
    for line in left:
        os.kill(int(line.split()[0]), signal.SIGKILL)
    assert left == []


def lead() -> None:
    os.setpgid(0, 0)
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(PATIENCE,)).start()
    end_process()


def test_a_group_leader_ends_with_its_group() -> None:
    """`end_process` ends the processes that a rank has started; a process that leads no group ends alone."""
    leader = FORKSERVER.Process(target=lead, daemon=False)
    leader.start()
    leader.join()
    assert leader.exitcode == -signal.SIGKILL
    assert leader.pid is not None
    assert survivors([leader.pid]) == []
    alone = FORKSERVER.Process(target=end_process)
    alone.start()
    alone.join()
    assert alone.exitcode == 1


# -------------------------------------------------------------------------------------------------------------- forking


class Stirrer:
    """A thread that is not Python's, and is busy for a while: it stirs so many bytes."""

    def __init__(self, size: int) -> None:
        libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
        self._bytes = ctypes.create_string_buffer(b"x" * size)
        before = {*TASKS.iterdir()}
        assert libc.pthread_create(ctypes.byref(thread), None, libc.strfry, self._bytes) == 0
        libc.pthread_detach(thread)
        self._threads = {*TASKS.iterdir()} - before
        assert self.is_busy()

    def is_busy(self) -> bool:
        return bool(self._threads & {*TASKS.iterdir()})


def test_settle_waits_for_threads_of_libraries() -> None:
    """A busy thread of torch has finished its work when `settle` returns."""
    stirrer = Stirrer(BRIEF)
    settle()
    assert not stirrer.is_busy()


def work_on() -> None:
    """Report by the exit code that the wait for a thread that never ends was short and without success."""
    stirrer, began = Stirrer(100 * BRIEF), time.monotonic()
    settle()
    os._exit(stirrer.is_busy() and 0.5 <= time.monotonic() - began < 5)


def fork_beside_a_thread() -> None:
    """Say by the exit code whether a fork has waited for a thread."""
    settle_before_forks()
    stirrer = Stirrer(BRIEF)
    if os.fork() == 0:
        os._exit(0)
    os._exit(not stirrer.is_busy())


@pytest.mark.parametrize(
    "work",
    [
        work_on,
        pytest.param(
            fork_beside_a_thread,
            marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="children do not wait for locks from 3.12 on"),
        ),
    ],
)
def test_settle_has_a_limit(work: Any) -> None:
    """A fork waits for threads that hold a lock, and not forever for a thread that is always busy."""
    process = FORKSERVER.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 1
