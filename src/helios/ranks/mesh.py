"""The mesh of all ranks.

Nothing here imports what it does not need: a run without sharded tensors never loads the packages that make them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch.distributed as dist

from helios.core.distributed import is_dist_active
from helios.errors import NotRunningError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Mesh: TypeAlias = "DeviceMesh"


def make_mesh(device_type: str) -> DeviceMesh:
    """Return the mesh of all ranks, of one dimension.

    Args:
        device_type: where the ranks hold their parts, "cuda" or "cpu".

    Raises:
        NotRunningError: if there is no process group.
    """
    if not is_dist_active():
        raise NotRunningError(
            "a mesh is made of the ranks of a process group, and there is none: call init_dist() first"
        )
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - see the module's docstring.

    return init_device_mesh(device_type, (dist.get_world_size(),), mesh_dim_names=("ranks",))
