"""What is trained does not depend on how it is trained."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from tests.resume.runs import RunSpec, assert_same, differences, life, load_result, undisturbed

if TYPE_CHECKING:
    from pathlib import Path

TRAINED = ("_net", "_ema", "_optimizer", "_scheduler")


def trained(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """Return what a run has trained, without the accounts that it kept of itself."""
    state = undisturbed(spec, folder)["state"]
    return {**{name: state[name] for name in TRAINED}, "_generator": state["plain attributes"]["_generator"]}


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_nothing_that_is_not_training_changes_the_weights(unit: str, tmp_path: Path) -> None:
    """0, 1 or 4 workers, validation never, often or always, another plug-in: the weights are the same."""
    base = RunSpec(unit=unit, total=3 if unit == "epoch" else 10)
    variants = [
        {},
        {"workers": 1},
        {"workers": 4},
        {"valid_every": 2},
        {"valid_every": 1},
        {"valid_every": 1, "workers": 4, "extra_plugin": True},
        {"save_every": 3},
    ]
    first, *others = (
        trained(dataclasses.replace(base, **variant), tmp_path / str(i))  # type: ignore[arg-type]  # fields by name
        for i, variant in enumerate(variants)
    )
    for other in others:
        assert_same(other, first)


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_a_plugin_that_draws_in_every_hook_changes_nothing(unit: str, tmp_path: Path) -> None:
    """Neither the model nor another plug-in draws otherwise, in any of their hooks."""
    spec = RunSpec(unit=unit, total=3 if unit == "epoch" else 10, valid_every=1, accumulation=2)
    alone = undisturbed(spec, tmp_path / "alone")
    assert_same(undisturbed(dataclasses.replace(spec, extra_plugin=True), tmp_path / "beside"), alone)


def test_the_seed_and_the_order_do_change_them(tmp_path: Path) -> None:
    """The comparison above can fail: another order of samples gives other weights."""
    shuffled, straight = (trained(RunSpec(shuffle=shuffle), tmp_path / str(shuffle)) for shuffle in (True, False))
    assert differences(shuffled, straight)


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_more_steps_continue_a_complete_run(unit: str, tmp_path: Path) -> None:
    """A run that was complete, given more steps, ends as the one that had them from the start."""
    short, long = (2, 4) if unit == "epoch" else (5, 11)
    spec = RunSpec(unit=unit, total=long, valid_every=2)
    whole = undisturbed(spec, tmp_path / "whole")
    folder = tmp_path / "extended"
    assert not life(dataclasses.replace(spec, total=short), folder)
    assert not life(spec, folder)
    assert_same(load_result(folder), whole)


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_a_complete_run_trains_no_further(unit: str, tmp_path: Path) -> None:
    """A complete run that is started again trains nothing, and ends as it did the first time."""
    spec = RunSpec(unit=unit, total=2 if unit == "epoch" else 5, valid_every=1)
    whole = undisturbed(spec, tmp_path)
    assert not life(spec, tmp_path)
    assert_same(load_result(tmp_path), whole)
