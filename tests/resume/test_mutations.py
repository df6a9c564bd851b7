"""The kill campaign can fail: each known way to break exactness turns it red.

One mutation that breaks loops elsewhere is harmless here, and so is not in the list: a loader whose iterator draws its
seed from the global generator. Every hook and every step finds the generators keyed, so that draw shifts nothing.
tests/data/test_loading.py shows that the draw is not made in the first place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.resume.mutations import MUTATIONS
from tests.resume.runs import RunSpec, differences, killed_at, undisturbed

if TYPE_CHECKING:
    from pathlib import Path

# Where each mutation must show: a run, and the count at which its process is killed; below 0, counted from the end.
SHOWN_BY = {
    "epoch from a moved counter": (RunSpec(unit="iteration", total=9), 60),
    "saved before epoch end": (RunSpec(), 50),
    "position kept": (RunSpec(unit="iteration", total=9), 20),
    "steps not keyed": (RunSpec(), 50),
    "gradients lost": (RunSpec(accumulation=3), 50),
    "gradients by the trainer's count": (RunSpec(by_hand=3), 50),
    "running losses lost": (RunSpec(unit="iteration", total=9), 60),
    "one step more": (RunSpec(unit="iteration", total=9), -1),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_campaign_notices(mutation: str, tmp_path: Path) -> None:
    """With this mutation, a run that is killed and resumed no longer ends the same."""
    spec, count = SHOWN_BY[mutation]
    whole = undisturbed(spec, tmp_path / "whole")
    count = count % (whole["ticks"] + 1)
    killed = killed_at(spec, tmp_path / "killed", [count], mutation)
    assert differences({**killed, "ticks": 0}, {**whole, "ticks": 0})
