"""Studies that are killed at any time end with the trials of an uninterrupted study."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import optuna
import pytest

from tests.plugins.optuna.studies import StudySpec, finish, kill_at_random, start, table, url_of

if TYPE_CHECKING:
    from pathlib import Path

PAIRS = [("random", "median"), ("tpe", "hyperband"), ("cmaes", "median"), ("nsga2", "hyperband")]
ALL_PAIRS = [(sampler, pruner) for sampler in ("random", "tpe", "cmaes", "nsga2") for pruner in ("median", "hyperband")]


def undisturbed(spec: StudySpec, folder: Path) -> float:
    """Run the study without a kill, and return the seconds that it took."""
    began = time.monotonic()
    assert not finish(spec, folder)
    return time.monotonic() - began


@pytest.mark.parametrize(("sampler", "pruner"), PAIRS)
def test_a_study_is_killed_three_times(sampler: str, pruner: str, tmp_path: Path) -> None:
    """Params, values, states and intermediate values do not depend on three kills at random times."""
    spec = StudySpec(sampler, pruner, trials=6)
    seconds = undisturbed(spec, tmp_path / "whole" / "study")
    chance = random.Random(f"{sampler} {pruner}")
    kill_at_random(spec, tmp_path / "killed" / "study", kills=3, longest=0.7 * seconds, chance=chance)
    assert table(spec, tmp_path / "killed" / "study") == table(spec, tmp_path / "whole" / "study")


def test_a_study_is_killed_at_every_step(tmp_path: Path) -> None:
    """Killed before, during and after suggestions, training, reports, pruning and the end of a trial."""
    spec = StudySpec("tpe", "median", trials=4, epochs=2)
    undisturbed(spec, tmp_path / "whole" / "study")
    whole = table(spec, tmp_path / "whole" / "study")
    folder = tmp_path / "killed" / "study"
    killed = [finish(spec, folder, kill_at=count) for count in (1, 2, 5, 6, 7, 12)]
    assert all(killed)
    assert not finish(spec, folder)
    assert table(spec, folder) == whole


def test_a_finished_study_runs_nothing(tmp_path: Path) -> None:
    """API `run_study`: the number of trials is a total; a study that has as many or more runs none."""
    spec = StudySpec(trials=3, epochs=1)
    undisturbed(spec, tmp_path / "study")
    before = table(spec, tmp_path / "study")
    assert not finish(spec, tmp_path / "study", kill_at=1)  # The beginning of an objective would kill it.
    assert not finish(StudySpec(trials=2, epochs=1), tmp_path / "study", kill_at=1)
    assert table(spec, tmp_path / "study") == before


def run_workers(spec: StudySpec, folder: Path, *, workers: int, kills: int, chance: random.Random) -> None:
    """Run a study in several processes, kill some of them at random times, and replace them."""
    processes = [start(spec, folder) for _ in range(workers)]
    for _ in range(kills):
        time.sleep(chance.uniform(0.2, 1.5))
        victim = chance.randrange(workers)
        if processes[victim].is_alive():
            os.kill(processes[victim].pid, signal.SIGKILL)
        processes[victim].join()
        processes[victim] = start(spec, folder)
    for process in processes:
        process.join(150)
        assert process.exitcode == 0


def check_exactly(spec: StudySpec, folder: Path) -> None:
    """Check that a study has finished its number of trials, each with all of its reports."""
    rows = table(spec, folder)
    assert [row["number"] for row in rows] == list(range(spec.trials))
    assert {row["state"] for row in rows} <= {"COMPLETE", "PRUNED"}
    for row in rows:
        steps = list(row["intermediate"])
        assert steps == list(range(len(steps)))
        assert row["state"] == "PRUNED" or len(steps) == spec.epochs


def test_four_workers_finish_exactly_the_number_asked_for(tmp_path: Path) -> None:
    """Four processes on one SQLite file, some of them killed: exactly the given number of trials."""
    spec = StudySpec("tpe", "median", trials=10, epochs=3)
    (tmp_path / "study").mkdir()
    run_workers(spec, tmp_path / "study", workers=4, kills=2, chance=random.Random(4))
    check_exactly(spec, tmp_path / "study")


def test_four_workers_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """Four processes on one PostgreSQL database, some of them killed: exactly the given number of trials."""
    spec = StudySpec("random", "median", trials=10, epochs=3, url=postgres_url)
    folder = tmp_path / f"study-{random.randrange(10**9)}"
    run_workers(spec, folder, workers=4, kills=2, chance=random.Random(5))
    check_exactly(spec, folder)


def test_a_study_is_resumed_after_sigterm(tmp_path: Path) -> None:
    """After SIGTERM in a trial, it waits with its checkpoint, and the study ends like an uninterrupted one."""
    spec = StudySpec("random", "median", trials=3, epochs=4, sleep=0.05)
    undisturbed(spec, tmp_path / "whole" / "study")
    folder = tmp_path / "left" / "study"
    process = start(spec, folder)
    while not list(folder.glob("checkpoints/*/*.pth")):
        time.sleep(0.01)
        assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 0
    states = [trial.state.name for trial in optuna.load_study(study_name="study", storage=url_of(spec, folder)).trials]
    assert states == ["WAITING"]
    assert not finish(spec, folder)
    assert table(spec, folder) == table(spec, tmp_path / "whole" / "study")


@pytest.mark.soak
@pytest.mark.parametrize(("sampler", "pruner"), ALL_PAIRS)
@pytest.mark.parametrize("seed", range(3))
def test_a_study_is_killed_ten_times(sampler: str, pruner: str, seed: int, tmp_path: Path) -> None:
    """The same with ten kills a study and more trials, for all pairs of sampler and pruner."""
    spec = StudySpec(sampler, pruner, trials=16)
    seconds = undisturbed(spec, tmp_path / "whole" / "study")
    chance = random.Random(f"{sampler} {pruner} {seed}")
    kill_at_random(spec, tmp_path / "killed" / "study", kills=10, longest=0.4 * seconds, chance=chance)
    assert table(spec, tmp_path / "killed" / "study") == table(spec, tmp_path / "whole" / "study")


@pytest.mark.soak
def test_eight_workers_with_many_kills(tmp_path: Path) -> None:
    """Eight processes and twenty kills: exactly the given number of trials."""
    spec = StudySpec("tpe", "hyperband", trials=40, epochs=4, sleep=0.01)
    (tmp_path / "study").mkdir()
    run_workers(spec, tmp_path / "study", workers=8, kills=20, chance=random.Random(8))
    check_exactly(spec, tmp_path / "study")
