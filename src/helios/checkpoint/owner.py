"""Who owns a folder of checkpoints, as its lock file says."""

from __future__ import annotations

import dataclasses
import datetime
import json
import multiprocessing
import os
import socket
from pathlib import Path

from helios.core.distributed import is_using_torchrun
from helios.core.environment import read_environment
from helios.ranks.processes import exists


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        pid: its process.
        host: the name of its machine.
        since: when it took the lock, in ISO 8601.
        started: when the process was started, as the system counts it; `None` where it does not tell.
        supervisor: the process without which it ends by itself: the caller of `fit`, for a rank; `None` for none.
    """

    pid: int
    host: str
    since: str
    started: str | None = None
    supervisor: int | None = None

    @classmethod
    def here(cls) -> Owner:
        """Return the description of this process."""
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), since, _start_of(os.getpid()), _find_supervisor())

    @classmethod
    def parse(cls, content: bytes) -> Owner | None:
        """Return the owner that a lock file describes; `None` if it describes none."""
        try:
            owner = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        pids = [owner.pid] if owner.supervisor is None else [owner.pid, owner.supervisor]
        names = [owner.host, owner.since]
        # Anybody who can write there may have written the file, and what it says is printed.
        is_sound = all(type(pid) is int and 0 < pid < 1 << 31 for pid in pids) and all(
            isinstance(name, str) and name.isprintable() for name in names
        )
        return owner if is_sound else None

    def __str__(self) -> str:
        """Return what a person needs in order to find it."""
        started_by = "" if self.supervisor is None else f", started by {self.supervisor},"
        return f"process {self.pid}{started_by} on {self.host}, since {self.since}"

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it runs, if it is of this machine: another process that has its number by now is not it."""
        return exists(self.pid) and _start_of(self.pid) == self.started

    @property
    def is_orphan(self) -> bool:
        """Whether it is a rank of this machine that is about to end, because its supervisor is gone."""
        return self.is_here and self.supervisor is not None and not exists(self.supervisor)


def _start_of(pid: int) -> str | None:
    """Return when a process was started, in the kernel's ticks; `None` where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return status.rpartition(")")[2].split()[19]  # After the name, which may hold anything.


def _find_supervisor() -> int | None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        return parent.pid
    return os.getppid() if is_using_torchrun(read_environment()) else None
