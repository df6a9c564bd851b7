"""Runs in processes that `fit` starts: one for each GPU, or CPU ranks over gloo. They live as long as the run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import secrets
import signal
import socket
import time
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Final

import torch

from helios.core.logging import get_root_logger
from helios.core.paths import to_path
from helios.core.state import Phase
from helios.errors import ConfigurationError, RankFailedError
from helios.ranks.failures import Failure
from helios.ranks.monitor import request_stop
from helios.ranks.object_host import ObjectHost
from helios.ranks.results import ResultQueue
from helios.ranks.stores import HostedStore
from helios.trainer._session import open_log, report_errors
from helios.trainer._signals import SignalWatch
from helios.trainer.launch.rank import RankConfig, run_rank
from helios.trainer.launch.stopped import StoppedRanks

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from helios.trainer._task import Result, Task

_POLL: Final = 0.1  # Seconds between two checks for ended processes.
_GRACE: Final = 1.0  # Seconds that ranks have to end by themselves after one has failed.
_SHUTDOWN: Final = 30.0  # Seconds that finished ranks have to end; workers of data loaders may take some.


class Spawn:
    """Runs the task in new processes.

    Args:
        world_size: the number of processes.
    """

    trains_here = False

    def __init__(self, world_size: int) -> None:
        self.queue = ResultQueue()
        self._world_size = world_size

    def launch(self, task: Task) -> Result:
        """Run the task, and return the result of rank 0; copy its metrics and the results of its plug-ins."""
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise ConfigurationError(
                "fit was called while a process that it had started was importing the script: put the code of the "
                "script under `if __name__ == '__main__':`, as Python asks of every script that starts processes"
            )
        with open_log(task.options, rank=0), report_errors(task.phase, task.control_flow), self.queue.filling():
            to_path(".", "the folder in which ranks are started")  # They cannot start in a deleted folder.
            task.prepare()
            result = _RankPool(task, self.queue, self._world_size).run()
            task.model.metrics.clear()
            task.model.metrics.update(result.metrics)
            task.receive_results(result.plugin_results)
            return result


class _RankPool:
    """The ranks of one run, as seen from the process that has started them."""

    def __init__(self, task: Task, queue: ResultQueue, world_size: int) -> None:
        self._task = task
        self._queue = queue
        self._object_host = ObjectHost()
        self._packed_task = _pack(task, self._object_host)
        self._store = HostedStore()
        self._secret = secrets.token_bytes(32)
        self._processes: list[SpawnProcess] = []
        self._connections: dict[int, Connection] = {}
        self._begun: set[int] = set()
        self._results: dict[int, bytes] = {}
        self._failures: dict[int, Failure] = {}
        self._deadline: float | None = None
        self._world_size = world_size
        self._stopped = StoppedRanks()

    def run(self) -> Result:
        """Start the ranks, and wait until all of them have ended."""
        is_training = self._task.phase is Phase.TRAINING
        with SignalWatch(enabled=is_training and self._task.options.chkpt_root is not None) as signals:
            try:
                self._start()
                is_stop_requested = False
                while self._connections and not self._is_overdue():
                    for connection in wait(list(self._connections.values()), timeout=_POLL):
                        self._receive(connection)  # type: ignore[arg-type]  # One of those waited for.
                    self._check_for_dead()
                    self._check_for_stopped()
                    if signals.was_asked() and not is_stop_requested:
                        is_stop_requested = True
                        request_stop(self._store.sign_with(self._secret))
            finally:
                self._end()
        if self._failures:
            failure = self._first_failure()
            if failure.rank not in self._begun:
                # A terminal also sends Ctrl-C to ranks that have no process group of their own yet, and ends them. So
                # the signal has its usual effect here, as during the setup of a run in one process.
                signals.raise_again()
            raise self._to_error(failure)  # No variable may hold it, because its traceback refers to this frame.
        result: Result = pickle.loads(self._results[0])  # noqa: S301 - by a rank of this run.
        if result.is_finished:
            signals.report(is_leaving=False)  # Ranks that stop log it themselves.
        return result

    def _to_error(self, failure: Failure) -> BaseException:
        """Return the error to raise in this process for the failure of a rank."""
        known = self._task.control_flow
        error = failure.to_error(known)
        if failure.is_control_flow and not isinstance(error, (RankFailedError, *known)):
            known.append(type(error))  # Only the ranks have registered it, for example in the setup of a plug-in.
        return error

    def _start(self) -> None:
        context = _choose_context()
        threads = max(1, torch.get_num_threads() // self._world_size)
        for rank in range(self._world_size):
            here, there = context.Pipe()
            config = RankConfig(
                rank, self._world_size, self._store.port, self._secret, threads, get_root_logger().level
            )
            process = context.Process(target=run_rank, args=(there, config), name=f"helios-rank-{rank}", daemon=False)
            self._processes.append(process)  # Before it starts, because Ctrl-C may arrive right after that.
            process.start()
            there.close()
            self._connections[rank] = here
        for connection in self._connections.values():
            # _check_for_dead handles a rank that has ended.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send_bytes(self._packed_task)

    def _receive(self, connection: Connection) -> None:
        rank = next(rank for rank, known in self._connections.items() if known is connection)
        try:
            kind, body = pickle.loads(connection.recv_bytes())  # noqa: S301 - by a rank of this run.
        except (EOFError, OSError):  # It was killed, perhaps in the middle of a message.
            self._lose(rank)
            return
        if kind == "begun":
            self._begun.add(rank)
        elif kind == "ask":
            # _check_for_dead handles a rank that has ended.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send_bytes(self._object_host.answer(body))
        elif kind == "put":
            self._queue.extend([body])
        elif kind == "done":
            self._results[rank] = body
            self._connections.pop(rank).close()  # It sends nothing more, and may take time to end: see _SHUTDOWN.
        elif kind == "failed":
            self._fail(pickle.loads(body))  # noqa: S301 - by a rank of this run.

    def _check_for_dead(self) -> None:
        for rank in list(self._connections):
            if self._processes[rank].exitcode is not None and not self._connections[rank].poll():
                self._lose(rank)

    def _check_for_stopped(self) -> None:
        pids = {rank: pid for rank in self._connections if (pid := self._processes[rank].pid) is not None}
        failure = self._stopped.look(pids, self._world_size)
        if failure is not None:
            self._fail(failure)

    def _lose(self, rank: int) -> None:
        """Close the connection to a rank that has ended; it has failed if it has sent no result."""
        self._connections.pop(rank).close()
        process = self._processes[rank]
        process.join(_GRACE)
        if rank not in self._results and rank not in self._failures:
            text = _describe_end(process.exitcode, has_begun=rank in self._begun)
            self._fail(Failure.lost(rank, socket.gethostname(), text))

    def _fail(self, failure: Failure) -> None:
        self._failures.setdefault(failure.rank, failure)
        if self._deadline is None:
            self._deadline = time.monotonic() + _GRACE

    def _is_overdue(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _first_failure(self) -> Failure:
        """Return the first failure; an echo of another rank's end is never the first."""
        return min(self._failures.values(), key=lambda failure: (failure.is_echo, failure.when))

    def _end(self) -> None:
        """End all ranks and the processes that they have started, and close the store."""
        started = {process.pid: process for process in self._processes if process.pid is not None}
        deadline = time.monotonic() + (_SHUTDOWN if len(self._results) == self._world_size else 0.0)
        try:
            for process in started.values():
                process.join(max(0.0, deadline - time.monotonic()))
        finally:  # Also if Ctrl-C interrupts the wait.
            for pid, process in started.items():
                # Each rank has its own process group, with its data loaders' workers, unless it has not created it yet.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                process.kill()
            for process in started.values():
                process.join()
                process.close()
        for connection in self._connections.values():
            connection.close()
        self._store.close()


