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
    """What a rank must know before it receives its task.

    Attributes:
        rank: its rank.
        world_size: the number of ranks.
        port: the port of the store of the run, on this machine.
        secret: the secret with which ranks sign what they set in the store.
        threads: the number of threads for torch.
        level: the log level.
    """

    rank: int
    world_size: int
    port: int
    secret: bytes = dataclasses.field(repr=False)
    threads: int
    level: int


class _ParentChannel:
    """The connection to the process that has started this one. A message is a pair of a kind and bytes."""

    def __init__(self, connection: Connection, rank: int) -> None:
        self._connection = connection
        self._rank = rank
        self._turn = threading.Lock()
        self._has_failed = False
        # If this rank is killed in the middle of a message, the other end must not wait for the rest of it while a
        # forked process, such as a data loader's worker, still holds the connection.
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
                "a process that a rank has forked, such as a data loader's worker, cannot reach the process that "
                "called fit: suggest parameters and fill the queue in the rank itself"
            )

    def put(self, item: bytes) -> None:
        self.tell("put", item)

    def receive(self) -> bytes:
        return self._connection.recv_bytes()

    def fail(self, error: BaseException, control_flow: Sequence[type[BaseException]] = ()) -> None:
        """Send the first failure of this rank; later ones follow from it."""
        if not self._has_failed:
            self._has_failed = True
            self.tell("failed", pickle.dumps(Failure.of(error, self._rank, control_flow)))


_channels: list[_ParentChannel] = []  # Empty in a process that fit has not started.


class RankLauncher:
    """The launcher of a rank's trainer: it sends results to the process that called `fit`, and launches nothing."""

    trains_here = True

    @property
    def queue(self) -> SendingQueue | None:
        """The sending end of the queue of results."""
        return SendingQueue(_channels[-1].put) if _channels else None

    def launch(self, task: Task) -> Result:
        """Refuse: a rank already runs a task.

        Raises:
            NotRunningError: always.
        """
        raise NotRunningError(f"a rank cannot start another run ({task.phase.value}): call fit and test where it began")


def run_rank(connection: Connection, config: RankConfig) -> None:
    """Run one rank; the main function of its process.

    Args:
        connection: the connection to the process that has started this one.
        config: what it must know before it receives its task.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # It can be killed with its children, and Ctrl-C reaches the parent only.
    follow_parent()  # First of all: a process that connects to a closed store tries for minutes.
    channel = _ParentChannel(connection, config.rank)
    _channels.append(channel)
    try:
        channel.tell("begun")
        logging.getLogger(get_root_logger().name).setLevel(config.level)
        torch.set_num_threads(config.threads)
        prefer_loopback()
        # Only this process draws bars, and tqdm's default lock would stay locked if it is killed.
        tqdm.set_lock(threading.RLock())
        result = _run_task(_unpack(channel.receive()), config, channel)
        channel.tell("done", pack(result if config.rank == 0 else None))
    except BaseException as error:  # noqa: BLE001 - it is sent to the process that called fit, and raised there.
        _end_failed(channel, error)


def _run_task(task: Task, config: RankConfig, channel: _ParentChannel) -> Result:
    info = DistributedInfo(config.rank, config.world_size, config.rank, config.world_size)
    store = connect_store(config.port)
    monitor, device = (
        RankMonitor(SignedStore(store.clone(), config.secret), info, watches=False),
        task.options.device_of(info),
    )
    with (
        open_log(task.options, config.rank),
        host_channel(channel.ask),
        monitor,
        current_device(device),
        process_group(store, info, device) as group,
    ):
        return run_task(task, HostGroup(info, group, monitor, lambda error: channel.fail(error, task.control_flow)))


def _unpack(packed: bytes) -> Task:
    try:
        task: Task = pickle.loads(packed)  # noqa: S301 - from the process that has started this one.
    except Exception as error:
        raise TrainingError(
            f"the arguments of fit cannot be unpickled in another process ({error}): define their classes in a module, "
            "or in a script that can be imported, not in an interactive session"
        ) from error
    return task


def _end_failed(channel: _ParentChannel, error: BaseException) -> Any:
    """End this process at once: an orderly shutdown could wait for other ranks."""
    with contextlib.suppress(OSError):  # Then the process that called fit is gone.
        channel.fail(error)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # It is missing, full or closed.
            stream.flush()
    os._exit(1)
