"""Ranks and what they tell each other, on top of `torch.distributed`.

Every function here also works without a process group, where the one process is rank 0 of 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import secrets
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
import torch.distributed as dist

from helios.core.environment import read_environment
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_TORCHRUN_VARIABLES: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT: Final = datetime.timedelta(minutes=30)


@dataclasses.dataclass(frozen=True)
class DistributedInfo:
    """Where this process stands among all that train together.

    Attributes:
        local_rank: the rank among the processes of this machine.
        local_world_size: the number of processes on this machine.
        rank: the rank among all processes.
        world_size: the number of all processes.
    """

    local_rank: int = 0
    local_world_size: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def global_rank(self) -> int:
        """Another name of `rank`, which is always global."""
        return self.rank


class Store(Protocol):
    """A key-value store that all ranks of a run reach: `torch.distributed.Store`, as far as it is needed."""

    def set(self, key: str, value: str | bytes, /) -> None:
        """Set the value of a key."""
        ...

    def get(self, key: str, /) -> bytes:
        """Return the value of a key; waits for one that is not set."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Whether all of these keys are set."""
        ...

    def compare_set(self, key: str, expected: str | bytes, value: str | bytes, /) -> bytes:
        """Set the value of a key if it is the one expected, empty for a key that is not set; return the value then."""
        ...

    def delete_key(self, key: str, /) -> bool:
        """Forget a key; return whether it was set."""
        ...

    def queue_push(self, key: str, value: str | bytes, /) -> None:
        """Put a value at the end of a queue."""
        ...

    def queue_pop(self, key: str, /) -> bytes:
        """Take the value at the head of a queue; waits for one if there is none."""
        ...

    def queue_len(self, key: str, /) -> int:
        """Return the length of a queue."""
        ...

    def clone(self) -> Store:
        """Return the same store over another connection, for another thread."""
        ...


_current: DistributedInfo | None = None


def is_using_torchrun(environment: Mapping[str, str] | None = None) -> bool:
    """Whether `torchrun` started this process: all the variables that it sets are there."""
    environment = read_environment() if environment is None else environment
    return all(name in environment for name in _TORCHRUN_VARIABLES)


def _info_from_torchrun(environment: Mapping[str, str]) -> DistributedInfo:
    return DistributedInfo(
        local_rank=int(environment["LOCAL_RANK"]),
        local_world_size=int(environment["LOCAL_WORLD_SIZE"]),
        rank=int(environment["RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
    )


def init_dist(
    info: DistributedInfo | None = None,
    *,
    backend: str | None = None,
    init_method: str = "env://",
    store: Store | None = None,
) -> None:
    """Join the process group.

    Args:
        info: this process's place; read from `torchrun`'s environment if it is `None`.
        backend: as `torch.distributed.init_process_group` takes it; by default "nccl" where CUDA is available, else
            "gloo".
        init_method: where the processes meet, as `torch.distributed.init_process_group` takes it.
        store: where they meet instead, if it is given.

    Raises:
        ConfigurationError: if there is neither `info` nor `torchrun`, or a group is active already.
    """
    global _current  # noqa: PLW0603 - the process group that this mirrors is a global of the process, too.
    if is_dist_active():
        raise ConfigurationError("a process group is active already: call shutdown_dist() before init_dist()")
    if info is None:
        if not is_using_torchrun():
            missing = [name for name in _TORCHRUN_VARIABLES if name not in read_environment()]
            raise ConfigurationError(f"not started by torchrun ({', '.join(missing)} not set): pass `info`")
        info = _info_from_torchrun(read_environment())
    dist.init_process_group(
        backend or ("nccl" if torch.cuda.is_available() else "gloo"),
        init_method=init_method if store is None else None,
        store=store,  # type: ignore[arg-type]  # One of torch's; see Store.
        rank=info.rank,
        world_size=info.world_size,
        timeout=_TIMEOUT,
    )
    _current = info


_torchrun_store: Store | None = None
_meetings = itertools.count()
_POLL: Final = 0.01  # Seconds between two looks for the others.


def next_meeting() -> Store:
    """Return a place for the ranks that `torchrun` has started to meet at, a new one at each call.

    All ranks must call it equally often. The connection behind it is made once in the life of a process; without it,
    what one process group has left there would be taken for the next one's.
    """
    global _torchrun_store  # noqa: PLW0603 - one connection a process, as torchrun's environment is one a process.
    if _torchrun_store is None:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=_TIMEOUT))  # type: ignore[attr-defined]  # torch exports it, its annotations do not
        _torchrun_store = _prefix(_agree_on_life(store, rank, world_size), store)
    return _prefix(f"{next(_meetings)}", _torchrun_store)


def _prefix(prefix: str, store: Any) -> Store:
    prefixed: Any = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]  # torch exports it, its annotations do not
    agreed: Store = prefixed
    return agreed


def _agree_on_life(store: Any, rank: int, world_size: int) -> str:
    """Return a name that the ranks of this life of the job have in common, and those of no earlier one.

    After a failure, `torchrun` starts all ranks again over the same store, in which the dead have left their keys; and
    the number of restarts that it tells them need not be the same on every machine. So each rank says hello with a name
    that was never used before. Rank 0 answers with a name for all, and with the hellos that it has read, so that nobody
    believes an answer to the dead; it goes on when all have thanked for that very name.
    """
    own = secrets.token_hex(16)
    others = range(1, world_size)
    if rank > 0:
        store.set(f"helios/hello/{rank}", own)
        while True:
            name, _, heard = (store.get("helios/welcome") if store.check(["helios/welcome"]) else b"").partition(b" ")
            if own.encode() in heard.split():
                store.set(f"helios/thanks/{rank}", name)
                return name.decode()
            time.sleep(_POLL)

    def read(what: str) -> list[bytes]:
        keys = [f"helios/{what}/{other}" for other in others]
        return [store.get(key) if store.check([key]) else b"" for key in keys]

    answered: list[bytes] | None = None
    while read("thanks") != [own.encode()] * len(others):
        if (hellos := read("hello")) != answered:
            store.set("helios/welcome", b" ".join([own.encode(), *hellos]))
            answered = hellos
        time.sleep(_POLL)
    return own


