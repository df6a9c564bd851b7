"""Runs on several ranks of which anybody is killed at any instant end as if nobody had touched them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.distributed import torchrun
from tests.distributed.lives import asked_to_leave_at, killed_at, killed_at_random, left_of, life, undisturbed
from tests.distributed.parts import wait_for
from tests.distributed.runs import RankSpec, Shot
from tests.resume.runs import assert_same, differences, load_result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

WHOM = ("rank", "caller", "all")
SHUTDOWN = 3  # Counts after a rank has reported how many there were.
MEETING = 3  # Counts before a rank trains, and minds signals.

# With everything that differs by rank in it: gradients in flight, buffers, generators, plug-ins, losses and metrics.
SMALL = RankSpec(unit="iteration", total=4, valid_every=2, accumulation=2, samples=7, save_every=2, no_sync=True)

# Between them: both units, shuffling on and off, accumulation 1 to 3 with gradients exchanged at each step and late,
# validation never and often, 0 and 2 workers, a checkpoint every 1 to 3 units, early stopping, uneven streams.
SAMPLE = [
    RankSpec(),
    RankSpec(shuffle=False, accumulation=2, valid_every=1, samples=13, no_sync=True),
    RankSpec(accumulation=3, workers=2, save_every=3, total=4, no_sync=True, samples=23),
    RankSpec(unit="iteration", total=9, save_every=2),
    RankSpec(unit="iteration", total=5, accumulation=3, valid_every=1, shuffle=False, samples=23, no_sync=True),
    RankSpec(unit="iteration", total=9, workers=2, valid_every=3, save_every=3),
    RankSpec(unit="iteration", total=40, valid_every=2, early_stop=2),
    RankSpec(total=9, valid_every=1, early_stop=1, extra_plugin=True),
    RankSpec(stream=True, total=3, samples=13),
    RankSpec(stream=True, workers=2, unit="iteration", total=9, samples=27, accumulation=2, no_sync=True),
    RankSpec(stream=True, workers=2, persistent=True, unit="iteration", total=12, samples=27),
]

EVERYTHING = [
    RankSpec(
        unit=unit,
        total=3 if unit == "epoch" else 9,
        shuffle=shuffle,
        accumulation=accumulation,
        valid_every=valid_every,
        workers=workers,
        save_every=save_every,
        samples=23,
        no_sync=accumulation > 1,
    )
    for unit, shuffle, accumulation, valid_every, workers, save_every in itertools.product(
        ("epoch", "iteration"), (True, False), (1, 2, 3), (None, 1), (0, 2), (1, 3)
    )
]


def shots_in(whole: dict[str, Any], step: int, offset: int = 0) -> Iterator[Shot]:
    """Yield a shot at every so many counts of each rank, at everybody in turn."""
    whom = itertools.cycle(WHOM)
    for rank, ticks in enumerate(whole["ticks"]):
        for count in range(1 + (offset + rank) % step, ticks + SHUTDOWN + 1, step):
            yield Shot(rank, count, next(whom))


def check_shots(spec: RankSpec, folder: Path, whole: dict[str, Any], shots: Iterable[Shot]) -> None:
    """Check that the run ends the same whichever of the shots is fired, and that no process is left in the end."""
    places = {folder / str(number): shot for number, shot in enumerate(shots)}
    for place, shot in places.items():
        assert_same(killed_at(spec, place, [shot]), whole)
    for place in places:
        assert left_of(place) == []


def test_a_kill_at_many_instants(tmp_path: Path) -> None:
    """One rank, the caller, or all are killed while they connect, train, validate, save or disconnect: same result."""
    whole = undisturbed(SMALL, tmp_path / "whole")
    assert min(whole["ticks"]) > 40
    check_shots(SMALL, tmp_path, whole, shots_in(whole, 8))


@pytest.mark.parametrize("spec", SAMPLE, ids=str)
def test_a_kill_in_every_kind_of_run(spec: RankSpec, tmp_path: Path) -> None:
    """With one kill, and with three in a row, every kind of run ends the same on both ranks."""
    whole = undisturbed(spec, tmp_path / "whole")
    first, second = whole["ticks"]
    check_shots(spec, tmp_path, whole, [Shot(0, first * 3 // 4)])
    ticks = min(first, second)
    row = [Shot(0, ticks // 2, "caller"), Shot(1, ticks // 2), Shot(1, ticks // 3, "all")]
    assert_same(killed_at(spec, tmp_path / "row", row), whole)


def test_ranks_differ(tmp_path: Path) -> None:
    """The comparison can fail: state, trace, losses and plug-in differ between two ranks."""
    spec = dataclasses.replace(SMALL, total=5)  # The last validation takes over rank 0's buffers.
    ranks = undisturbed(spec, tmp_path)["ranks"]
    differing = {entry.partition("]")[0] for entry in differences(ranks[0], ranks[1], "")}
    assert differing == {"['state'", "['trace'", "['metrics'", "['losses'", "['seen'"}
    state = differences(ranks[0]["state"], ranks[1]["state"], "")
    parts = ("_net", "_ema", "plain attributes")
    assert {entry.split("'")[1] for entry in state} == {*parts}


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_do_not_outlive_their_caller(workers: int, tmp_path: Path) -> None:
    """When the process that called `fit` is killed, its ranks and their workers are gone soon."""
    spec = dataclasses.replace(SMALL, workers=workers, total=6)
    undisturbed(spec, tmp_path / "whole")
    for count in (1, 2, 3, 4, 15, 30):
        folder = tmp_path / str(count)
        assert life(spec, folder, shot=Shot(count % 2, count, "caller"))
        assert left_of(folder) == []


def test_kills_at_random_instants(tmp_path: Path) -> None:
    """Random processes are killed four times at random times: the same result."""
    spec = RankSpec(total=6, workers=2, accumulation=2, valid_every=2, samples=40, sleep=0.01)
    whole = undisturbed(spec, tmp_path / "whole")
    chance = random.Random(str(spec))
    assert_same(killed_at_random(spec, tmp_path / "killed", kills=4, longest=1.0, chance=chance), whole)


@pytest.mark.parametrize("whom", ["caller", "rank"])
@pytest.mark.parametrize(
    "spec",
    [
        RankSpec(unit="iteration", total=5, accumulation=3, valid_every=2, samples=23, no_sync=True, sleep=0.005),
        RankSpec(total=3, workers=2, valid_every=1, samples=17, sleep=0.01),
    ],
    ids=str,
)
def test_a_signal_at_any_instant(spec: RankSpec, whom: str, tmp_path: Path) -> None:
    """After a SIGTERM to the caller, or to one rank, all ranks stop after the same batch, and `fit` resumes later."""
    whole = undisturbed(spec, tmp_path / "whole")
    shots = [Shot(number % 2, count, whom, signal.SIGTERM) for number, count in enumerate(range(MEETING + 1, 40, 12))]
    leavers = 0
    for number, shot in enumerate(shots):
        left, result = asked_to_leave_at(spec, tmp_path / str(number), shot)
        leavers += left
        assert_same(result, whole)
    assert leavers >= 2


@pytest.mark.parametrize("whom", ["rank", "all"])
def test_four_ranks(whom: str, tmp_path: Path) -> None:
    """Gradients of several megabytes, reduced in buckets, add up alike in a resumed run of several ranks."""
    spec = RankSpec(ranks=4, wide=True, unit="iteration", total=4, samples=23)
    whole = undisturbed(spec, tmp_path / "whole")
    third_step = whole["ticks"][3] * 2 // 3
    assert_same(killed_at(spec, tmp_path / "killed", [Shot(3, third_step, whom)]), whole)


def start_job(spec: RankSpec, folder: Path, shot: Shot | None = None, restarts: int = 0) -> torchrun.Job:
    """Start a run under `torchrun`. The shot is fired in the first life of the ranks alone."""
    folder.mkdir(exist_ok=True)
    arguments = [json.dumps(dataclasses.asdict(spec)), str(folder)]
    arguments += [] if shot is None else [json.dumps(dataclasses.asdict(shot))]
    return torchrun.start("runs", arguments, folder=folder, restarts=restarts)


def test_torchrun_restarts_a_run(tmp_path: Path) -> None:
    """`torchrun` restarts all ranks after one was killed: the run ends like the spawned one."""
    whole = undisturbed(SMALL, tmp_path / "whole")
    with start_job(SMALL, tmp_path / "job", Shot(0, 30), restarts=1) as job:
        assert job.wait(60) == 0, job.output()
    assert_same(load_result(tmp_path / "job"), whole)


@pytest.mark.soak
@pytest.mark.parametrize("whom", ["all", "agent"])
def test_a_killed_torchrun_is_started_again(whom: str, tmp_path: Path) -> None:
    """`torchrun` is killed, with its ranks or before them, and started again at once: the run ends the same."""
    spec = RankSpec(unit="iteration", total=60, valid_every=7, save_every=5, samples=40, sleep=0.02)
    whole = undisturbed(spec, tmp_path / "whole")
    folder = tmp_path / "job"
    with start_job(spec, folder) as first:
        wait_for(folder / spec.root / "subject" / "subject_epoch_3_iter_20.pth")
        if whom == "all":
            first.kill()
        else:
            first.agent.kill()  # Its ranks continue until they notice.
        assert not (folder / "result").exists()
        with start_job(spec, folder) as second:
            assert second.wait(60) == 0, second.output()
    assert_same(load_result(folder), whole)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("whom", WHOM)
def test_a_kill_at_every_instant(whom: str, tmp_path: Path) -> None:
    """The same, with each rank killed at each of its counts."""
    whole = undisturbed(SMALL, tmp_path / "whole")
    check_shots(SMALL, tmp_path, whole, (dataclasses.replace(shot, whom=whom) for shot in shots_in(whole, 1)))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("number", "spec"), list(enumerate([*EVERYTHING, *SAMPLE])), ids=str)
def test_kills_in_every_combination_of_options(number: int, spec: RankSpec, tmp_path: Path, soak_kills: int) -> None:
    """Ranks: the whole matrix of options; the instants of the kills differ between combinations."""
    whole = undisturbed(spec, tmp_path / "whole")
    check_shots(spec, tmp_path, whole, shots_in(whole, max(3, sum(whole["ticks"]) // soak_kills), offset=number))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("whom", ["caller", "rank"])
@pytest.mark.parametrize("spec", SAMPLE, ids=str)
def test_a_signal_in_every_kind_of_run(spec: RankSpec, whom: str, tmp_path: Path, soak_kills: int) -> None:
    """Ranks: as above, a SIGTERM to anybody, at instants spread over the run, in every kind of run."""
    spec = dataclasses.replace(spec, sleep=0.01)
    whole = undisturbed(spec, tmp_path / "whole")
    for count in range(MEETING + 1, min(whole["ticks"]) + 1, max(3, min(whole["ticks"]) // soak_kills)):
        shot = Shot(count % 2, count, whom, signal.SIGTERM)
        assert_same(asked_to_leave_at(spec, tmp_path / str(count), shot)[1], whole)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(20))
def test_twenty_kills_at_random(seed: int, tmp_path: Path) -> None:
    """Random processes of a run with all options are killed twenty times at random times."""
    chance = random.Random(seed)
    accumulation = chance.choice([1, 2, 3])
    spec = RankSpec(
        unit=chance.choice(["epoch", "iteration"]),
        total=chance.choice([8, 12, 16]),
        shuffle=chance.random() < 0.8,
        accumulation=accumulation,
        valid_every=chance.choice([None, 1, 3]),
        workers=chance.choice([0, 2]),
        save_every=chance.choice([1, 2, 3]),
        samples=60,
        sleep=0.01,
        no_sync=accumulation > 1,
    )
    whole = undisturbed(spec, tmp_path / "whole")
    assert_same(killed_at_random(spec, tmp_path / "killed", kills=20, longest=2.0, chance=chance), whole)
