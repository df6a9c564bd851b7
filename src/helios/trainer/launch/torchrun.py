"""Runs under `torchrun`: every process is there already, on any number of machines, and calls `fit` by itself."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from helios.core.distributed import get_dist_info
from helios.core.environment import current_device
from helios.ranks.announcements import announce_failure, find_cause
from helios.ranks.failures import Failure
from helios.ranks.host_group import HostGroup
from helios.ranks.monitor import RankMonitor
from helios.ranks.process_group import process_group
from helios.ranks.results import ResultQueue, pack
from helios.ranks.stores import next_rendezvous_store
from helios.trainer._jobs import run_task
from helios.trainer._session import open_log, report_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helios.core.distributed import DistributedInfo
    from helios.ranks.stores import Store
    from helios.trainer._task import Result, Task


class Torchrun:
    """Runs the task in this process, as one of those that `torchrun` has started."""

    trains_here = True

    def __init__(self) -> None:
        """Start with an empty queue."""
        self.queue = _SharedQueue()

    def launch(self, task: Task) -> Result:
        """Run the task together with the other ranks; each returns what it returns on rank 0."""
        info = get_dist_info()
        with open_log(task.options, info.rank), report_errors(task.phase, task.control_flow), self.queue.filling():
            store, device = next_rendezvous_store(), task.options.device_of(info)
            with (
                current_device(device),
                process_group(store, info, device) as group,
                RankMonitor(store.clone(), info) as monitor,
            ):
                try:
                    return self._run(task, HostGroup(info, group, monitor, lambda error: _announce(store, error, info)))
                except Exception as error:
                    cause = find_cause(store, error, info)
                    if cause.rank == info.rank:
                        raise
                # After the except block: the error of this rank only says that another rank is gone. No variable may
                # hold the new error, because its traceback refers to this frame.
                raise cause.to_error(task.control_flow)

    def _run(self, task: Task, host_group: HostGroup) -> Result:
        # Once on every machine: each has a disk of its own.
        if host_group.info.local_rank == 0:
            task.prepare()
        host_group.all_reduce_max(0)  # Nobody begins before all is prepared.
        result = run_task(task, host_group)
        for items in host_group.all_gather_object(self.queue.sent):
            self.queue.extend(items)
        self.queue.sent = []
        return result


class _SharedQueue(ResultQueue):
    """What any rank puts in, every rank can take out when the run is over."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Be filled by a run. What one that fails has put in reaches nobody: the ranks part before it is exchanged."""
        kept = len(self.sent)
        with super().filling():
            try:
                yield
            except BaseException:
                del self.sent[kept:]
                raise

    def put(self, item: Any) -> None:
        """Put something in, for all ranks; it must be possible to pickle it."""
        self.sent.append(pack(item))


def _announce(store: Store, error: BaseException, info: DistributedInfo) -> None:
    failure = Failure.of(error, info.rank)
    if not failure.is_echo:  # An echo is no news, and who was first must not be hidden by it.
        with contextlib.suppress(RuntimeError):  # Then the store is out of reach, and there is nobody to be told.
            announce_failure(store, failure)
