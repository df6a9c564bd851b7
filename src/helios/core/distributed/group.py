"""The process group of this process, and its ranks in it."""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist

from helios.core.environment import read_environment
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT: Final = datetime.timedelta(minutes=30)  # How long collectives wait, unless a call passes another timeout.
_TORCHRUN_VARIABLES: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclasses.dataclass(frozen=True)
class DistributedInfo:
    """The ranks of this process, and the number of processes.

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
        """The same as `rank`, which is always global."""
        return self.rank


_current: DistributedInfo | None = None


def is_using_torchrun(environment: Mapping[str, str] | None = None) -> bool:
    """Whether `torchrun` started this process: all the environment variables that it sets exist.

    Args:
        environment: the environment variables; those of this process if it is `None`.
    """
    return not find_missing_variables(environment)


def find_missing_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return which of the environment variables that `torchrun` sets are missing."""
    environment = read_environment() if environment is None else environment
    return [name for name in _TORCHRUN_VARIABLES if name not in environment]


def _info_from_torchrun(environment: Mapping[str, str]) -> DistributedInfo:
    return DistributedInfo(
        local_rank=int(environment["LOCAL_RANK"]),
        local_world_size=int(environment["LOCAL_WORLD_SIZE"]),
        rank=int(environment["RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
    )


def init_dist(
    backend: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    *,
    info: DistributedInfo | None = None,
    init_method: str | None = None,
    store: Any = None,
    **kwargs: Any,
) -> None:
    """Join the process group.

    The ranks of this process are those of `info`, or `rank` of `world_size`, or those that `torchrun`'s environment
    variables tell, in this order. With `rank` and `world_size`, all ranks are taken to be on this machine, unless
    `torchrun`'s variables name the same two.

    Args:
        backend: as `torch.distributed.init_process_group` takes it; by default "nccl" where CUDA is available, else
            "gloo".
        rank: the rank of this process among all, from 0.
        world_size: the number of all processes.
        info: the ranks of this process, in place of `rank` and `world_size`.
        init_method: the URL of the rendezvous, as `torch.distributed.init_process_group` takes it; "env://" by default.
        store: a `torch.distributed.Store` for the rendezvous, in place of `init_method`.
        **kwargs: passed on to `torch.distributed.init_process_group`; collectives time out after 30 minutes unless
            `timeout` is among them.

    Raises:
        ConfigurationError: if there are no ranks and `torchrun` did not start this process, if `rank` is not one of
            `world_size`, if torch rejects the arguments, or if a group is active.
        ArgumentTypeError: if an argument has the wrong type.
    """
    for name, value, kind in (
        ("backend", backend, str),
        ("rank", rank, int),
        ("world_size", world_size, int),
        ("info", info, DistributedInfo),
        ("init_method", init_method, str),
    ):
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ArgumentTypeError(f"{name} is {value!r}, a {type(value).__name__}: pass a {kind.__name__}")
    global _current  # noqa: PLW0603 - the process group that this mirrors is a global of the process, too.
    if is_dist_active():
        raise ConfigurationError("a process group is active already: call shutdown_dist() before init_dist()")
    info = info or _choose_info(rank, world_size)
    try:
        dist.init_process_group(
            backend or ("nccl" if torch.cuda.is_available() else "gloo"),
            init_method=(init_method or "env://") if store is None else None,
            store=store,
            rank=info.rank,
            world_size=info.world_size,
            **{"timeout": TIMEOUT, **kwargs},
        )
    except ValueError as error:  # Of a backend that torch does not know, or a variable of env:// that is not set.
        raise ConfigurationError(
            f"rank {info.rank} of {info.world_size} cannot join a process group: {error}; correct backend= or "
            "init_method=, or set the variable"
        ) from error
    _current = info


def _choose_info(rank: int | None, world_size: int | None) -> DistributedInfo:
    if rank is not None and world_size is not None:
        if not 0 <= rank < world_size:
            raise ConfigurationError(f"rank {rank} is not one of {world_size} ranks: pass a rank in [0, world_size)")
        return _locate(rank, world_size)
    if rank is not None or world_size is not None:
        raise ConfigurationError(f"rank is {rank} and world_size is {world_size}: pass both, or neither")
    if not is_using_torchrun():
        missing = ", ".join(find_missing_variables())
        raise ConfigurationError(f"not started by torchrun ({missing} not set): pass rank= and world_size=, or info=")
    return _info_from_torchrun(read_environment())


def _locate(rank: int, world_size: int) -> DistributedInfo:
    # A process group does not know which ranks share a machine: unless torchrun's variables fit, all are taken to be on
    # this one.
    if is_using_torchrun():
        known = _info_from_torchrun(read_environment())
        if (known.rank, known.world_size) == (rank, world_size):
            return known
    return DistributedInfo(rank, world_size, rank, world_size)


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
    """Return the ranks of this process; rank 0 of 1 without a process group and without `torchrun`."""
    if _current is not None:
        return _current
    if is_dist_active():  # The group was not made by init_dist.
        return _locate(dist.get_rank(), dist.get_world_size())
    return _info_from_torchrun(read_environment()) if is_using_torchrun() else DistributedInfo()


def set_dist_info(info: DistributedInfo) -> None:
    """Set the ranks of a process without a process group: those of the rank that a data loader's worker fetches for."""
    global _current  # noqa: PLW0603 - see init_dist.
    _current = info


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
