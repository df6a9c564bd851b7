"""Process groups, ranks and collectives, on top of `torch.distributed`.

Every function here also works without a process group: the process is then rank 0 of 1.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
from typing import TYPE_CHECKING, Any, Final, TextIO

import torch
import torch.distributed as dist

from helios.core.environment import read_environment
from helios.core.streams import STDOUT
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
    info: DistributedInfo | None = None,
    *,
    backend: str | None = None,
    init_method: str = "env://",
    store: Any = None,
) -> None:
    """Join the process group.

    Args:
        info: the ranks of this process; read from `torchrun`'s environment variables if it is `None`.
        backend: as `torch.distributed.init_process_group` takes it; by default "nccl" where CUDA is available, else
            "gloo".
        init_method: the URL of the rendezvous, as `torch.distributed.init_process_group` takes it.
        store: a `torch.distributed.Store` for the rendezvous, in place of `init_method`.

    Raises:
        ConfigurationError: if `info` is `None` and `torchrun` did not start this process, or if a group is active.
        ArgumentTypeError: if an argument has the wrong type.
    """
    for name, value, kind in (
        ("info", info, DistributedInfo),
        ("backend", backend, str),
        ("init_method", init_method, str),
    ):
        if value is not None and not isinstance(value, kind):
            raise ArgumentTypeError(f"{name} is {value!r}, a {type(value).__name__}: pass a {kind.__name__}")
    global _current  # noqa: PLW0603 - the process group that this mirrors is a global of the process, too.
    if is_dist_active():
        raise ConfigurationError("a process group is active already: call shutdown_dist() before init_dist()")
    if info is None:
        if not is_using_torchrun():
            missing = ", ".join(find_missing_variables())
            raise ConfigurationError(f"not started by torchrun ({missing} not set): pass `info`")
        info = _info_from_torchrun(read_environment())
    dist.init_process_group(
        backend or ("nccl" if torch.cuda.is_available() else "gloo"),
        init_method=init_method if store is None else None,
        store=store,
        rank=info.rank,
        world_size=info.world_size,
        timeout=TIMEOUT,
    )
    _current = info


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
    known = _info_from_torchrun(read_environment()) if is_using_torchrun() else DistributedInfo()
    if not is_dist_active():
        return known
    # The group was not made by init_dist, and a process group does not know which ranks share a machine: unless
    # torchrun's variables fit, all are taken to be on this one.
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if (known.rank, known.world_size) == (rank, world_size):
        return known
    return DistributedInfo(rank, world_size, rank, world_size)


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


def all_reduce_tensors(tensor: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum a tensor over all ranks.

    Args:
        tensor: a tensor of the same shape and dtype on every rank, or a sequence of such tensors, which is stacked.

    Returns:
        A new tensor with the sum; without a process group, a copy.

    Raises:
        ArgumentTypeError: if `tensor` is of another type.
        ConfigurationError: if the tensors of a sequence differ in shape, or there are none.
    """
    is_sequence = not isinstance(tensor, torch.Tensor) and hasattr(tensor, "__iter__")
    tensors: list[Any] = list(tensor) if is_sequence else [tensor]
    if not all(isinstance(part, torch.Tensor) for part in tensors):
        raise ArgumentTypeError(f"tensor is {tensor!r}: pass a tensor, or a sequence of tensors")
    if len({part.shape for part in tensors}) != 1:
        raise ConfigurationError(
            f"tensor is a sequence of {len(tensors)} tensors that differ in shape: pass one or more of one shape"
        )
    if isinstance(tensor, torch.Tensor):
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
    else:
        total = torch.stack([t.detach() for t in tensors])
    if is_dist_active():
        dist.all_reduce(total)
    return total


def gather_into_tensor(tensor: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Gather the tensors of all ranks on every rank.

    Args:
        tensor: a tensor of the same shape and dtype on every rank.
        size: the shape of the result; its number of elements must be that of all ranks' tensors together.

    Returns:
        A tensor of shape `size` that holds the ranks' tensors in order of rank.

    Raises:
        ConfigurationError: if `size` has another number of elements.
        ArgumentTypeError: if `tensor` is no tensor, or `size` is no shape.
    """
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentTypeError(f"tensor is {tensor!r}, a {type(tensor).__name__}: pass a tensor")
    world_size = get_world_size() if is_dist_active() else 1
    try:
        wanted = int(torch.Size(size).numel())
    except (TypeError, OverflowError) as error:
        raise ArgumentTypeError(f"size is {size!r}: pass a shape, a tuple of integers") from error
    if wanted != tensor.numel() * world_size:
        raise ConfigurationError(
            f"size {tuple(size)} holds {wanted} elements, not those of {world_size} ranks of {tensor.numel()} elements "
            "each: pass a shape with as many"
        )
    part = tensor.detach().contiguous()
    parts = [torch.empty_like(part) for _ in range(world_size)]
    if is_dist_active():
        dist.all_gather(parts, part)
    else:
        parts[0].copy_(part)
    return torch.stack(parts).reshape(tuple(size))


def safe_barrier() -> None:
    """Wait until all ranks have called this; does nothing without a process group."""
    if is_dist_active():
        dist.barrier()


def global_print(*args: Any, global_rank: int = 0, **kwargs: Any) -> None:
    """Print on one rank.

    Standard output that cannot be written (a full disk, a broken pipe) does not end a run: it is logged once, and
    nothing more is printed there. Errors of a file that the caller passes are raised.

    Args:
        *args: as for `print`.
        global_rank: the rank that prints.
        **kwargs: as for `print`.
    """
    if get_global_rank() == global_rank:
        _print(*args, **kwargs)


def local_print(*args: Any, local_rank: int = 0, **kwargs: Any) -> None:
    """Print on one rank of each machine; see `global_print`.

    Args:
        *args: as for `print`.
        local_rank: the local rank that prints.
        **kwargs: as for `print`.
    """
    if get_local_rank() == local_rank:
        _print(*args, **kwargs)


def _print(*args: Any, file: TextIO | None = None, flush: bool = False, **kwargs: Any) -> None:
    if file is not None:
        print(*args, file=file, flush=flush, **kwargs)
        return
    text = io.StringIO()
    print(*args, file=text, **kwargs)
    STDOUT.write(text.getvalue(), flush=flush)
