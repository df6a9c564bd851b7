"""The device mesh of all ranks.

torch's mesh is imported only when it is needed, so a run without sharded tensors does not load it.
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
    """Return the one-dimensional mesh of all ranks.

    Args:
        device_type: the device type of the shards, "cuda" or "cpu".

    Raises:
        NotRunningError: if there is no process group.
    """
    if not is_dist_active():
        raise NotRunningError("a mesh needs a process group, and there is none: call init_dist() first")
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - see the module's docstring.

    return init_device_mesh(device_type, (dist.get_world_size(),), mesh_dim_names=("ranks",))
