"""Runs that are killed, started again with other settings, and then as they were."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from tests.resume.runs import RunSpec, assert_same, killed_at, life, start, undisturbed

if TYPE_CHECKING:
    from pathlib import Path

CHANGES: list[dict[str, Any]] = [{"accumulation": 1}, {"samples": 12}, {"unit": "iteration"}, {"shuffle": False}]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_refused_start_changes_nothing(tmp_path: Path, workers: int) -> None:
    """Killed in the middle of an accumulation, refused with each other setting, the run still ends with its bits."""
    spec = RunSpec(accumulation=2, valid_every=1, samples=11, workers=workers, total=4)
    whole = undisturbed(spec, tmp_path / "whole")
    assert life(spec, tmp_path / "killed", kill_at=whole["ticks"] * 2 // 3)
    folder = tmp_path / "killed" / spec.root / "subject"
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    assert before
    for change in CHANGES:
        refused = start(dataclasses.replace(spec, **change), tmp_path / "killed")
        refused.join(60)
        assert refused.exitcode == 1
        assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == before
    assert_same(killed_at(spec, tmp_path / "killed", [5]), whole)
