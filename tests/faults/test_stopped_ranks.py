"""A rank that is stopped, by SIGSTOP: it is blamed, and no other one, and the error says that it is stopped."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from helios.errors import RankFailedError
from helios.trainer.launch import stopped as _stopped
from helios.trainer.launch.stopped import StoppedRanks
from tests.distributed import torchrun
from tests.distributed.parts import Trouble, fit_into, once_there_is, wait_for
from tests.faults.stopping import stopped
from tests.processes import survivors

if TYPE_CHECKING:
    from pathlib import Path

HERE = socket.gethostname()


def waiting(folder: Path) -> int:
    """Return the rank that waits."""
    return int((folder / "waiting").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_spawned_rank_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rank: int
) -> None:
    """The process that called `fit` warns about it, declares it lost at the limit, and leaves no process behind."""
    monkeypatch.setattr(_stopped, "_LOOK", 0.1)
    monkeypatch.setattr(_stopped, "_LIMIT", 0.5)
    trouble = Trouble(tmp_path, "hook", rank, "wait")
    with (
        pytest.raises(RankFailedError) as caught,
        once_there_is(tmp_path / "waiting", lambda: os.kill(waiting(tmp_path), signal.SIGSTOP)),
    ):
        fit_into(trouble, workers=0)
    pid = waiting(tmp_path)
    assert str(caught.value) == (
        f"rank {rank} (on {HERE}) failed first: process {pid} is stopped, for 0.5 s by now: "
        f"'kill -CONT {pid}' would have continued it"
    )
    assert caught.value.rank == rank
    assert caught.value.is_lost
    assert f"rank {rank} is stopped, and the others wait for it: 'kill -CONT {pid}' continues it" in caplog.text
    assert survivors(trouble.processes()) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_of_torchrun_is_stopped(tmp_path: Path, rank: int) -> None:
    """Under torchrun, the other rank declares it lost after the limit for silence, and says why."""
    arguments = ["train", str(tmp_path), str(rank), "4"]
    with torchrun.start("trouble_job", arguments, folder=tmp_path) as job:
        wait_for(tmp_path / "waiting")
        pid = waiting(tmp_path)
        with stopped(pid):
            job.wait_for(
                f"rank {rank} (on {HERE}) failed first: it has sent no heartbeat for 4 s: its process {pid} is stopped",
                timeout=150,
            )
        assert f"rank {1 - rank} (on" not in job.output()


def test_a_run_that_is_stopped_as_a_whole_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """While all ranks are stopped, none is declared lost; once one continues, the other is after the limit."""
    monkeypatch.setattr(_stopped, "_LOOK", 0.0)
    monkeypatch.setattr(_stopped, "_LIMIT", 0.0)
    asleep = {10, 11}
    monkeypatch.setattr(_stopped, "is_stopped", lambda pid: pid in asleep)
    ranks = StoppedRanks()
    assert ranks.look({0: 10, 1: 11}, 2) is None
    asleep.remove(10)
    monkeypatch.setattr(_stopped, "_LOOK", 1e-9)
    failure = ranks.look({0: 10, 1: 11}, 2)
    assert failure is not None
    assert failure.rank == 1