def host_store() -> tuple[Store, int]:
    """Open a store in this process, for ranks on this machine.

    Returns:
        The store, which closes when it is let go of, and its port: one that is free, and taken from here on.
    """
    store: Any = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]  # torch exports it, its annotations do not
    return store, store.port


def reach_store(port: int) -> Store:
    """Return the store that another process of this machine hosts."""
    store: Any = dist.TCPStore("127.0.0.1", port, is_master=False)  # type: ignore[attr-defined]  # as above
    reached: Store = store
    return reached


@contextlib.contextmanager
def membership(store: Store, info: DistributedInfo, device: torch.device) -> Iterator[dist.ProcessGroup]:
    """Be a member of the process group while the context lasts; of the one that is there already, if there is one.

    Args:
        store: where the ranks meet.
        info: this process's place among them.
        device: the device of this process; on a GPU, its tensors are exchanged over NCCL, and those of the host over
            gloo.

    Returns:
        A gloo group of all ranks for the agreement among the hosts, apart from the one that gradients go over.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    is_guest = is_dist_active()
    others = _open_sockets()
    if not is_guest:
        init_dist(info, backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store)
    control = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    assert control is not None  # noqa: S101 - for the type checker: this process is a member of it.
    connections = _open_sockets() - others
    try:
        yield control
    except BaseException:
        _hang_up(connections)
        if not is_guest and device.type == "cuda":
            # Leaving in the ordinary way waits for what is under way, and the other ranks may never take part in it.
            dist.distributed_c10d._abort_process_group()  # noqa: SLF001 - torch has no public way yet.
        raise
    finally:
        if is_guest:
            dist.destroy_process_group(control)
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


def shutdown_dist() -> None:
    """Leave the process group; does nothing where there is none."""
    global _current  # noqa: PLW0603 - see init_dist.
    if is_dist_active():
        dist.destroy_process_group()
    _current = None


def is_dist_active() -> bool:
    """Whether this process is a member of a process group."""
    return dist.is_available() and dist.is_initialized()


def get_dist_info() -> DistributedInfo:
    """Return this process's place: rank 0 of 1 where there is neither a group nor `torchrun`."""
    if _current is not None:
        return _current
    if is_dist_active():  # Somebody else made the group; it knows nothing of machines.
        return DistributedInfo(dist.get_rank(), dist.get_world_size(), dist.get_rank(), dist.get_world_size())
    if is_using_torchrun():
        return _info_from_torchrun(read_environment())
    return DistributedInfo()


def get_local_rank() -> int:
    """Return the rank among the processes of this machine."""
    return get_dist_info().local_rank


def get_global_rank() -> int:
    """Return the rank among all processes."""
    return get_dist_info().rank


def get_local_world_size() -> int:
    """Return the number of processes on this machine."""
    return get_dist_info().local_world_size


def get_world_size() -> int:
    """Return the number of all processes."""
    return get_dist_info().world_size


def all_reduce_tensors(tensor: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Add a tensor up over all ranks.

    Args:
        tensor: a tensor of the same shape and dtype on every rank, or a sequence of such, which is stacked first.

    Returns:
        A new tensor with the sum; without a process group, a copy.
    """
    if isinstance(tensor, torch.Tensor):
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
    else:
        total = torch.stack([t.detach() for t in tensor])
    if is_dist_active():
        dist.all_reduce(total)
    return total


def gather_into_tensor(tensor: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Collect every rank's tensor on every rank.

    Args:
        tensor: a tensor of the same shape and dtype on every rank.
        size: the shape of the result; it must hold the elements of all ranks.

    Returns:
        A tensor of shape `size` with the ranks' tensors in order of rank.

    Raises:
        ConfigurationError: if `size` holds another number of elements.
    """
    world_size = get_world_size() if is_dist_active() else 1
    wanted = int(torch.Size(size).numel())
    if wanted != tensor.numel() * world_size:
        rule = f"{world_size} ranks of {tensor.numel()} elements each"
        raise ConfigurationError(f"size {tuple(size)} holds {wanted} elements, not those of {rule}")
    part = tensor.detach().contiguous()
    parts = [torch.empty_like(part) for _ in range(world_size)]
    if is_dist_active():
        dist.all_gather(parts, part)
    else:
        parts[0].copy_(part)
    return torch.stack(parts).reshape(tuple(size))


def safe_barrier() -> None:
    """Wait for all ranks; does nothing without a process group."""
    if is_dist_active():
        dist.barrier()


def global_print(*args: Any, global_rank: int = 0, **kwargs: Any) -> None:
    """Print on one rank of all: rank 0 unless told otherwise."""
    if get_global_rank() == global_rank:
        print(*args, **kwargs)


def local_print(*args: Any, local_rank: int = 0, **kwargs: Any) -> None:
    """Print on one rank of each machine: local rank 0 unless told otherwise."""
    if get_local_rank() == local_rank:
        print(*args, **kwargs)
