"""Heartbeats that ranks send each other through the store of a run."""

from __future__ import annotations

import math
import os
import socket
from typing import TYPE_CHECKING, Final

from helios.ranks import limits
from helios.ranks.failures import Failure
from helios.ranks.processes import is_stopped

if TYPE_CHECKING:
    from helios.core.distributed import DistributedInfo
    from helios.ranks.stores import Store

_PID_DIGITS: Final = 18  # A longer number in a heartbeat is not a process id.


class Heartbeats:
    """Sends the heartbeats of this rank, and checks those of the next one.

    Args:
        store: the store of the run.
        info: this process's place among the ranks.
    """

    def __init__(self, store: Store, info: DistributedInfo) -> None:
        self._store = store
        self._rank = info.rank
        self._watched = (info.rank + 1) % info.world_size
        self._sent_at = -math.inf  # A rank that ends soon must have sent one heartbeat, which names its host.
        self._sent, self._missed = 0, 0
        self._last_seen = ""

    def exchange(self, now: float) -> Failure | None:
        """Send a heartbeat if one is due, and check whether the next rank still sends its own.

        Args:
            now: the monotonic time, in seconds.

        Returns:
            The failure of the next rank if it has been silent for too long.
        """
        if now - self._sent_at < limits.HEARTBEAT_PERIOD:
            return None
        self._sent_at = now
        self._sent += 1
        self._store.set(_heartbeat_key(self._rank), f"{self._sent} {socket.gethostname()} {os.getpid()}")
        seen = read_heartbeat(self._store, self._watched)
        # Silence is counted in own heartbeats, not in seconds. If a scheduler stops all processes of a job and later
        # continues them, no rank is declared lost for the time in between.
        self._last_seen, self._missed = seen, self._missed + 1 if seen == self._last_seen else 0
        is_silent = self._missed * limits.HEARTBEAT_PERIOD > limits.SILENCE
        if not is_silent or has_ended(self._store, self._watched):
            return None
        text = f"it has sent no heartbeat for {limits.SILENCE:g} s{_describe_stopped(seen)}"
        return lost_rank(self._watched, seen, text)

    def end(self) -> None:
        """Tell the other ranks that this one has finished and sends no more heartbeats."""
        self._store.set(_end_key(self._rank), "")


def read_heartbeat(store: Store, rank: int) -> str:
    """Return the last heartbeat of a rank; empty if it has sent none."""
    key = _heartbeat_key(rank)
    return store.get(key).decode(errors="replace") if store.check([key]) else ""


def has_ended(store: Store, rank: int) -> bool:
    """Return whether a rank has finished its part of the run."""
    return store.check([_end_key(rank)])


def lost_rank(rank: int, heartbeat: str, text: str) -> Failure:
    """Return the failure of a rank that is lost.

    Args:
        rank: the rank.
        heartbeat: its last heartbeat, which names its host.
        text: how it was lost.
    """
    host, _ = _sender_of(heartbeat)
    return Failure.lost(rank, host, text)


def _heartbeat_key(rank: int) -> str:
    return f"beat/{rank}"


def _end_key(rank: int) -> str:
    return f"end/{rank}"


def _sender_of(heartbeat: str) -> tuple[str, int | None]:
    """Return the host and the process id that a heartbeat names."""
    _, host, pid = (*heartbeat.split(" "), "", "", "")[:3]
    return host or "a machine that never answered", int(pid) if pid.isdigit() and len(pid) <= _PID_DIGITS else None


def _describe_stopped(heartbeat: str) -> str:
    """Return the remark that the sender's process is stopped, if it runs on this host and is."""
    host, pid = _sender_of(heartbeat)
    if pid is None or host != socket.gethostname() or not is_stopped(pid):
        return ""
    return f": its process {pid} is stopped, and 'kill -CONT {pid}' would have continued it"
