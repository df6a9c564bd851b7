"""A thread that watches for stop requests and failures of other ranks while the main thread trains."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from helios.core.logging import get_root_logger
from helios.ranks import limits
from helios.ranks.announcements import announce_failure, lost_store, read_failure
from helios.ranks.heartbeats import Heartbeats, lost_rank, read_heartbeat
from helios.ranks.messages import foreign_content
from helios.ranks.processes import cpu_seconds, end_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from helios.core.distributed import DistributedInfo
    from helios.ranks.failures import Failure
    from helios.ranks.stores import Store

STOP: Final = "leave"  # The key that is set when all ranks are asked to stop.
_POSITION_DIGITS: Final = 18  # A longer number is not a position.


class RankMonitor:
    """Watches for stop requests, failed ranks and silent ranks. Training only reads a flag.

    Ranks communicate through a key-value store that only the monitor's thread reads.

    **Stopping.** A signal reaches one rank, at any time, and all ranks must stop after the same batch. The monitor of
    the rank that received it sets a key in the store. Each monitor that sees the key first raises its flag, and then
    reports the position of its main thread. A main thread sees the flag at its next position at the latest, so no rank
    can be further than the largest reported position plus one: all ranks stop there. A main thread that sees the flag
    waits until this number is known. It never waits long, because monitors report whatever their main threads do.

    **Failing.** A rank that fails announces it before it closes its connections, which makes the collectives of the
    other ranks raise. A rank that sends no heartbeat, for example because its machine is gone, is declared lost by the
    rank before it. A main thread that waits for a lost rank cannot be interrupted, so its process is ended, with an
    error in the log.

    Args:
        store: the store of the run; this connection is used by the monitor's thread alone.
        info: this process's place among the ranks.
        watches: whether to watch for failures and silence. Under `torchrun` nothing else does; ranks that `fit` has
            started are watched by the process that started them.
    """

    def __init__(self, store: Store, info: DistributedInfo, *, watches: bool = True) -> None:
        self._store = store
        self._info = info
        self._watches = watches
        self._was_asked: Callable[[], bool] = lambda: False
        self._position: Callable[[], int] = lambda: 0
        self._is_flagged = False
        self._stop_at: int | None = None
        self._settled = threading.Event()
        self._closed = threading.Event()
        self._noticed = threading.Event()
        self._failure: Failure | None = None
        self._is_settling = False
        self._unanswered = 0
        self._main = threading.get_ident()
        self._heartbeats = Heartbeats(store, info)
        self._checks = 0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        """Start the threads."""
        self._main = threading.get_ident()
        self._threads = [
            threading.Thread(target=self._run, name="helios-monitor", daemon=True),
            threading.Thread(target=self._guard, name="helios-monitor-guard", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching."""
        self._noticed.set()
        self._closed.set()
        monitor, guard = self._threads
        # A thread that returns from the store while the interpreter shuts down would crash the process. A thread that
        # waits for a lost store never returns.
        monitor.join(limits.ANSWER if self._failure is None else limits.GRACE)
        guard.join()

    def watch_stop_requests(self, was_asked: Callable[[], bool], position: Callable[[], int]) -> Callable[[], bool]:
        """Begin to watch whether this process is asked to stop; see `HostGroup.make_stop_check`.

        The monitor keeps both functions. They must not refer to what holds the monitor: it would form a cycle.
        """
        self._position, self._was_asked = position, was_asked
        return self._should_stop

    def _should_stop(self) -> bool:
        if not self._is_flagged:
            return False
        self._settled.wait()
        if self._failure is not None:
            self._noticed.set()
            raise self._failure.to_error()
        return self._stop_at is not None and self._position() >= self._stop_at

    def _run(self) -> None:
        try:
            if self._watches:  # Immediately: a rank that ends or is stopped soon must have sent a heartbeat by then.
                self._check()
            while not self._closed.wait(limits.SETTLE_PERIOD if self._is_settling else limits.CHECK_PERIOD):
                self._check()
            # No rank may wait for the position or the heartbeats of one that has finished. A position that was
            # reported before stays: other ranks may have used it already.
            self._store.compare_set(position_key(self._info.rank), "", str(self._position()))
            self._heartbeats.end()
        except RuntimeError as error:
            self._raise_in_main(lost_store(error))

    def _guard(self) -> None:
        """Watch the monitor's own thread: a store on a machine that does not answer blocks it forever.

        Checks are counted instead of seconds, so that a main thread that blocks all other threads causes no alarm. If
        another process watches the ranks, it also hosts the store. It may be stopped (by Ctrl-Z) for any time; if it is
        gone, `follow_parent` notices.
        """
        seen, ticks = 0, 0
        while self._failure is None and not self._closed.wait(limits.CHECK_PERIOD):
            seen, ticks = self._checks, ticks + 1 if self._watches and seen == self._checks else 0
            if ticks * limits.CHECK_PERIOD > limits.SILENCE:
                self._raise_in_main(lost_store(f"it has not answered for {limits.SILENCE:g} s"))
        if self._failure is not None and not self._is_noticed(self._failure):
            get_root_logger().error(
                "%s\nThis process is busy, or waits for that rank and cannot be woken: it is ended. Start the run "
                "again to resume from its newest checkpoint",
                self._failure.describe(),
            )
            end_process()

    def _is_noticed(self, failure: Failure) -> bool:
        """Wait until the main thread notices a failure; longer while it computes than while it only waits.

        On a busy machine, one rank may still import a library when the others have already failed.
        """
        spent = cpu_seconds(self._main)
        for period in range(limits.BUSY_GRACES):
            if self._noticed.wait(limits.GRACE):
                return True
            before, spent = spent, cpu_seconds(self._main)
            if spent - before < limits.BUSY_SHARE * limits.GRACE:
                return False
            if period == 0:
                get_root_logger().error("%s\nThis process is busy, and has not noticed yet", failure.describe())
        return False

    def _check(self) -> None:
        self._checks += 1
        if not self._is_flagged and (self._was_asked() or _is_stop_requested(self._store)):
            self._is_flagged = self._is_settling = True  # Before the position is read: see the class.
            self._store.set(STOP, "")
            self._store.set(position_key(self._info.rank), str(self._position()))
        if self._is_settling:
            self._settle()
        if self._watches:
            silent = self._heartbeats.exchange(time.monotonic())
            failure = read_failure(self._store) if silent is None else announce_failure(self._store, silent)
            self._handle(failure)

    def _settle(self) -> None:
        """Compute where to stop, once every rank has reported its position."""
        ranks = range(self._info.world_size)
        silent = [rank for rank in ranks if not self._store.check([position_key(rank)])]
        self._unanswered += 1
        if not silent:
            self._stop_at = 1 + max(_read_position(self._store, rank) for rank in ranks)
            self._is_settling = False
            self._settled.set()
        elif self._unanswered * limits.SETTLE_PERIOD > limits.ANSWER:
            text = f"asked where it can stop, it has not answered for {limits.ANSWER:g} s"
            lost = lost_rank(silent[0], read_heartbeat(self._store, silent[0]), text)
            self._handle(announce_failure(self._store, lost))

    def _handle(self, failure: Failure | None) -> None:
        if failure is not None and failure.rank != self._info.rank:  # The main thread knows of its own failure.
            self._raise_in_main(failure)

    def _raise_in_main(self, failure: Failure) -> None:
        """Make the next stop check of the main thread raise; the first failure counts.

        A lost store is a failure of rank 0, and is raised on rank 0 as well: its main thread does not know of it.
        """
        if self._failure is None:
            self._failure = failure
            self._is_flagged = True
            self._settled.set()
            self._closed.set()


def request_stop(store: Store) -> None:
    """Ask all ranks to stop after the same batch."""
    store.set(STOP, "")


def position_key(rank: int) -> str:
    """Return the key of the position that a rank reports when it is asked to stop."""
    return f"place/{rank}"


def _is_stop_requested(store: Store) -> bool:
    """Return whether a rank, or the process that started the ranks, asks all of them to stop."""
    if not store.check([STOP]):
        return False
    if content := store.get(STOP):
        raise foreign_content(STOP, content)
    return True


def _read_position(store: Store, rank: int) -> int:
    content = store.get(position_key(rank))
    if not content.isdigit() or len(content) > _POSITION_DIGITS:
        raise foreign_content(position_key(rank), content)
    return int(content)
