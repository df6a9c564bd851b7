from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from helios.core.distributed import DistributedInfo, get_dist_info, is_dist_active, shutdown_dist
from helios.ranks.host_group import HostGroup
from helios.ranks.process_group import process_group
from tests.ranks.ranks import run_ranks

if TYPE_CHECKING:
    from pathlib import Path


def store_at(meeting: Path) -> Any:
    return dist.FileStore(str(meeting), 2)  # type: ignore[attr-defined]  # torch exports it, unannotated


def visit(rank: int, meeting: Path) -> tuple[bool, bool]:
    """Be a guest in the group that is there; return whether it works and is there afterwards, and one's own then."""
    info, cpu = DistributedInfo(rank, 2, rank, 2), torch.device("cpu")
    with process_group(store_at(meeting), info, cpu) as group:
        assert HostGroup(info, group).all_gather_object(rank) == [0, 1]
    was_left_alone = is_dist_active()
    shutdown_dist()
    with process_group(store_at(meeting.with_suffix(".own")), info, cpu) as group:
        assert HostGroup(info, group).all_gather_object(rank) == [0, 1]
        assert is_dist_active()
    return was_left_alone, is_dist_active()


def look_around(rank: int, meeting: Path, environment: dict[str, str]) -> DistributedInfo:
    """Return what is known of this process's place in a group that somebody else has made."""
    shutdown_dist()
    os.environ.update(environment | {"RANK": str(rank)})
    dist.init_process_group("gloo", store=store_at(meeting), rank=rank, world_size=2)
    dist.barrier()  # Neither leaves while the other one still makes the group.
    return get_dist_info()


def test_local_ranks_of_an_existing_group_are_those_of_torchrun(tmp_path: Path) -> None:
    """In an existing process group, local ranks are those of torchrun, if its variables are about that group."""
    torchrun = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    known = run_ranks(tmp_path, 2, look_around, tmp_path / "known", torchrun)
    assert known == [DistributedInfo(0, 1, rank, 2) for rank in range(2)]
    unknown = run_ranks(tmp_path, 2, look_around, tmp_path / "unknown", torchrun | {"WORLD_SIZE": "4"})
    assert unknown == [DistributedInfo(rank, 2, rank, 2) for rank in range(2)]


def test_an_existing_group_is_used_and_not_destroyed(tmp_path: Path) -> None:
    """A run uses an existing process group, and destroys only the groups that it has created."""
    assert run_ranks(tmp_path, 2, visit, tmp_path / "store") == [(True, False)] * 2


def let_down(rank: int, meeting: Path) -> float:
    """On rank 0, return how long it waits in a vote when rank 1 has failed, and keeps all that it has."""
    shutdown_dist()
    store: Any = dist.FileStore(str(meeting), 2)  # type: ignore[attr-defined]  # torch exports it, unannotated
    info = DistributedInfo(rank, 2, rank, 2)
    began, kept = time.monotonic(), list[object]()
    with contextlib.suppress(RuntimeError), process_group(store, info, torch.device("cpu")) as group:
        host_group = HostGroup(info, group)
        kept += [host_group, DistributedDataParallel(torch.nn.Linear(1, 1))]
        host_group.all_reduce_max(0)
        if rank == 1:
            raise RuntimeError("not today")
        began = time.monotonic()
        host_group.all_reduce_max(0)
    waited = time.monotonic() - began
    time.sleep(5 * rank)
    return waited


def test_a_failed_rank_releases_the_others(tmp_path: Path) -> None:
    """Collectives of the other ranks raise at once, even if objects still refer to the failed rank's groups."""
    assert run_ranks(tmp_path, 2, let_down, tmp_path / "store")[0] < 3


def begin_twice(rank: int, meeting: Path) -> tuple[str, bool, bool]:
    """Fail to make a group, and begin again; return the error, whether something was left then, and at the end."""
    shutdown_dist()
    info, cpu = DistributedInfo(rank, 2, rank, 2), torch.device("cpu")

    def refuse(**_: Any) -> None:
        marks = [meeting.with_suffix(f".{number}") for number in range(2)]
        marks[rank].touch()
        while not all(mark.exists() for mark in marks):  # Until the first group stands on both.
            time.sleep(0.01)
        raise RuntimeError("no group today")

    broken = mock.patch.object(dist, "new_group", refuse)
    text = ""
    try:
        with broken, process_group(store_at(meeting), info, cpu):
            pass
    except RuntimeError as error:
        text = str(error)
    was_left = is_dist_active()
    with process_group(store_at(meeting.with_suffix(".again")), info, cpu) as group:
        assert HostGroup(info, group).all_gather_object(rank) == [0, 1]
    return text, was_left, is_dist_active()


def test_a_failed_setup_leaves_no_group(tmp_path: Path) -> None:
    """If the groups of a run cannot be created, none is left, and the next run creates its own."""
    assert run_ranks(tmp_path, 2, begin_twice, tmp_path / "store") == [("no group today", False, False)] * 2
