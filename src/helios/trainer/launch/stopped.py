"""Ranks of a spawned run that are stopped by SIGSTOP while other ranks wait for them."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final

from helios.core.logging import get_root_logger
from helios.ranks.failures import Failure
from helios.ranks.processes import is_stopped

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOOK: Final = 1.0  # Seconds between two checks.
_LIMIT: Final = 60.0  # Seconds after which a stopped rank is lost; the same as for a silent one under torchrun.


class StoppedRanks:
    """Checks for stopped ranks, in the process that has started them.

    If all ranks are stopped, by a scheduler or by hand, none is declared lost. Checks are counted instead of seconds,
    so that the time during which this process itself was stopped does not count.
    """

    def __init__(self) -> None:
        self._looked_at = time.monotonic()
        self._looks: dict[int, int] = {}

    def look(self, pids: Mapping[int, int], world_size: int) -> Failure | None:
        """Return the failure of a rank that was stopped for too long, if there is one; warn about a newly stopped one.

        Args:
            pids: the processes of the ranks that have not ended, by rank.
            world_size: the number of ranks.
        """
        now = time.monotonic()
        if now - self._looked_at < _LOOK:
            return None
        self._looked_at = now
        stopped = {rank: pid for rank, pid in pids.items() if is_stopped(pid)}
        if len(stopped) == world_size:
            stopped = {}
        self._looks = {rank: self._looks.get(rank, 0) + 1 for rank in stopped}
        for rank, pid in stopped.items():
            if self._looks[rank] * _LOOK > _LIMIT:
                text = f"process {pid} is stopped, for {_LIMIT:g} s by now: 'kill -CONT {pid}' would have continued it"
                return Failure.lost(rank, socket.gethostname(), text)
            if self._looks[rank] == 1:
                get_root_logger().warning(
                    "rank %d is stopped, and the others wait for it: 'kill -CONT %d' continues it; it is declared lost "
                    "after %g s",
                    *(rank, pid, _LIMIT),
                )
        return None
