"""What tests of two machines get."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.distributed.hosts import two_hosts, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.distributed.hosts import Host


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Return two hosts, which are network namespaces of this one."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with two_hosts() as both:
        yield both
