"""Main threads that train beside a `RankMonitor`, with real threads or in an order that the test chooses."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from helios.core.distributed import DistributedInfo
from helios.ranks.monitor import RankMonitor
from helios.ranks.stores import host_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from helios.ranks.stores import Store


def info_of(rank: int, world_size: int) -> DistributedInfo:
    return DistributedInfo(rank, world_size, rank, world_size)


class Hosted:
    """A store with connections for up to three ranks. All runs share them, because they are slow to make."""

    def __init__(self) -> None:
        store, self.port = host_store()
        self._connections: list[Any] = [store, store.clone(), store.clone()]
        self._runs = itertools.count()

    def new_run(self) -> list[Store]:
        """Return an empty store for each of three ranks; the keys of other runs are not visible in it."""
        run = f"run-{next(self._runs)}"
        prefixed: Any = dist.PrefixStore  # type: ignore[attr-defined]  # torch exports it
        return [prefixed(run, connection) for connection in self._connections]


class Actor:
    """A rank that moves only when the test says so.

    Its monitor and its main thread move by turns. While the monitor reads the position, the main thread continues as
    far as it can: if the flag were raised too late, it would get past the position where all ranks stop.

    Args:
        store: the store of the run.
        rank: the rank.
        world_size: the number of ranks.
        limit: the last position: training is complete there.
        haste: how often the main thread moves while the monitor reads its position.
    """

    def __init__(self, store: Store, rank: int, world_size: int, limit: int, haste: int) -> None:
        self.is_asked = self.is_over = False
        self.at = 0
        self.end: int | None = None
        self._limit, self._haste = limit, haste
        self._continues = self._is_looking = False
        self._monitor = RankMonitor(store, info_of(rank, world_size), watches=False)
        self._question = self._monitor.watch_stop_requests(lambda: self.is_asked, self._tell)

    def _tell(self) -> int:
        told = self.at
        if self._is_looking:
            for _ in range(self._haste):
                self.train()
        return told

    def look(self) -> None:
        """Let the monitor's thread make a check; its last one comes when the main thread has stopped."""
        self._is_looking = True
        if self.end is None:
            self._monitor._check()
        elif not self.is_over:
            self.is_over = True
            self._monitor._run()
        self._is_looking = False

    def train(self) -> None:
        """Let the main thread move: it checks whether to stop, or trains the next batch."""
        if self.end is not None:
            return
        if self._continues:
            self.at += 1
            self._continues = False
        elif self._monitor._is_flagged and not self._monitor._settled.is_set():
            return  # It waits for the position where all stop.
        elif self.at == self._limit or self._question():
            self.end = self.at
            self._monitor._closed.set()
        else:
            self._continues = True


def perform(actors: list[Actor], moves: Iterable[tuple[str, int]]) -> list[int | None]:
    """Make these moves, and then move all ranks in turn until all have stopped.

    Returns:
        The position where each has stopped; `None` for one that waits forever.
    """
    for what, rank in moves:
        if what == "ask":
            actors[rank].is_asked = True
        else:
            getattr(actors[rank], what)()
    for _ in range(100):
        for actor in actors:
            actor.look()
            actor.train()
        if all(actor.is_over for actor in actors):
            break
    return [actor.end for actor in actors]


class Walker(threading.Thread):
    """A main thread beside a real monitor; it takes steps of random length, and checks after each whether to stop."""

    def __init__(self, monitor: RankMonitor, limit: int, seed: int, pause: float) -> None:
        super().__init__(daemon=True)
        self.is_asked = False
        self.at = 0
        self.end: int | None = None
        self.error: BaseException | None = None
        self._monitor, self._limit = monitor, limit
        self._random, self._pause = random.Random(seed), pause

    def run(self) -> None:
        with self._monitor:
            should_stop: Callable[[], bool] = self._monitor.watch_stop_requests(lambda: self.is_asked, lambda: self.at)
            try:
                while self.at < self._limit and not should_stop():
                    time.sleep(self._random.random() * self._pause)
                    self.at += 1
            except BaseException as error:  # noqa: BLE001 - the test that started the thread checks it.
                self.error = error
            self.end = self.at
