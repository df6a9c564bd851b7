"""Ranks for tests: processes that meet over gloo, do something together, and tell what came of it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from helios.core.distributed import DistributedInfo, init_dist, shutdown_dist

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

PATIENCE = 60  # seconds; whoever needs longer waits for a rank that will not come


def _be_rank(
    work: Callable[..., Any], rank: int, world_size: int, meeting: str, connection: Connection, args: bytes
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    init_dist(info=DistributedInfo(rank, world_size, rank, world_size), backend="gloo", init_method=meeting)
    dist.barrier()  # None leaves while another one still makes the group.
    try:
        answer: tuple[bool, Any] = (True, work(rank, *pickle.loads(args)))
    except BaseException:  # noqa: BLE001 - it is raised in the test that started the rank.
        answer = (False, traceback.format_exc())
    connection.send_bytes(pickle.dumps(answer))
    connection.close()
    shutdown_dist()


def run_ranks(folder: Path, world_size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `work(rank, *args)` on each of `world_size` ranks, and return what each returned; `None` if it was killed.

    Args:
        folder: where the ranks meet.
        world_size: how many there are.
        work: a function of a module.
        args: what it is given, besides the rank.
    """
    context = multiprocessing.get_context("forkserver")
    meeting = f"file://{folder / os.urandom(4).hex()}"
    # By value, both ways: multiprocessing would share the memory of tensors.
    given = pickle.dumps(args)
    pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
    ranks = [
        context.Process(target=_be_rank, args=(work, rank, world_size, meeting, pipes[rank][1], given))
        for rank in range(world_size)
    ]
    for process, (_, theirs) in zip(ranks, pipes, strict=True):
        process.start()
        theirs.close()
    try:
        return [_receive(ours, f"rank {rank} of {world_size}") for rank, (ours, _) in enumerate(pipes)]
    finally:
        for process in ranks:
            process.join(PATIENCE / 6)
            process.kill()


def _receive(connection: Connection, name: str) -> Any:
    assert connection.poll(PATIENCE), f"{name} is stuck"
    try:
        is_well, answer = pickle.loads(connection.recv_bytes())
    except EOFError:
        return None
    assert is_well, f"{name} raised\n{answer}"
    return answer
