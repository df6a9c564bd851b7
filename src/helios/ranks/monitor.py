"""Threads that keep an eye on what may happen to a rank from outside while its main thread trains."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from helios.core.logging import get_root_logger
from helios.errors import StoreContentError
from helios.ranks.failures import Failure
from helios.ranks.messages import foreign_content
from helios.ranks.processes import cpu_seconds, end_process, is_stopped

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from helios.core.distributed import DistributedInfo
    from helios.ranks.stores import Store

_TICK: Final = 0.2  # Seconds between two looks: what a signal or a failure may take to be noticed.
_HASTE: Final = 0.1  # The part of it that is waited for while the others do.
_BEAT: Final = 1.0  # Seconds between two signs of life.
_SILENCE: Final = 60.0  # Seconds without one after which a rank is given up: it may well be busy for some.
_GRACE: Final = 5.0  # Seconds that the main thread has to notice a failure by itself.
_BUSY_GRACES: Final = 6  # How often it has them while it computes.
_COMPUTES: Final = 0.02  # The share of a core that a thread uses which does not only wait.
_ANSWER: Final = 30.0  # Seconds that ranks have to say where they are.
_ECHO: Final = 3.0  # Seconds to wait for the reason why another rank is gone; longer than two signs of life take.
_DIGITS: Final = 18  # Of a position, at most.
_LEAVE: Final = "leave"
_FAILED: Final = "failed"


class RankMonitor:
    """Notices that ranks are to leave, that one has failed, and that one is silent, without costing a step anything.

    Ranks tell each other through a key-value store, and only this thread reads it. A step asks for no more than a flag.

    **Leaving.** A signal reaches one rank, any time, and all must leave after the same batch. When a rank is asked, its
    thread says so in the store. Every thread that sees it raises its flag *first*, and then says which position its
    main thread is at; the flag is seen at the next position at the latest. So none can be beyond the largest of these
    positions plus one, and there all leave. Main threads that see the flag wait until that number is known: threads
    answer at once, whatever their main threads are waiting for.

    **Failing.** A rank that fails reports that before it closes its connections, so that the collectives of the others
    raise. A rank that sends no heartbeat, such as one whose machine is gone, is declared lost by the rank before it. A
    main thread that waits for it cannot be woken, so the process is ended, with an error in the log.

    Args:
        store: where ranks tell each other; used by this thread alone.
        info: this process's place among the ranks.
        watches: whether to watch for failures and silence, which nobody else does under `torchrun`.
    """

    def __init__(self, store: Store, info: DistributedInfo, *, watches: bool = True) -> None:
        self._store = store
        self._info = info
        self._watches = watches
        self._was_asked: Callable[[], bool] = lambda: False
        self._position: Callable[[], int] = lambda: 0
        self._is_flagged = False
        self._leave_at: int | None = None
        self._settled = threading.Event()
        self._closed = threading.Event()
        self._noticed = threading.Event()
        self._failure: Failure | None = None
        self._is_settling = False
        self._unanswered = 0
        self._main = threading.get_ident()
        self._beaten_at = -math.inf  # So that a rank that ends soon has sent one heartbeat, with its host.
        self._beats, self._last_beat, self._missed = 0, "", 0
        self._looks = 0
        self._thread = threading.Thread(target=self._run, name="helios-monitor", daemon=True)
        self._guard = threading.Thread(target=self._watch_over, name="helios-monitor-guard", daemon=True)

    def __enter__(self) -> Self:
        """Start to look."""
        self._main = threading.get_ident()
        self._thread.start()
        self._guard.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop looking."""
        self._noticed.set()
        self._closed.set()
        # A thread that comes back from the store while the interpreter ends would take the process down with it. One
        # that waits for a store which is lost never comes back.
        self._thread.join(_ANSWER if self._failure is None else _GRACE)
        self._guard.join()
        # These functions hold everything that trains, which holds this monitor: the circle is broken here. A thread
        # that is late can still report the position at which its main thread has stopped.
        place = self._position()
        self.watch_stop_requests(lambda: False, lambda: place)

    def watch_stop_requests(self, was_asked: Callable[[], bool], position: Callable[[], int]) -> Callable[[], bool]:
        """Begin to pass on that this process is asked to leave; see `HostGroup.make_stop_check`."""
        self._position, self._was_asked = position, was_asked
        return self._should_stop

    def _should_stop(self) -> bool:
        if not self._is_flagged:
            return False
        self._settled.wait()
        if self._failure is not None:
            self._noticed.set()
            raise self._failure.to_error()
        return self._leave_at is not None and self._position() >= self._leave_at

    def _run(self) -> None:
        try:
            if self._watches:  # Immediately, so that a rank that ends or stops soon is known by then.
                self._look()
            while not self._closed.wait(_TICK * _HASTE if self._is_settling else _TICK):
                self._look()
            # No rank may wait for the position, or the heartbeats, of one that has nothing left to do. A position that
            # was reported stays: others may have used it already.
            self._store.compare_set(_place(self._info.rank), "", str(self._position()))
            self._store.set(_end(self._info.rank), "")
        except RuntimeError as error:
            self._take(lost_store(error))

    def _watch_over(self) -> None:
        """Look after the thread that looks: a store whose machine is silent never answers it.

        Ticks are counted instead of seconds, so that a main thread that keeps all others waiting is not held against
        anybody. Where somebody else watches, it is who hosts the store, and may be stopped for as long as it pleases
        who has started it: that it is gone is noticed without this, see `follow_parent`.
        """
        seen, ticks = 0, 0
        while self._failure is None and not self._closed.wait(_TICK):
            seen, ticks = self._looks, ticks + 1 if self._watches and seen == self._looks else 0
            if ticks * _TICK > _SILENCE:
                self._take(lost_store(f"it has not answered for {_SILENCE:g} s"))
        if self._failure is not None and not self._is_noticed(self._failure):
            get_root_logger().error(
                "%s\nThis process is busy, or waits for that rank and cannot be woken: it is ended. Start the run "
                "again to resume from its newest checkpoint",
                self._failure.describe(),
            )
            end_process()

    def _is_noticed(self, failure: Failure) -> bool:
        """Wait until the main thread notices a failure by itself: not for long, unless it computes and does not wait.

        On a busy machine, importing a library takes a rank longer than it takes others to fail.
        """
        spent = cpu_seconds(self._main)
        for period in range(_BUSY_GRACES):
            if self._noticed.wait(_GRACE):
                return True
            before, spent = spent, cpu_seconds(self._main)
            if spent - before < _COMPUTES * _GRACE:
                return False
            if period == 0:
                get_root_logger().error("%s\nThis process is busy, and has not noticed yet", failure.describe())
        return False

    def _look(self) -> None:
        self._looks += 1
        if not self._is_flagged and (self._was_asked() or _is_stop_requested(self._store)):
            self._is_flagged = self._is_settling = True  # Before the position is read: see the class.
            self._store.set(_LEAVE, "")
            self._store.set(_place(self._info.rank), str(self._position()))
        if self._is_settling:
            self._settle()
        if self._watches:
            self._exchange_beats(time.monotonic())
            if self._store.check([_FAILED]):
                self._fail(Failure.from_message(self._store.get(_FAILED), _FAILED))

    def _settle(self) -> None:
        """Work out where to leave, once every rank has said where it is."""
        ranks = range(self._info.world_size)
        silent = [rank for rank in ranks if not self._store.check([_place(rank)])]
        self._unanswered += 1
        if not silent:
            self._leave_at = 1 + max(_read_place(self._store, rank) for rank in ranks)
            self._is_settling = False
            self._settled.set()
        elif self._unanswered * _TICK * _HASTE > _ANSWER:
            self._give_up(silent[0], f"asked where it could leave, it has said nothing for {_ANSWER:g} s")

    def _exchange_beats(self, now: float) -> None:
        """Give a sign of life once in a while, and look for that of the next rank."""
        if now - self._beaten_at < _BEAT:
            return
        self._beaten_at = now
        self._beats += 1
        self._store.set(_beat(self._info.rank), f"{self._beats} {socket.gethostname()} {os.getpid()}")
        watched = (self._info.rank + 1) % self._info.world_size
        beat = _read_beat(self._store, watched)
        # Own heartbeats since the last one of that rank are counted instead of seconds: a job whose processes were all
        # stopped, by a scheduler or with their machine, continues as if nothing had happened.
        self._last_beat, self._missed = beat, self._missed + 1 if beat == self._last_beat else 0
        if self._missed * _BEAT > _SILENCE and not self._store.check([_end(watched)]):
            self._give_up(watched, f"it has sent no heartbeat for {_SILENCE:g} s{_say_state(beat)}")

    def _give_up(self, rank: int, text: str) -> None:
        host, _ = _sender_of(_read_beat(self._store, rank))
        self._fail(announce_failure(self._store, Failure.lost(rank, host, text)))

    def _fail(self, failure: Failure) -> None:
        if failure.rank != self._info.rank:  # Else the main thread knows it already.
            self._take(failure)

    def _take(self, failure: Failure) -> None:
        """Have the main thread end with a failure: a store that is lost is that of rank 0, which does not know yet."""
        if self._failure is None:
            self._failure = failure
            self._is_flagged = True
            self._settled.set()
            self._closed.set()


