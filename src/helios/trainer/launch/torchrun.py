"""Runs under `torchrun`, which has started all processes, on any number of machines; each of them calls `fit`."""

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
        """Run the task together with the other ranks; return the result of rank 0 on each of them."""
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
        host_group.all_reduce_max(0)  # Wait until the data is prepared on all machines.
        result = run_task(task, host_group)
        for items in host_group.all_gather_object(self.queue.sent):
            self.queue.extend(items)
        self.queue.sent = []
        return result


class _SharedQueue(ResultQueue):
    """A queue whose items, put by any rank, are available on every rank when the run has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Receive the items of a run. Those of a failed run are dropped: its ranks stop before they exchange them."""
        before = len(self.sent)
        with super().filling():
            try:
                yield
            except BaseException:
                del self.sent[before:]
                raise

    def put(self, item: Any) -> None:
        """Put an item, for all ranks; it must be picklable."""
        self.sent.append(pack(item))


def _announce(store: Store, error: BaseException, info: DistributedInfo) -> None:
    failure = Failure.of(error, info.rank)
    if not failure.is_echo:  # An echo must not hide the rank that failed first.
        with contextlib.suppress(RuntimeError):  # Without the store, the other ranks cannot be reached.
            announce_failure(store, failure)
