"""What tests of several processes get."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def forked_ranks() -> Iterator[None]:
    """Have `fit` fork its ranks from the tests' fork server, in place of starting interpreters, which takes seconds."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)
