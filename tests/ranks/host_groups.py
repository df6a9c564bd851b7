"""Controls for tests of what ranks agree on."""

from __future__ import annotations

import torch.distributed as dist

from helios.core.distributed import get_dist_info
from helios.ranks.host_group import Control


def join_control() -> Control:
    """Return this rank's side of an agreement of all ranks of the process group; all must call it."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return Control(get_dist_info(), group)
