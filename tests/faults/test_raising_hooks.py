"""Whatever raises on one of two ranks is named by all: each hook of model, plug-in and data, wherever it was started.

A rank whose error is not told waits for half an hour, until gloo gives up; a silent one is given up after a minute. So
nothing here measures a time: what is told says whether it came in one of these ways.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from helios.errors import RankFailedError
from tests.distributed import torchrun
from tests.faults.hooks import ON_RANK_ZERO, PLACES, Broken, Fault, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = socket.gethostname()
FAULTS = [(place, 0 if place in ON_RANK_ZERO else 1) for place in PLACES]


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.parametrize(("place", "rank"), FAULTS, ids=PLACES)
def test_a_hook_raises_on_a_spawned_rank(tmp_path: Path, place: str, rank: int) -> None:
    """`fit` or `test` raises an error that names the rank, and whose cause is what the hook has raised."""
    with pytest.raises(RankFailedError) as caught:
        run(Fault(tmp_path, place, rank), 2)
    assert str(caught.value).startswith(f"rank {rank} (on {HERE}) failed first: tests.faults.hooks.Broken: {place}\n")
    assert type(caught.value.__cause__) is Broken
    assert not caught.value.is_lost


def run_job(folder: Path, faults: list[tuple[str, int]], limit: float) -> list[list[dict[str, Any]]]:
    """Have two ranks of `torchrun` run into each fault, and return what each was told, and when after it was raised."""
    told = []
    with torchrun.start("hooks_job", [str(folder), json.dumps(faults)], folder=folder) as job:
        assert job.wait(limit) == 0, job.output()
    for number in range(len(faults)):
        home = folder / str(number)
        reports = [json.loads((home / f"told-{rank}").read_text(encoding="utf-8")) for rank in range(2)]
        raised = float((home / "when").read_text(encoding="utf-8"))
        told.append([{**report, "after": report["when"] - raised} for report in reports])
    return told


def check(told: list[list[dict[str, Any]]], faults: list[tuple[str, int]]) -> None:
    """Check that the rank that has failed raised its own error, and the other one an error that names it."""
    for (place, rank), reports in zip(faults, told, strict=True):
        own, other = reports[rank], reports[1 - rank]
        assert (own["type"], own["text"]) == ("Broken", place)
        assert other["type"] == "RankFailedError", place
        assert other["text"].startswith(f"rank {rank} (on {HERE}) failed first: tests.faults.hooks.Broken: {place}\n")


def test_a_hook_raises_on_a_rank_of_torchrun(tmp_path: Path) -> None:
    """The rank raises what its hook did, and the other one an error that names it: 48 places, in one job."""
    check(run_job(tmp_path, FAULTS, 170), FAULTS)


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Have so many processes compute while the context lasts, with less priority than anybody else."""
    burn = "import os, time; os.nice(19); began = time.monotonic()\nwhile time.monotonic() - began < 300: pass"
    burners = [subprocess.Popen([sys.executable, "-S", "-c", burn]) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@pytest.mark.soak
def test_all_are_named_in_ten_seconds_on_a_busy_machine(tmp_path: Path) -> None:
    """At a load of five processes for each core, whoever fails is named within ten seconds in each of the places."""
    with load(5 * (os.cpu_count() or 1)):
        told = run_job(tmp_path, FAULTS, 280)
    check(told, FAULTS)
    assert max(report["after"] for reports in told for report in reports) < 10
