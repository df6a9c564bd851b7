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
    """Join the process group while the context lasts; use the active one if there is one.

    Args:
        store: the store through which the ranks connect.
        info: this process's place among the ranks.
        device: the device of this process. A GPU must be the current device; its tensors are then communicated over
            NCCL, and those on the CPU over gloo.

    Returns:
        A gloo group of all ranks for the `HostGroup`, separate from the group that reduces gradients.
    """
    is_guest = is_dist_active()
    others = _open_sockets()
    if not is_guest:
        init_dist(info=info, backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store)
    settle_before_forks()
    try:
        host_group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    except BaseException:
        _shut_down(_open_sockets() - others)
        if not is_guest:
            shutdown_dist()  # Otherwise the next run would use what is left of this group.
        raise
    assert host_group is not None  # noqa: S101 - for the type checker: this process is a member of it.
    connections = _open_sockets() - others
    try:
        yield host_group
    except BaseException:
        _shut_down(connections)
        if not is_guest and device.type == "cuda":
            # An ordinary shutdown waits for pending collectives, in which the other ranks may never take part.
            dist.distributed_c10d._abort_process_group()  # noqa: SLF001 - torch has no public way yet.
        raise
    else:
        # If a thread of gloo still releases a collective while the interpreter shuts down, the process crashes.
        settle()
    finally:
        if is_guest:
            dist.destroy_process_group(host_group)
        else:
            shutdown_dist()


def _open_sockets() -> set[tuple[int, str]]:
    """Return number and identity of each socket of this process; nothing on systems without `/proc`."""
    found = set()
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # It was closed meanwhile.
            found.add((int(entry.name), str(entry.readlink())))
    return {(number, identity) for number, identity in found if identity.startswith("socket:")}


def _shut_down(connections: set[tuple[int, str]]) -> None:
    """Shut down gloo's connections, so that the collectives of the other ranks raise.

    gloo keeps its connections open as long as anything refers to a group, such as the traceback of the error or a
    network in DDP, and the other ranks would wait for this one.
    """
    for number, _ in connections & _open_sockets():
        # A listening socket has no peer, and gloo crashes if it is shut down.
        with contextlib.suppress(OSError), socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.getpeername()
            connection.shutdown(socket.SHUT_RDWR)
