"""Processes of processes: how they are made in no time, and who of them is left."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def fork_ranks() -> None:
    """Let `fit` in this process, a child of the fork server, have its ranks forked from that same server.

    Python would start a server of its own for every such process, which must import torch and everything first.
    """
    mock.patch.object(multiprocessing.forkserver._forkserver, "ensure_running").start()
    multiprocessing.set_start_method("forkserver", force=True)


def survivors(processes: Iterable[int], patience: float = 2.0) -> list[str]:
    """Return who is still alive of ranks and of all that they have started, once they had the time to be gone.

    Args:
        processes: the ranks, and whoever else is known. Each rank leads a process group, of all that it starts.
        patience: in seconds; who was killed takes a moment to die.
    """
    known, deadline = {*processes}, time.monotonic() + patience
    while True:
        alive = [line for line in _alive() if {int(line.split()[0]), int(line.split()[1])} & known]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.02)


def _alive() -> Iterator[str]:
    """Iterate over this machine's processes: number, process group and state, and the name."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name is in brackets and may hold anything.
            name, _, rest = path.read_text(encoding="utf-8", errors="replace").rpartition(")")
            state, _, group = rest.split()[:3]
            if state not in "ZX":
                yield f"{path.parent.name} {group} {state} {name.partition('(')[2]}"
