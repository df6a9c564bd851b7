from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.core.state import TrainingState, TrainingUnit
from helios.errors import ConfigurationError

FIELDS = [
    "current_iteration",
    "global_iteration",
    "global_epoch",
    "validation_cycles",
    "dataset_iter",
    "early_stop_count",
    "average_iter_time",
    "running_iter",
]


def test_the_state_has_the_names_that_users_read() -> None:
    """The fields are the documented ones, and all counts start at 0."""
    assert TrainingState().to_dict() == dict.fromkeys(FIELDS, 0)


@given(st.lists(st.integers(0, 10**9), min_size=len(FIELDS), max_size=len(FIELDS)))
def test_the_state_comes_back_in_place(values: list[int]) -> None:
    """Every reference to a state sees the counts that were loaded into it."""
    counts = dict(zip(FIELDS, values, strict=True))
    state = TrainingState(**counts)
    held = TrainingState()
    held.load_dict(state.to_dict())
    assert held == state
    assert held.to_dict() == counts


@pytest.mark.parametrize(
    ("started", "done_in_it", "completed"), [(0, 0, 0), (1, 1, 0), (1, 0, 1), (5, 2, 4), (5, 0, 5)]
)
def test_the_current_epoch_is_derived(started: int, done_in_it: int, completed: int) -> None:
    """The index of the epoch is derived from the counts; an epoch in progress is not complete."""
    state = TrainingState(global_epoch=started, dataset_iter=done_in_it)
    assert state.completed_epochs == completed
    assert state.is_epoch_in_progress == (done_in_it > 0)


@pytest.mark.parametrize("label", ["epoch", "EPOCH", "Iteration"])
def test_a_unit_is_found_by_its_name(label: str) -> None:
    """`from_str` accepts upper and lower case."""
    assert TrainingUnit.from_str(label) is TrainingUnit[label.upper()]


@pytest.mark.parametrize("label", ["epochs", "", None, 3])
def test_an_unknown_unit_is_refused(label: Any) -> None:
    """Another name is an error that lists the units."""
    with pytest.raises(ConfigurationError, match=f"{label!r} is unknown: choose one of 'epoch', 'iteration'"):
        TrainingUnit.from_str(label)