def _is_stop_requested(store: Store) -> bool:
    """Whether a rank, or who has started the ranks, asks all to leave."""
    if not store.check([_LEAVE]):
        return False
    if content := store.get(_LEAVE):
        raise foreign_content(_LEAVE, content)
    return True


def _place(rank: int) -> str:
    return f"place/{rank}"


def _beat(rank: int) -> str:
    return f"beat/{rank}"


def _end(rank: int) -> str:
    return f"end/{rank}"


def announce_failure(store: Store, failure: Failure) -> Failure:
    """Tell the other ranks of a failure, unless they know of another one.

    Returns:
        The failure that came first.
    """
    return Failure.from_message(store.compare_set(_FAILED, "", failure.to_message()), _FAILED)


def find_cause(store: Store, error: BaseException, info: DistributedInfo) -> Failure:
    """Return the failure that an error of this rank goes back to: its own, or that of a rank which is gone.

    A collective raises when another rank is gone, and does not say why. If that rank has said so, it stands in the
    store soon. A rank that gives no sign of life meanwhile had no time to say anything.
    """
    failure = Failure.of(error, info.rank)
    try:
        if not failure.is_echo:
            return announce_failure(store, failure)
        ranks = range(info.world_size)
        before = [_read_beat(store, rank) for rank in ranks]
        deadline = time.monotonic() + _ECHO
        while time.monotonic() < deadline:
            if store.check([_FAILED]):
                return announce_failure(store, failure)
            time.sleep(_TICK / 4)
        for rank in ranks:
            if rank != info.rank and _read_beat(store, rank) == before[rank] and not store.check([_end(rank)]):
                host, _ = _sender_of(before[rank])
                text = "it ended without a word: it was killed, or its machine is gone"
                return announce_failure(store, Failure.lost(rank, host, text))
        return announce_failure(store, failure)
    except RuntimeError as unreachable:
        return lost_store(unreachable) if failure.is_echo else failure


