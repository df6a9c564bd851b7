"""The kill campaign of several ranks can fail: each known way to break exactness turns it red."""

from __future__ import annotations

import dataclasses
import signal
from typing import TYPE_CHECKING

import pytest

from tests.distributed.lives import asked_to_leave_at, killed_at, undisturbed
from tests.distributed.mutations import MUTATIONS
from tests.distributed.runs import RankSpec, Shot
from tests.resume.runs import assert_same

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 60.0  # Seconds that a run may take.
SHORT = 4.0  # Seconds after which a run of half a second hangs that is known to.


@dataclasses.dataclass(frozen=True)
class Case:
    """Where a mutation must show: a run, a shot in it, and what is found to be wrong.

    Attributes:
        spec: the run.
        found: a pattern of the error.
        shot: the shot; `None` if nobody needs to be shot.
        hangs: whether the run never ends.
    """

    spec: RankSpec
    found: str
    shot: Shot | None = None
    hangs: bool = False


ACCUMULATING = RankSpec(accumulation=3, no_sync=True, samples=23)  # An epoch has 4 batches, and a checkpoint.
VALIDATING = RankSpec(unit="iteration", total=4, valid_every=2)

SHOWN_BY = {
    "state of rank 0 for all": Case(RankSpec(), r"\['state'\]\['_net'\]", Shot(1, 25)),
    "gradients of rank 0 for all": Case(ACCUMULATING, r"\['state'\]\['_net'\]", Shot(1, 25)),
    "stream of rank 0 for all": Case(RankSpec(stream=True), r"\['state'\]\['_net'\]", Shot(1, 25)),
    "plug-ins of rank 0 for all": Case(RankSpec(), r"\['ranks'\]\[1\]\['seen'\]", Shot(1, 25)),
    "each leaves where it is": Case(
        RankSpec(unit="iteration", total=9, sleep=0.01), "hangs", Shot(1, 20, "rank", signal.SIGTERM), hangs=True
    ),
    "each judges for itself": Case(RankSpec(total=9, valid_every=1, early_stop=1), "hangs", hangs=True),
    "validation padded": Case(VALIDATING, "samples .* were validated"),
    "validation with own buffers": Case(VALIDATING, "buffers of their own"),
    "validation with buffers when due": Case(
        RankSpec(accumulation=2, valid_every=1, no_sync=True, samples=13), "buffers of their own"
    ),
    "flags forgotten": Case(
        RankSpec(total=1, accumulation=3, no_sync=True, samples=17, sleep=0.05),
        r"\['ranks'\]\[1\]\['state'\]\['_net'\]\['1.running_mean'\]",
        Shot(1, 5, "rank", signal.SIGTERM),
    ),
    "validation not quiet": Case(VALIDATING, "buffers of their own|hangs"),
    "streams not in step": Case(RankSpec(stream=True, samples=13), "hangs", hangs=True),
    "buckets not settled": Case(
        RankSpec(ranks=4, wide=True, unit="iteration", total=4, samples=23), r"\['_net'\]", Shot(3, 13)
    ),
}


def campaign(case: Case, folder: Path, mutation: str | None = None) -> None:
    """Be the campaign, in small: a run that nobody disturbs, and one of which somebody is shot at."""
    patience = SHORT if case.hangs and mutation is not None else PATIENCE
    whole = undisturbed(case.spec, folder / "whole", mutation, patience)
    if case.shot is None:
        return
    if case.shot.number == signal.SIGKILL:
        result = killed_at(case.spec, folder / "killed", [case.shot], mutation, patience)
    else:
        _, result = asked_to_leave_at(case.spec, folder / "left", case.shot, mutation, patience)
    assert_same(result, whole)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_campaign_notices(mutation: str, tmp_path: Path) -> None:
    """With this mutation, a result that the campaign checks is wrong; without it, none is."""
    case = SHOWN_BY[mutation]
    campaign(case, tmp_path / "well")
    with pytest.raises(AssertionError, match=case.found):
        campaign(case, tmp_path / "broken", mutation)
