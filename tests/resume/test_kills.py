"""Runs that are killed at every instant worth naming end as if nobody had touched them."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from tests.resume.runs import RunSpec, asked_to_leave_at, assert_same, killed_at, killed_at_random, undisturbed

if TYPE_CHECKING:
    from pathlib import Path

# Between them: both units, shuffling on and off, accumulation 1 to 3, validation never and often, 0 and 2 workers, a
# checkpoint every 1 to 3 units, early stopping.
SAMPLE = [
    RunSpec(),
    RunSpec(shuffle=False, accumulation=2, valid_every=1, save_every=2),
    RunSpec(accumulation=3, workers=2, save_every=3, total=4),
    RunSpec(unit="iteration", total=9),
    RunSpec(unit="iteration", total=7, accumulation=2, valid_every=2, save_every=2),
    RunSpec(unit="iteration", total=5, accumulation=3, valid_every=1, save_every=1, shuffle=False),
    RunSpec(unit="iteration", total=9, workers=2, valid_every=3, save_every=3),
    RunSpec(unit="iteration", total=40, valid_every=2, early_stop=2, save_every=1),
    RunSpec(total=9, valid_every=1, early_stop=1, extra_plugin=True),
    RunSpec(by_hand=3),
    RunSpec(unit="iteration", total=9, by_hand=2, valid_every=2, save_every=3),
    RunSpec(accumulation=2, by_hand=4),
    RunSpec(unit="iteration", total=6, accumulation=2, by_hand=3),
    RunSpec(stream=True, total=3),
    RunSpec(stream=True, workers=2, unit="iteration", total=9),
    RunSpec(stream=True, workers=2, persistent=True, unit="iteration", total=14),
]

EVERYTHING = [
    RunSpec(
        unit=unit,
        total=3 if unit == "epoch" else 9,
        shuffle=shuffle,
        accumulation=accumulation,
        valid_every=valid_every,
        workers=workers,
        save_every=save_every,
    )
    for unit, shuffle, accumulation, valid_every, workers, save_every in itertools.product(
        ("epoch", "iteration"), (True, False), (1, 2, 3), (None, 1), (0, 2), (1, 2, 3)
    )
]


def test_a_kill_at_every_instant(tmp_path: Path) -> None:
    """Killed at each of its steps, hooks, validations and pieces of a checkpoint, a run ends the same."""
    spec = RunSpec(unit="iteration", total=4, valid_every=2, accumulation=2, samples=7, save_every=2)
    whole = undisturbed(spec, tmp_path / "whole")
    assert whole["ticks"] > 50
    for count in range(1, whole["ticks"] + 1):
        assert_same(killed_at(spec, tmp_path / str(count), [count]), whole)


@pytest.mark.parametrize("spec", SAMPLE, ids=str)
def test_a_kill_in_every_kind_of_run(spec: RunSpec, tmp_path: Path) -> None:
    """Killed once, and three times in a row, every kind of run ends the same."""
    whole = undisturbed(spec, tmp_path / "whole")
    ticks = whole["ticks"]
    for count in range(1 + len(str(spec)) % 5, ticks, max(1, ticks // 5)):
        assert_same(killed_at(spec, tmp_path / str(count), [count]), whole)
    thirds = [ticks // 3, ticks // 3 + 1, ticks // 4]
    assert_same(killed_at(spec, tmp_path / "thirds", thirds), whole)


@pytest.mark.parametrize(
    "spec",
    [RunSpec(zero_first=True), RunSpec(unit="iteration", total=9, by_hand=2, zero_first=True, save_every=2)],
    ids=str,
)
def test_gradients_that_were_used_are_nobody_s(spec: RunSpec, tmp_path: Path) -> None:
    """A model that sets gradients to zero before the next step ends the same, but for those that were used last."""
    whole = undisturbed(spec, tmp_path / "whole")
    for count in range(2, whole["ticks"], max(1, whole["ticks"] // 6)):
        killed = killed_at(spec, tmp_path / str(count), [count])
        assert_same(killed, whole, ignore=("ticks", "gradients"))


@pytest.mark.parametrize(
    "spec",
    [
        RunSpec(unit="iteration", total=60, valid_every=7, save_every=5, samples=40, sleep=0.01),
        RunSpec(total=6, workers=2, accumulation=2, valid_every=2, samples=40, sleep=0.01),
    ],
    ids=str,
)
def test_kills_at_random_instants(spec: RunSpec, tmp_path: Path) -> None:
    """Killed six times at random times, a longer run ends the same."""
    whole = undisturbed(spec, tmp_path / "whole")
    chance = random.Random(str(spec))
    assert_same(killed_at_random(spec, tmp_path / "killed", kills=6, longest=1.0, chance=chance), whole)


@pytest.mark.parametrize(
    "spec",
    [
        RunSpec(unit="iteration", total=5, accumulation=3, valid_every=2),
        RunSpec(total=2, accumulation=2, valid_every=1),
    ],
    ids=str,
)
def test_a_signal_at_any_instant(spec: RunSpec, tmp_path: Path) -> None:
    """Asked to stop, also in the middle of an accumulation, `fit` returns false; the next call resumes."""
    whole = undisturbed(spec, tmp_path / "whole")
    leavers = 0
    for count in range(1, whole["ticks"] + 1, 5):
        left, result = asked_to_leave_at(spec, tmp_path / str(count), count)
        leavers += left
        assert_same(result, whole)
    assert leavers > 5


@pytest.mark.soak
@pytest.mark.parametrize(("number", "spec"), list(enumerate([*EVERYTHING, *SAMPLE])), ids=str)
def test_kills_in_every_combination_of_options(number: int, spec: RunSpec, tmp_path: Path, soak_kills: int) -> None:
    """The whole matrix of options; the instants of the kills differ between combinations, and cover all together."""
    whole = undisturbed(spec, tmp_path / "whole")
    step = max(3, whole["ticks"] // soak_kills)
    for count in range(1 + number % step, whole["ticks"] + 1, step):
        assert_same(killed_at(spec, tmp_path / str(count), [count]), whole)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_twenty_kills_at_random(seed: int, tmp_path: Path) -> None:
    """Killed twenty times at random instants, a longer run with everything switched on ends the same."""
    chance = random.Random(seed)
    spec = RunSpec(
        unit=chance.choice(["epoch", "iteration"]),
        total=chance.choice([8, 12, 16]),
        shuffle=chance.random() < 0.8,
        accumulation=chance.choice([1, 2, 3]),
        valid_every=chance.choice([None, 1, 3]),
        workers=chance.choice([0, 2]),
        save_every=chance.choice([1, 2, 3]),
        samples=30,
        sleep=0.01,
    )
    whole = undisturbed(spec, tmp_path / "whole")
    assert_same(killed_at_random(spec, tmp_path / "killed", kills=20, longest=1.5, chance=chance), whole)