def lost_store(reason: object) -> Failure:
    """Return the failure behind a store that cannot be used any more: that of rank 0, on whose machine it is."""
    text = str(reason) if isinstance(reason, StoreContentError) else f"the store of the run is out of reach: {reason}"
    return Failure.lost(0, "rank 0's machine", text)


def _read_beat(store: Store, rank: int) -> str:
    return store.get(_beat(rank)).decode(errors="replace") if store.check([_beat(rank)]) else ""


def _sender_of(beat: str) -> tuple[str, int | None]:
    """Return the host and the process that a sign of life is from."""
    _, host, pid = (*beat.split(" "), "", "", "")[:3]
    return host or "a machine that never answered", int(pid) if pid.isdigit() and len(pid) <= _DIGITS else None


def _say_state(beat: str) -> str:
    host, pid = _sender_of(beat)
    if pid is None or host != socket.gethostname() or not is_stopped(pid):
        return ""
    return f": its process {pid} is stopped, and 'kill -CONT {pid}' would have continued it"


def _read_place(store: Store, rank: int) -> int:
    content = store.get(_place(rank))
    if not content.isdigit() or len(content) > _DIGITS:
        raise foreign_content(_place(rank), content)
    return int(content)


def request_stop(store: Store) -> None:
    """Ask all ranks to leave, all after the same batch."""
    store.set(_LEAVE, "")
