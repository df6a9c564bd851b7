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
    "optimizer_steps",
]


def test_the_state_has_the_names_that_users_read() -> None:
    """The fields are the documented ones, and all counts start at 0."""
    assert TrainingState().dict() == dict.fromkeys(FIELDS, 0)


@given(st.lists(st.integers(0, 10**9), min_size=len(FIELDS), max_size=len(FIELDS)))
def test_the_state_comes_back_in_place(values: list[int]) -> None:
    """Every reference to a state sees the counts that were loaded into it."""
    counts = dict(zip(FIELDS, values, strict=True))
    state = TrainingState(**counts)
    held = TrainingState()
    held.load_dict(state.dict())
    assert held == state
    assert held.dict() == counts


@pytest.mark.parametrize("unit", TrainingUnit)
@pytest.mark.parametrize("accumulation_steps", [1, 2, 3])
def test_a_batch_is_counted(unit: TrainingUnit, accumulation_steps: int) -> None:
    """By epoch, `current_iteration` counts batches, and by iteration completed accumulations."""
    state = TrainingState()
    completes = [state.count_batch(unit, accumulation_steps) for _ in range(7)]
    assert completes == [(i + 1) % accumulation_steps == 0 for i in range(7)]
    assert (state.global_iteration, state.dataset_iter, state.running_iter) == (7, 7, 7)
    assert state.optimizer_steps == 7 // accumulation_steps
    assert state.current_iteration == (7 if unit is TrainingUnit.EPOCH else 7 // accumulation_steps)


def test_attributes_of_a_programs_own_are_part_of_the_state() -> None:
    """What a program adds to a state is in `dict` and is loaded with the counts."""
    state, held = TrainingState(), TrainingState()
    state.best_loss = 0.5  # type: ignore[attr-defined]  # added by the program
    held.load_dict(state.dict())
    assert held.dict() == {**dict.fromkeys(FIELDS, 0), "best_loss": 0.5}


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
