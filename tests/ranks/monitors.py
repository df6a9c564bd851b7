"""Main threads that train beside a `RankMonitor`: in a play in which the test decides who moves when, and for real."""

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
    """A store, and connections to it for up to three ranks, which are slow to make: all runs use the same."""

    def __init__(self) -> None:
        store, self.port = host_store()
        self._connections: list[Any] = [store, store.clone(), store.clone()]
        self._runs = itertools.count()

    def new_run(self) -> list[Store]:
        """Return a store for each of three ranks, which is empty: runs do not see each other."""
        run = f"run-{next(self._runs)}"
        prefixed: Any = dist.PrefixStore  # type: ignore[attr-defined]  # torch exports it
        return [prefixed(run, connection) for connection in self._connections]


class Actor:
    """A rank in a play: nothing of it moves unless the script says so.

    Its monitor and its main thread are two sides that move by turns. While the monitor asks where its main thread is,
    that thread goes on, as far as it gets: this is where a flag that was raised too late would let it slip away.

    Args:
        store: where ranks tell each other.
        rank: the rank.
        world_size: how many play.
        limit: the last position: training is complete there.
        haste: how often the main thread moves while the monitor asks where it is.
    """

    def __init__(self, store: Store, rank: int, world_size: int, limit: int, haste: int) -> None:
        self.is_asked = self.is_over = False
        self.at = 0
        self.end: int | None = None
        self._limit, self._haste = limit, haste
        self._goes_on = self._is_looking = False
        self._monitor = RankMonitor(store, info_of(rank, world_size), watches=False)
        self._question = self._monitor.watch_stop_requests(lambda: self.is_asked, self._tell)

    def _tell(self) -> int:
        told = self.at
        if self._is_looking:
            for _ in range(self._haste):
                self.train()
        return told

    def look(self) -> None:
        """Let the monitor's thread move; its last move comes when the main thread has left."""
        self._is_looking = True
        if self.end is None:
            self._monitor._check()
        elif not self.is_over:
            self.is_over = True
            self._monitor._run()
        self._is_looking = False

    def train(self) -> None:
        """Let the main thread move: it asks whether to leave, or trains the batch that it has asked about."""
        if self.end is not None:
            return
        if self._goes_on:
            self.at += 1
            self._goes_on = False
        elif self._monitor._is_flagged and not self._monitor._settled.is_set():
            return  # It waits for the answer.
        elif self.at == self._limit or self._question():
            self.end = self.at
            self._monitor._closed.set()
        else:
            self._goes_on = True


def perform(actors: list[Actor], moves: Iterable[tuple[str, int]]) -> list[int | None]:
    """Move as the script says, and then in turn until all have left.

    Returns:
        Where each has left; `None` for one that waits for ever.
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
    """A main thread that takes steps of random length beside a real monitor, and asks after each whether to leave."""

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
            should_leave: Callable[[], bool] = self._monitor.watch_stop_requests(lambda: self.is_asked, lambda: self.at)
            try:
                while self.at < self._limit and not should_leave():
                    time.sleep(self._random.random() * self._pause)
                    self.at += 1
            except BaseException as error:  # noqa: BLE001 - the test that has started the thread shall see it.
                self.error = error
            self.end = self.at