def _choose_context() -> Any:
    """Return Python's spawn context, or the faster fork server if the program has chosen it.

    Plain forks are never used: they inherit locks of other threads, and CUDA does not work after them.
    """
    is_forkserver = multiprocessing.get_start_method(allow_none=True) == "forkserver"
    return multiprocessing.get_context("forkserver" if is_forkserver else "spawn")


def _describe_end(exit_code: int | None, *, has_begun: bool) -> str:
    if exit_code is not None and exit_code < 0:
        return f"it was ended by {signal.Signals(-exit_code).name}"
    if has_begun:
        return f"it ended without a word, with exit code {exit_code}"
    return (
        f"it ended with exit code {exit_code} before it could begin. If the script calls fit at its top level, put "
        "that under `if __name__ == '__main__':`, as Python asks of every script that starts processes; else see above "
        "what it has printed"
    )


def _pack(task: Task, host: ObjectHost) -> bytes:
    """Pickle the task for the ranks.

    Raises:
        ConfigurationError: if a part cannot be pickled; the message says which.
    """
    try:
        return host.pack(task)
    except Exception as error:
        parts: dict[str, object] = {
            type(task.model).__name__: task.model,
            type(task.datamodule).__name__: task.datamodule,
            **{f"plug-in {plug_id!r}": plugin for plug_id, plugin in task.plugins.items()},
        }
        culprits = [name for name, part in parts.items() if not _can_pack(part)]
        raise ConfigurationError(
            f"{', '.join(culprits) or 'the run'} cannot be sent to the processes that train ({error}): define "
            "classes at the top level of a module, and create objects that cannot be pickled in setup, which runs in "
            "those processes"
        ) from error


def _can_pack(part: object) -> bool:
    try:
        ObjectHost().pack(part)
    except Exception:  # noqa: BLE001 - pickling may raise anything.
        return False
    return True
