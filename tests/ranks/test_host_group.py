from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from helios.core.distributed import DistributedInfo, all_reduce_tensors
from helios.ranks.host_group import HostGroup
from helios.ranks.monitor import RankMonitor
from helios.ranks.stores import host_store
from tests.ranks.host_groups import join_host_group
from tests.ranks.ranks import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

LARGE = 2**62


def test_collectives_of_a_single_process_return_its_own_values() -> None:
    """In a single process, every collective returns the value itself, and nothing is announced."""
    host_group, value = HostGroup(), [object()]
    assert (host_group.rank, host_group.world_size, host_group.info) == (0, 1, DistributedInfo())
    assert host_group.all_reduce_max(3, -1) == (3, -1)
    assert host_group.broadcast_object(value) is value
    (gathered,) = host_group.all_gather_object(value)
    assert gathered is value
    host_group.announce(ValueError("received by nobody"))


def test_the_stop_check_of_a_single_process_is_the_signal_watch() -> None:
    """A single process has nothing to agree on, so the stop check is the function that was passed."""

    def was_asked() -> bool:
        return True

    assert HostGroup().make_stop_check(was_asked, lambda: 0) is was_asked


def test_an_error_is_passed_to_the_announce_function() -> None:
    """`announce` passes the error itself to the function of the run."""
    announced: list[BaseException] = []
    error = ValueError("loud")
    HostGroup(announce=announced.append).announce(error)
    assert announced == [error]


def agree(rank: int) -> dict[str, Any]:
    """Run one rank, and return the result of every collective."""
    host_group = join_host_group()
    # Collectives of the training step, here from another thread, must not mix with those of the host group.
    steps = threading.Thread(target=lambda: [all_reduce_tensors(torch.ones(3)) for _ in range(50)])
    steps.start()
    told = {
        "place": (host_group.rank, host_group.world_size),
        "vote": host_group.all_reduce_max(rank, -rank, 7, LARGE - rank, rank - LARGE),
        "flags": host_group.all_reduce_max(rank == 1, rank == 2),
        "share": host_group.broadcast_object(
            {"of": rank} if rank == 0 else steps
        ),  # Which cannot be pickled, and need not be.
        "none": host_group.broadcast_object(None if rank == 0 else steps),
        "gather": host_group.all_gather_object({"of": rank}),
        "gather on rank 0": host_group.gather_object({"of": rank}),
        "bytes": list(host_group.broadcast_bytes(iter([b"ab", b"c"]) if rank == 0 else None)),
        "votes": [host_group.all_reduce_max(step * (rank == step % 2)) for step in range(50)],
    }
    steps.join()
    return told


def test_collectives_of_two_ranks(tmp_path: Path) -> None:
    """Both ranks get the maximum of integers, to the last bit, rank 0's object, and all objects in order of rank."""
    told = run_ranks(tmp_path, 2, agree)
    assert [entry.pop("place") for entry in told] == [(0, 2), (1, 2)]
    assert [entry.pop("gather on rank 0") for entry in told] == [[{"of": 0}, {"of": 1}], None]
    assert told[0] == told[1]
    assert told[0] == {
        "vote": (1, 0, 7, LARGE, 1 - LARGE),
        "flags": (1, 0),
        "share": {"of": 0},
        "none": None,
        "gather": [{"of": 0}, {"of": 1}],
        "bytes": [b"ab", b"c"],
        "votes": [(step,) for step in range(50)],
    }


def test_the_stop_check_of_several_ranks_is_the_monitor_s() -> None:
    """With several ranks, one that is asked to stop does not stop before all have agreed on a position."""
    store, _ = host_store()
    info = DistributedInfo(0, 2, 0, 2)
    host_group = HostGroup(info, monitor=RankMonitor(store, info))
    assert host_group.make_stop_check(lambda: True, lambda: 0)() is False
