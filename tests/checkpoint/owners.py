"""Processes that own a folder of checkpoints."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from helios.checkpoint.lock import FolderLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

context = multiprocessing.get_context("forkserver")
_forks = multiprocessing.get_context("fork")


def start(target: Callable[..., None], *args: Any) -> tuple[Any, Any]:
    """Start a process, and return it with what it sends first."""
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *args), daemon=False)
    process.start()
    there.close()
    return process, here.recv()


def own(ready: Connection, folder: Path) -> None:
    """Own a folder until the process is killed, while a forked worker lives beside it."""
    with FolderLock(folder):
        worker = os.fork()
        if worker == 0:
            signal.pause()
        ready.send(worker)
        signal.pause()


def own_as_rank(ready: Connection, folder: Path, seconds: float) -> None:
    """Have a child own a folder that ends so many seconds after this process."""
    parent = os.getpid()
    _forks.Process(target=_own_after, args=(ready, folder, seconds, parent), daemon=False).start()
    signal.pause()


def _own_after(ready: Connection, folder: Path, seconds: float, parent: int) -> None:
    with FolderLock(folder):
        ready.send(os.getpid())
        while os.getppid() == parent:
            time.sleep(0.01)
        time.sleep(seconds)
        os._exit(0)  # As a rank does that has lost its parent: nothing is tidied up.
