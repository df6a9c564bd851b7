"""What tests of what ranks have in common get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helios.core.distributed import DistributedInfo, init_dist, shutdown_dist

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make this process the only rank of a group."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    init_dist(DistributedInfo(), backend="gloo", init_method=f"file://{tmp_path / 'meet'}")
    yield
    shutdown_dist()
