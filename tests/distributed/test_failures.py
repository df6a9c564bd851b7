"""Whatever happens to one rank, `fit` raises soon, says who was first, and leaves no process behind."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from helios.errors import RankFailedError
from tests.distributed.parts import (
    PLACES,
    Broken,
    Stop,
    Trouble,
    TroubledPlugin,
    fit_into,
    once_there_is,
)
from tests.distributed.reports import Calling, make
from tests.processes import survivors
from tests.trainer.parts import ListData

SOON = 50  # seconds from the trouble of a rank to the error of fit; what comes later has come of a limit of time
HERE = socket.gethostname()

pytestmark = pytest.mark.usefixtures("forked_ranks")


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def fail(trouble: Trouble, *, workers: int = 1, **options: Any) -> RankFailedError:
    """Train into trouble, and return the error, after a look at when it came and what was left."""
    with pytest.raises(RankFailedError) as caught:
        fit_into(trouble, workers=workers, **options)
    assert time.monotonic() - trouble.began() < SOON
    assert len(trouble.processes()) >= 2
    assert survivors(trouble.processes()) == []
    assert caught.value.rank == trouble.rank
    return caught.value


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("where", PLACES)
def test_fit_raises_the_exception_of_a_rank(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str, rank: int
) -> None:
    """`fit` raises an exception of any rank, wherever it was raised; it is logged once, in the file too."""
    trouble = Trouble(tmp_path, where, rank)
    saving: dict[str, Any] = {"chkpt_root": tmp_path / "checkpoints", "chkpt_frequency": 1} if where == "saving" else {}
    error = fail(trouble, enable_file_logging=True, log_path=tmp_path, **saving)
    assert type(error.__cause__) is Broken
    text = str(error)
    assert text.startswith(f"rank {rank} (on {HERE}) failed first: tests.distributed.parts.Broken: ")
    assert f"trouble in {where}" in text
    assert "Traceback (most recent call last)" in text
    assert 'parts.py", line ' in text
    assert f", in {PLACES[where]}\n" in text
    assert errors_in(caplog) == [f"training failed: {text}"]
    written = (tmp_path / "helios.log").read_text(encoding="utf-8")
    assert written.count("ERROR") == 1
    assert text in written


def test_an_exception_that_cannot_be_pickled_is_raised_as_text(tmp_path: Path) -> None:
    """The text and the traceback of an exception that cannot be pickled are returned."""
    error = fail(Trouble(tmp_path, "hook", 1, "Unportable"))
    assert error.__cause__ is None
    assert f"rank 1 (on {HERE}) failed first: tests.distributed.parts.Unportable: trouble in hook" in str(error)
    assert ", in on_training_batch_end\n" in str(error)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_control_flow_is_raised_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rank: int, *, late: bool
) -> None:
    """`fit` raises a registered type unchanged and unlogged, also one that only the ranks register."""
    trouble = Trouble(tmp_path, "hook", rank, "Stop")
    plugin = TroubledPlugin(trouble, Stop, late=late)
    with pytest.raises(Stop, match="^trouble in hook$") as caught:
        fit_into(trouble, plugin, enable_file_logging=True, log_path=tmp_path)
    assert type(caught.value) is Stop
    assert isinstance(caught.value.__cause__, RankFailedError)
    assert caught.value.__cause__.rank == rank
    assert time.monotonic() - trouble.began() < SOON
    assert survivors(trouble.processes()) == []
    assert errors_in(caplog) == []
    assert "ERROR" not in (tmp_path / "helios.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, rank: int, workers: int) -> None:
    """A rank that is killed from outside is named by `fit`; its data loader's workers go with it."""
    trouble = Trouble(tmp_path, "hook", rank, "wait")

    def kill() -> None:
        os.kill(int((tmp_path / "waiting").read_text(encoding="utf-8")), signal.SIGKILL)

    with once_there_is(tmp_path / "waiting", kill):
        error = fail(trouble, workers=workers)
    assert str(error) == f"rank {rank} (on {HERE}) failed first: it was ended by SIGKILL"
    assert errors_in(caplog) == [f"training failed: {error}"]


@pytest.mark.parametrize(
    ("how", "end"), [("exit", "it ended without a word, with exit code 3"), ("segfault", "it was ended by SIGSEGV")]
)
@pytest.mark.parametrize("where", ["model setup", "backward"])
def test_a_rank_that_exits_without_an_error_is_named(tmp_path: Path, where: str, how: str, end: str) -> None:
    """A rank that calls `os._exit` or crashes is named, with its exit code or signal."""
    assert str(fail(Trouble(tmp_path, where, 1, how))) == f"rank 1 (on {HERE}) failed first: {end}"


def test_failed_runs_leave_nothing_open(tmp_path: Path) -> None:
    """Files and threads of a failed run are closed at once, even while its error is kept.

    Many trials of a study may fail, and nothing has Python's collector come by in time.
    """
    kept: list[BaseException] = []

    def fail_quietly(*, keeps: bool) -> tuple[int, int]:
        try:
            fit_into(Trouble(tmp_path, "model setup", 1), workers=0)
        except RankFailedError as error:
            if keeps:
                kept.append(error)
        return tuple(len(list(Path("/proc/self", kind).iterdir())) for kind in ("fd", "task"))  # type: ignore[return-value]  # Of two.

    gc.collect()
    gc.disable()
    try:
        fail_quietly(keeps=False)
        before = fail_quietly(keeps=False)
        assert fail_quietly(keeps=False) == before
        assert fail_quietly(keeps=True) == before
    finally:
        gc.enable()
    assert len(kept) == 1


def test_a_signal_at_the_end_is_not_swallowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When ranks have nothing left to do, the log says that a signal came, as it does with one process."""
    assert make(total_steps=1, chkpt_root=tmp_path).fit(Calling(), ListData())
    assert caplog.messages == ["SIGTERM came when training was at its end; nothing is left to do"]


def test_ctrl_c_ends_all_ranks(tmp_path: Path) -> None:
    """Without checkpoints Ctrl-C in the calling process is a KeyboardInterrupt, and no rank is left."""
    trouble = Trouble(tmp_path, "hook", 1, "wait")
    with (
        pytest.raises(KeyboardInterrupt),
        once_there_is(tmp_path / "waiting", lambda: os.kill(os.getpid(), signal.SIGINT)),
    ):
        fit_into(trouble)
    assert time.monotonic() - trouble.began() < SOON
    assert len(trouble.processes()) >= 4
    assert survivors(trouble.processes()) == []
