"""A process that `fit` has started: one rank of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from helios.core.distributed import DistributedInfo
from helios.core.environment import current_device, prefer_loopback
from helios.core.logging import get_root_logger
from helios.errors import NotRunningError, TrainingError
from helios.ranks.failures import Failure
from helios.ranks.host_group import HostGroup
from helios.ranks.monitor import RankMonitor
from helios.ranks.object_host import host_channel
from helios.ranks.process_group import process_group
from helios.ranks.processes import follow_parent
from helios.ranks.results import SendingQueue, pack
from helios.ranks.stores import SignedStore, connect_store
from helios.trainer._jobs import run_task
from helios.trainer._session import open_log

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from helios.trainer._task import Result, Task


@dataclasses.dataclass(frozen=True)
class RankConfig:
    """What a rank must know before it can be sent its task.

    Attributes:
        rank: its rank.
        world_size: the number of ranks.
        port: where the store of the run listens, on this machine.
        secret: what the ranks sign with what they set there.
        threads: how many threads torch may use.
        level: the level of the log.
    """

    rank: int
    world_size: int
    port: int
    secret: bytes = dataclasses.field(repr=False)
    threads: int
    level: int


class _ParentChannel:
    """The line to the process that has started this one. Its messages are a kind and bytes."""

    def __init__(self, connection: Connection, rank: int) -> None:
        self._connection = connection
        self._rank = rank
        self._turn = threading.Lock()
        self._has_failed = False
        # If this rank is killed in the middle of a message, the other end must not wait for the rest of it as long as
        # a process lives that was forked here, such as a data loader's worker.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=connection.close)

    def tell(self, kind: str, body: bytes = b"") -> None:
        self._ensure_open()
        with self._turn:
            self._connection.send_bytes(pickle.dumps((kind, body)))

    def ask(self, question: bytes) -> bytes:
        self._ensure_open()
        with self._turn:
            self._connection.send_bytes(pickle.dumps(("ask", question)))
            return self._connection.recv_bytes()

    def _ensure_open(self) -> None:
        if self._connection.closed:
            raise NotRunningError(
                "a process that a rank has forked, such as a data loader's worker, cannot reach what called fit: "
                "suggest parameters and fill the queue in the rank itself"
            )

    def put(self, item: bytes) -> None:
        self.tell("put", item)

    def receive(self) -> bytes:
        return self._connection.recv_bytes()

    def fail(self, error: BaseException, control_flow: Sequence[type[BaseException]] = ()) -> None:
        """Tell of the first failure of this rank; what follows from it is no news."""
        if not self._has_failed:
            self._has_failed = True
            self.tell("failed", pickle.dumps(Failure.of(error, self._rank, control_flow)))


_channels: list[_ParentChannel] = []  # Of this process; empty in one that was not started by fit.


class RankLauncher:
    """What the trainer of a rank has for a launcher: its results go home, and it launches nothing."""

    trains_here = True

    @property
    def queue(self) -> SendingQueue | None:
        """The end of the queue at which results are put in."""
        return SendingQueue(_channels[-1].put) if _channels else None

    def launch(self, task: Task) -> Result:
        """Refuse: the ranks are at work already.

        Raises:
            NotRunningError: always.
        """
        raise NotRunningError(f"a rank cannot start another run ({task.phase.value}): call fit and test where it began")


def run_rank(connection: Connection, orders: RankConfig) -> None:
    """Be one rank of a run: the whole life of the process.

    Args:
        connection: to the process that has started this one.
        orders: what to know before the task can be taken.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # So that it can be ended together with what it starts, and Ctrl-C goes to the parent alone.
    follow_parent()  # From its first moment on: who looks for a store that is gone does so for minutes.
    line = _ParentChannel(connection, orders.rank)
    _channels.append(line)
    try:
        line.tell("begun")
        logging.getLogger(get_root_logger().name).setLevel(orders.level)
        torch.set_num_threads(orders.threads)
        prefer_loopback()
        # No other process draws bars, and the lock of tqdm's own would outlive one that is killed.
        tqdm.set_lock(threading.RLock())
        result = _take_part(_unpack(line.receive()), orders, line)
        line.tell("done", pack(result if orders.rank == 0 else None))
    except BaseException as error:  # noqa: BLE001 - whatever it is, it goes home, and is raised there.
        _end_failed(line, error)


def _take_part(task: Task, orders: RankConfig, line: _ParentChannel) -> Result:
    info = DistributedInfo(orders.rank, orders.world_size, orders.rank, orders.world_size)
    store = connect_store(orders.port)
    monitor, device = (
        RankMonitor(SignedStore(store.clone(), orders.secret), info, watches=False),
        task.options.device_of(info),
    )
    with (
        open_log(task.options, orders.rank),
        host_channel(line.ask),
        monitor,
        current_device(device),
        process_group(store, info, device) as group,
    ):
        return run_task(task, HostGroup(info, group, monitor, lambda error: line.fail(error, task.control_flow)))


def _unpack(orders: bytes) -> Task:
    try:
        task: Task = pickle.loads(orders)  # noqa: S301 - from the process that has started this one.
    except Exception as error:
        raise TrainingError(
            f"what fit was given cannot be made again in another process ({error}): define its classes in a module, or "
            "in a script that can be imported, not in an interactive session"
        ) from error
    return task


def _end_failed(line: _ParentChannel, error: BaseException) -> Any:
    """End this process at once: others may hold on to what an orderly end would wait for."""
    with contextlib.suppress(OSError):  # Then the process that called fit is gone, and there is nobody to be told.
        line.fail(error)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # It is missing, full or closed.
            stream.flush()
    os._exit(1)
