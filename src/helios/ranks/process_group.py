"""Joining the process group for a run, and closing its connections when the run fails."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from helios.core.distributed import TIMEOUT, init_dist, is_dist_active, shutdown_dist
from helios.ranks.processes import settle, settle_before_forks

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from helios.core.distributed import DistributedInfo
    from helios.ranks.stores import Store


@contextlib.contextmanager
def process_group(store: Store, info: DistributedInfo, device: torch.device) -> Iterator[dist.ProcessGroup]:
    """Be a member of the process group while the context lasts; of the one that is there already, if there is one.

    Args:
        store: where the ranks meet.
        info: this process's place among them.
        device: the device of this process, which must be the current one if it is a GPU; then its tensors are exchanged
            over NCCL, and those of the host over gloo.

    Returns:
        A gloo group of all ranks for the agreement among the hosts, apart from the one that gradients go over.
    """
    is_guest = is_dist_active()
    others = _open_sockets()
    if not is_guest:
        init_dist(info=info, backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store)
    settle_before_forks()
    try:
        host_group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    except BaseException:
        _hang_up(_open_sockets() - others)
        if not is_guest:
            shutdown_dist()  # The next run would be a guest in what is left here.
        raise
    assert host_group is not None  # noqa: S101 - for the type checker: this process is a member of it.
    connections = _open_sockets() - others
    try:
        yield host_group
    except BaseException:
        _hang_up(connections)
        if not is_guest and device.type == "cuda":
            # Leaving in the ordinary way waits for what is under way, and the other ranks may never take part in it.
            dist.distributed_c10d._abort_process_group()  # noqa: SLF001 - torch has no public way yet.
        raise
    else:
        # A thread of gloo that still releases a collective while the interpreter ends would crash the process.
        settle()
    finally:
        if is_guest:
            dist.destroy_process_group(host_group)
        else:
            shutdown_dist()


def _open_sockets() -> set[tuple[int, str]]:
    """Return number and identity of each of this process's sockets; nothing where the system does not tell."""
    found = set()
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # It was closed meanwhile.
            found.add((int(entry.name), str(entry.readlink())))
    return {(number, identity) for number, identity in found if identity.startswith("socket:")}


def _hang_up(connections: set[tuple[int, str]]) -> None:
    """Let the other ends of gloo's connections know that this rank has failed.

    gloo keeps them for as long as anything refers to a group, such as the traceback of the error or a network in DDP,
    and the other ranks would wait for one that takes part no more.
    """
    for number, _ in connections & _open_sockets():
        # A listener has no other end, and gloo does not bear the loss of it.
        with contextlib.suppress(OSError), socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.getpeername()
            connection.shutdown(socket.SHUT_RDWR)
