from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.data.sources import SequenceSource, make_source
from helios.errors import CheckpointMismatchError
from tests.data.drawing import draw
from tests.data.sources.reading import position_at


@given(size=st.integers(1, 9), epoch=st.integers(0, 3))
@settings(max_examples=20)
def test_a_list_continues_where_it_was(size: int, epoch: int) -> None:
    """After every number of batches, a list of batches yields the remaining ones."""
    source = make_source(list(range(size)), None)
    assert isinstance(source, SequenceSource)
    assert source.batches_per_epoch() == size
    for done in range(size + 1):
        assert list(source.iterate(epoch, done, position_at(source, done))) == list(range(done, size))


def test_a_list_of_another_length_is_refused() -> None:
    """A position in a list is refused in a list of another length."""
    position = make_source([1, 2, 3], None).position_state(1)
    with pytest.raises(CheckpointMismatchError, match="over 3 batches, but there are 2 now"):
        make_source([1, 2], None).iterate(0, 1, position)


class Drawn(Sequence[torch.Tensor]):
    """Batches that are made in `__getitem__`, with random draws."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: Any) -> Any:
        return torch.tensor([float(index), *draw()], dtype=torch.float64)


def test_batches_that_are_made_in_getitem_are_keyed() -> None:
    """A draw in the `__getitem__` of a sequence of batches is a function of seed, epoch and position."""
    source = make_source(Drawn(), None, seed=3)
    epochs = [[batch.tolist() for batch in source.iterate(epoch)] for epoch in (0, 1)]
    draw()
    assert [batch.tolist() for batch in make_source(Drawn(), None, seed=3).iterate(1, 2)] == epochs[1][2:]
    others = [batch.tolist() for batch in make_source(Drawn(), None, seed=4).iterate(1)]
    assert len({value for rows in (*epochs, others) for row in rows for value in row[1:]}) == 3 * 4 * 4
