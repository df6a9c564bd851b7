"""Process groups, ranks and collectives, on top of `torch.distributed`.

Every function here also works without a process group: the process is then rank 0 of 1.
"""

from helios.core.distributed.collectives import all_reduce_tensors, gather_into_tensor, safe_barrier
from helios.core.distributed.group import (
    TIMEOUT,
    DistributedInfo,
    find_missing_variables,
    get_dist_info,
    get_global_rank,
    get_local_rank,
    get_local_world_size,
    get_world_size,
    init_dist,
    is_dist_active,
    is_using_torchrun,
    set_dist_info,
    shutdown_dist,
)
from helios.core.distributed.printing import global_print, local_print

__all__ = [
    "TIMEOUT",
    "DistributedInfo",
    "all_reduce_tensors",
    "find_missing_variables",
    "gather_into_tensor",
    "get_dist_info",
    "get_global_rank",
    "get_local_rank",
    "get_local_world_size",
    "get_world_size",
    "global_print",
    "init_dist",
    "is_dist_active",
    "is_using_torchrun",
    "local_print",
    "safe_barrier",
    "set_dist_info",
    "shutdown_dist",
]
