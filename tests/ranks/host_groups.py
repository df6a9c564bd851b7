"""Controls for tests of what ranks agree on."""

from __future__ import annotations

import torch.distributed as dist

from helios.core.distributed import get_dist_info
from helios.ranks.host_group import HostGroup


def join_host_group() -> HostGroup:
    """Return this rank's side of an agreement of all ranks of the process group; all must call it."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return HostGroup(get_dist_info(), group)
