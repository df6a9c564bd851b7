"""Failures that ranks announce to each other through the store of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from helios.errors import StoreContentError
from helios.ranks import limits
from helios.ranks.failures import Failure
from helios.ranks.heartbeats import has_ended, lost_rank, read_heartbeat

if TYPE_CHECKING:
    from helios.core.distributed import DistributedInfo
    from helios.ranks.stores import Store

FAILED: Final = "failed"  # The key of the first failure of the run.
_POLL: Final = 0.05  # Seconds between two checks for an announcement.


def announce_failure(store: Store, failure: Failure) -> Failure:
    """Tell the other ranks of a failure, unless another one was announced before.

    Returns:
        The failure that was announced first.
    """
    return Failure.from_message(store.compare_set(FAILED, "", failure.to_message()), FAILED)


def read_failure(store: Store) -> Failure | None:
    """Return the failure that was announced first, if there is one."""
    return Failure.from_message(store.get(FAILED), FAILED) if store.check([FAILED]) else None


def find_cause(store: Store, error: BaseException, info: DistributedInfo) -> Failure:
    """Return the failure behind an error of this rank: its own, or that of a rank which is gone.

    A collective raises when another rank is gone, and does not say why. If that rank has failed, it announces the
    reason in the store within moments. If it sends no heartbeat either, it was killed or its machine is gone.
    """
    failure = Failure.of(error, info.rank)
    try:
        if not failure.is_echo:
            return announce_failure(store, failure)
        ranks = range(info.world_size)
        before = [read_heartbeat(store, rank) for rank in ranks]
        deadline = time.monotonic() + limits.ECHO
        while time.monotonic() < deadline:
            if store.check([FAILED]):
                return announce_failure(store, failure)
            time.sleep(_POLL)
        for rank in ranks:
            if rank != info.rank and read_heartbeat(store, rank) == before[rank] and not has_ended(store, rank):
                text = "it ended without a word: it was killed, or its machine is gone"
                return announce_failure(store, lost_rank(rank, before[rank], text))
        return announce_failure(store, failure)
    except RuntimeError as unreachable:
        return lost_store(unreachable) if failure.is_echo else failure


def lost_store(reason: object) -> Failure:
    """Return the failure behind a store that cannot be used any more: that of rank 0, whose machine holds it."""
    text = str(reason) if isinstance(reason, StoreContentError) else f"the store of the run is out of reach: {reason}"
    return Failure.lost(0, "rank 0's machine", text)
