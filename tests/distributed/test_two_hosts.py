"""Two machines: what `torchrun --nnodes 2` brings together, and what the one does without the other."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.distributed import pruning_job, torchrun
from tests.distributed.lives import undisturbed
from tests.distributed.parts import wait_for
from tests.distributed.runs import RankSpec, Shot
from tests.distributed.trouble_job import GRACE
from tests.resume.runs import assert_same, load_result

if TYPE_CHECKING:
    from pathlib import Path

    from tests.distributed.hosts import Host

SILENCE = 3  # Seconds in place of sixty: a thread of its own beats once in one, and the machine may be busy.
ECHO = 3  # Seconds that a rank waits for the reason of an error that is not its own.
SLACK = 6  # Seconds: on a busy machine, everything takes longer.


def start_trouble(
    hosts: tuple[Host, Host], what: str, folder: Path, *, rank: int, silence: float = 60
) -> list[torchrun.Job]:
    """Start a job of which one rank gets stuck, and return when the other one waits for it, or soon does."""
    jobs = torchrun.start_on_hosts(hosts, "trouble_job", [what, str(folder), str(rank), str(silence)], folder=folder)
    wait_for(folder / "waiting")
    time.sleep(0.5)
    return jobs


def read_told(folder: Path, rank: int) -> dict[str, Any]:
    """Return the error that a rank was given in the place of the other one's."""
    told: dict[str, Any] = json.loads((folder / f"told-{rank}").read_text(encoding="utf-8"))
    return told


@pytest.mark.usefixtures("forked_ranks")
def test_two_hosts_train_and_prune_together(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """A study on two hosts has the same trials as with two spawned ranks; data is prepared on each host."""
    folders = [tmp_path / "hosts", tmp_path / "spawned"]
    for folder in folders:
        folder.mkdir()
    first, second = torchrun.start_on_hosts(hosts, "pruning_job", [str(folders[0])], folder=folders[0])
    with first, second:
        table = pruning_job.search(folders[1], ranks=2)
        assert [first.wait(60), second.wait(60)] == [0, 0], first.output() + second.output()
    states = [row[1] for row in table]
    assert {"COMPLETE", "PRUNED"} == {*states}
    assert states[-1] == "COMPLETE", "and the ranks continued together after the trials that were pruned"
    for rank in range(2):
        told = (folders[0] / f"table-{rank}").read_text(encoding="utf-8")
        assert json.loads(told) == json.loads(json.dumps(table))
    check_places(folders[0] / "notes", hosts)
    check_outputs(first.output(), second.output(), folders[0])


def check_places(notes: Path, hosts: tuple[Host, Host]) -> None:
    """Check that no host continues before both have prepared their data, and that each rank knows its local rank."""
    entries = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]
    names = [host.name for host in hosts]
    for number in range(pruning_job.TRIALS):
        trial = entries[4 * number : 4 * number + 4]
        assert sorted(trial[:2]) == [["prepared", name] for name in names]
        # Its rank, of two; its local rank, of one; the same as the parts see them; whether there are others.
        assert sorted(trial[2:]) == [
            ["set up", name, rank, 2, 0, 1, rank, 0, True, "cpu"] for rank, name in enumerate(names)
        ]
    assert len(entries) == 4 * pruning_job.TRIALS


def check_outputs(first: str, second: str, folder: Path) -> None:
    """Check that what a run says is said once a trial, by rank 0."""
    log = (folder / "study.log").read_text(encoding="utf-8")
    for text in ("Helios 0", "on 2 ranks, cpu", "Training:   0%", "iterations trained: "):
        assert first.count(text) == pruning_job.TRIALS, first
    assert log.count("iterations trained: ") == pruning_job.TRIALS
    assert second == "", second


def test_a_host_that_is_gone_is_named(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """When all processes of a host are killed, the other host, in a reduction, soon names it."""
    first, second = start_trouble(hosts, "train", tmp_path, rank=1)
    with first, second:
        killed_at = time.monotonic()
        hosts[1].kill()
        assert first.wait(30) == 1
        told = read_told(tmp_path, 0)
        assert told["rank"] == 1
        reason = "it ended without a word: it was killed, or its machine is gone"
        assert told["text"] == f"rank 1 (on {hosts[1].name}) failed first: {reason}"
        assert told["when"] - killed_at < ECHO + SLACK
        assert f"ERROR training failed: {told['text']}\n" in first.output()


@pytest.mark.parametrize("what", ["train", "search"])
def test_the_host_of_the_store_is_gone(what: str, hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """Without rank 0's host, a rank that trains, or waits for its next trial, raises an error that names it."""
    first, second = start_trouble(hosts, what, tmp_path, rank=0)
    with first, second:
        killed_at = time.monotonic()
        hosts[0].kill()
        assert second.wait(30) == 1
        told = read_told(tmp_path, 1)
        assert told["rank"] == 0
        failed = "rank 0 (on rank 0's machine) failed first: the store of the run is out of reach: "
        assert told["text"].startswith(failed)
        assert "\n" not in told["text"], "there is nobody's traceback"
        assert told["when"] - killed_at < SLACK
        assert f"RankFailedError: {told['text']}\n" in second.output()


@pytest.mark.parametrize("what", ["train", "search"])
def test_a_host_that_is_cut_off(what: str, hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """When packets between hosts are lost, ranks that wait forever are ended, and log which rank was silent."""
    first, second = start_trouble(hosts, what, tmp_path, rank=1, silence=SILENCE)
    with first, second:
        began = time.monotonic()
        hosts[1].cut()
        assert first.wait(30) == 1
        silent = f"rank 1 (on {hosts[1].name}) failed first: it has sent no heartbeat for {SILENCE} s\n"
        assert silent in first.output()
        lost = "rank 0 (on rank 0's machine) failed first: the store of the run is out of reach: it has not answered"
        second.wait_for(f"{lost} for {SILENCE} s\n", timeout=SLACK)
        while second.rank_pids():
            assert time.monotonic() - began < SILENCE + GRACE + SLACK, second.output()
            time.sleep(0.02)
        for job in (first, second):
            assert "it is ended. Start the run" in job.output()
        # Nobody could be told, and nobody was woken.
        assert not any(tmp_path.glob("told-*"))


def test_an_objective_that_fails_on_one_host(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """An error in one rank's objective, which torchrun does not report to other hosts, ends rank 0 as well."""
    first, second = start_trouble(hosts, "fail", tmp_path, rank=1)
    with first, second:
        assert [first.wait(30), second.wait(30)] == [1, 1]
        assert f"rank 1 (on {hosts[1].name}) failed first: tests.distributed.parts.Broken\n" in first.output()
        assert "in objective\n    raise Broken\n" in first.output(), "with its traceback"
        assert "tests.distributed.parts.Broken" in second.output()
        assert "RankFailedError" not in second.output(), "its own error is its own"


def test_a_rank_that_is_killed_on_one_host(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """Torchrun restarts all ranks of both hosts, which end like those of an uninterrupted run."""
    spec = RankSpec(unit="iteration", total=4, valid_every=2, accumulation=2, samples=7, save_every=2, no_sync=True)
    whole = undisturbed(spec, tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    arguments = [json.dumps(dataclasses.asdict(spec)), str(folder), json.dumps(dataclasses.asdict(Shot(1, 30)))]
    first, second = torchrun.start_on_hosts(hosts, "late_job", arguments, folder=folder, restarts=1)
    with first, second:
        assert [first.wait(60), second.wait(60)] == [0, 0], first.output() + second.output()
    assert_same(load_result(folder), whole)
    assert second.output().count("failed (exitcode: -9)") == 1
