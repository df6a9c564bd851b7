from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios.core.logging import logging_session
from helios.errors import ConfigurationError, RankFailedError
from helios.ranks import limits
from helios.ranks import monitor as monitor_module
from helios.ranks.announcements import announce_failure, find_cause
from helios.ranks.failures import Failure
from helios.ranks.monitor import RankMonitor, request_stop
from helios.ranks.stores import connect_store
from tests.processes import survivors
from tests.ranks.monitors import Actor, Hosted, Walker, info_of, perform

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HERE = socket.gethostname()
GONE = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
LIMIT = 8
TIMEOUT = 30  # Seconds for what takes tenths of a second.


@pytest.fixture(scope="module")
def hosted() -> Hosted:
    return Hosted()


FAST = {"CHECK_PERIOD": 0.01, "SETTLE_PERIOD": 0.001, "HEARTBEAT_PERIOD": 0.02, "ECHO": 0.2}
SHORT_LIMITS = {"SILENCE": 1.0, "ANSWER": 0.3}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the periods between two checks."""
    for name, seconds in FAST.items():
        monkeypatch.setattr(limits, name, seconds)


@pytest.fixture
def short_limits(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the limit for silent ranks, too; on a busy machine, a healthy thread may be silent for a while."""
    del fast
    for name, seconds in SHORT_LIMITS.items():
        monkeypatch.setattr(limits, name, seconds)


def error_of(should_stop: Callable[[], bool]) -> RankFailedError:
    """Call a stop check until it raises, and return the error."""
    deadline = time.monotonic() + TIMEOUT
    with pytest.raises(RankFailedError) as caught:
        while time.monotonic() < deadline:
            assert not should_stop()
            time.sleep(0.005)
    return caught.value


MOVES = st.tuples(st.sampled_from(["look", "look", "train", "train", "train", "ask"]), st.integers(0, 2))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(moves=st.lists(MOVES, max_size=80), hastes=st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_all_ranks_stop_at_one_position(hosted: Hosted, moves: list[tuple[str, int]], hastes: list[int]) -> None:
    """All ranks stop after the same batch, whichever is asked, at any time, and in any order of the threads' moves."""
    run = enumerate(zip(hosted.new_run(), hastes, strict=True))
    actors = [Actor(store, rank, 3, LIMIT, haste) for rank, (store, haste) in run]
    ends = perform(actors, moves)
    assert len(set(ends)) == 1
    assert ends[0] is not None
    if not any(what == "ask" for what, _ in moves):
        assert ends[0] == LIMIT


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("seed", range(6))
def test_threads_stop_at_one_position(hosted: Hosted, seed: int) -> None:
    """Real threads of different speeds, one of which is asked at some time, stop at one position."""
    walkers = [
        Walker(RankMonitor(store, info_of(rank, 3)), 400, seed + rank, pause=0.002 * (rank + 1))
        for rank, store in enumerate(hosted.new_run())
    ]
    for walker in walkers:
        walker.start()
    time.sleep(0.02 * seed)
    walkers[seed % 3].is_asked = True
    for walker in walkers:
        walker.join(TIMEOUT)
    assert [walker.error for walker in walkers] == [None] * 3
    assert len({walker.end for walker in walkers}) == 1
    assert walkers[0].end is not None
    assert walkers[0].end < 400, "a rank that is asked stops soon"


@pytest.mark.usefixtures("fast")
def test_another_process_can_request_a_stop(hosted: Hosted) -> None:
    """A stop request of the process that started the ranks reaches all of them."""
    stores = hosted.new_run()
    walkers = [Walker(RankMonitor(stores[rank], info_of(rank, 2)), 400, rank, pause=0.005) for rank in range(2)]
    for walker in walkers:
        walker.start()
    request_stop(stores[2])
    for walker in walkers:
        walker.join(TIMEOUT)
    assert [walker.error for walker in walkers] == [None, None]
    assert walkers[0].end == walkers[1].end
    assert walkers[0].end is not None
    assert walkers[0].end < 400


@pytest.mark.usefixtures("short_limits")
def test_a_finished_rank_does_not_delay_the_others(hosted: Hosted) -> None:
    """A rank that has finished has reported its position, and is not declared lost."""
    stores = hosted.new_run()
    with RankMonitor(stores[1], info_of(1, 2)) as done:
        done.watch_stop_requests(lambda: False, lambda: 7)
    position = 5
    with RankMonitor(stores[0], info_of(0, 2)) as monitor:
        should_stop = monitor.watch_stop_requests(lambda: True, lambda: position)
        deadline = time.monotonic() + TIMEOUT
        while not should_stop():
            assert time.monotonic() < deadline
            position = min(position + 1, 8)
            time.sleep(0.01)
        assert position == 8, "one after the position of the finished rank"
        time.sleep(2 * limits.SILENCE)
        assert should_stop()


@pytest.mark.usefixtures("fast")
def test_an_announced_failure_is_raised_on_the_other_ranks(hosted: Hosted) -> None:
    """The stop checks of all other ranks raise the failure that was announced first."""
    stores = hosted.new_run()
    with RankMonitor(stores[0], info_of(0, 2)) as mine, RankMonitor(stores[1], info_of(1, 2)) as others:
        stop_checks = [monitor.watch_stop_requests(lambda: False, lambda: 0) for monitor in (mine, others)]
        first = announce_failure(stores[2], Failure.of(ConfigurationError("a"), 0))
        assert announce_failure(stores[2], Failure.of(ConfigurationError("b"), 1)) == first
        error = error_of(stop_checks[1])
        assert str(error).startswith(f"rank 0 (on {HERE}) failed first: helios.errors.ConfigurationError: a")
        assert error.rank == 0
        assert type(error.__cause__) is ConfigurationError
        assert not stop_checks[0]()


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("key", ["failed", "leave", "place/0"])
@pytest.mark.parametrize("content", [pickle.dumps(Failure.lost(0, "a", "b")), b"-1", b"\x80", "\u0663", b"9" * 5000])
def test_foreign_content_of_the_store_ends_the_run(hosted: Hosted, key: str, content: bytes | str) -> None:
    """A value that no rank writes raises an error with its key; no main thread waits forever."""
    stores = hosted.new_run()
    stores[2].set(key, content)
    with RankMonitor(stores[1], info_of(1, 2)) as monitor:
        error = error_of(monitor.watch_stop_requests(lambda: key == "place/0", lambda: 0))
    assert f"under {key!r}, which no rank of this run writes" in str(error)
    assert (error.rank, error.is_lost) == (0, True)


@pytest.mark.usefixtures("short_limits")
def test_a_silent_rank_is_declared_lost(hosted: Hosted) -> None:
    """A rank that sends no heartbeat, or stops sending them, is declared lost by the rank before it."""
    stores = hosted.new_run()
    silence = "failed first: it has sent no heartbeat for 1 s"
    with RankMonitor(stores[0], info_of(0, 2)) as monitor:
        error = error_of(monitor.watch_stop_requests(lambda: False, lambda: 0))
    assert str(error) == f"rank 1 (on a machine that never answered) {silence}"
    stores = hosted.new_run()
    with RankMonitor(stores[0], info_of(0, 2)) as monitor:
        should_stop = monitor.watch_stop_requests(lambda: False, lambda: 0)
        for beat in range(150):  # Longer than the limit for silence.
            stores[1].set("beat/1", f"{beat} there")
            assert not should_stop()
            time.sleep(0.01)
        assert str(error_of(should_stop)) == f"rank 1 (on there) {silence}"


@pytest.mark.usefixtures("short_limits")
def test_the_error_says_that_a_silent_rank_is_stopped(hosted: Hosted) -> None:
    """If a silent rank of this host is a stopped process, the error says so, with the remedy."""
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        stores = hosted.new_run()
        stores[1].set("beat/1", f"1 {HERE} {process.pid}")
        with RankMonitor(stores[0], info_of(0, 2)) as monitor:
            error = error_of(monitor.watch_stop_requests(lambda: False, lambda: 0))
        process.kill()
    assert str(error) == (
        f"rank 1 (on {HERE}) failed first: it has sent no heartbeat for 1 s: its process {process.pid} is stopped, "
        f"and 'kill -CONT {process.pid}' would have continued it"
    )


def test_a_job_that_was_stopped_continues(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all processes are stopped for hours and continued one after the other, none is declared lost."""
    stores, now = hosted.new_run(), 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monitor = RankMonitor(stores[0], info_of(0, 2))
    monitor.watch_stop_requests(lambda: True, lambda: 0)
    stores[1].set("beat/1", "1 there")
    for _ in range(3):
        now += limits.HEARTBEAT_PERIOD
        monitor._check()
    for _ in range(20):
        now += 10_000
        monitor._check()
    was_healthy = monitor._failure is None
    for _ in range(100):
        now += limits.HEARTBEAT_PERIOD
        monitor._check()
    assert was_healthy
    assert monitor._failure is not None
    assert monitor._failure.text == "it has sent no heartbeat for 60 s"


@pytest.mark.usefixtures("short_limits")
def test_a_rank_that_reports_no_position_is_declared_lost(hosted: Hosted) -> None:
    """The others do not wait forever for the position of a rank."""
    store = hosted.new_run()[0]
    with RankMonitor(store, info_of(0, 2), watches=False) as monitor:
        error = error_of(monitor.watch_stop_requests(lambda: True, lambda: 0))
    assert str(error).endswith("failed first: asked where it can stop, it has not answered for 0.3 s")
    assert error.rank == 1


@pytest.mark.usefixtures("short_limits")
def test_a_monitor_that_does_not_watch_ignores_failures(hosted: Hosted) -> None:
    """Ranks started by `fit` are watched by its process: their monitors ignore silence and failures."""
    stores = hosted.new_run()
    announce_failure(stores[2], Failure.of(ConfigurationError("a"), 1))
    with RankMonitor(stores[0], info_of(0, 2), watches=False) as monitor:
        should_stop = monitor.watch_stop_requests(lambda: False, lambda: 0)
        time.sleep(2 * limits.SILENCE)
        assert not should_stop()
    assert not stores[2].check(["beat/0"])


@pytest.mark.usefixtures("fast")
def test_the_cause_of_an_echo_is_found(hosted: Hosted) -> None:
    """The cause of an echo is a failure that another rank announces, before or soon after."""
    stores = hosted.new_run()
    own = find_cause(stores[0], ConfigurationError("mine"), info_of(0, 2))
    assert (own.rank, own.is_echo) == (0, False)
    assert find_cause(stores[1], GONE, info_of(1, 2)) == own
    stores = hosted.new_run()
    late = threading.Timer(0.05, announce_failure, (stores[2], Failure.of(ConfigurationError("late"), 1)))
    late.start()
    assert find_cause(stores[0], GONE, info_of(0, 2)).text.endswith("late")
    late.join()


@pytest.mark.usefixtures("fast")
def test_the_cause_of_an_echo_may_be_a_killed_rank(hosted: Hosted) -> None:
    """A rank that sends no heartbeat any more is the cause; a rank that has finished is not."""
    stores = hosted.new_run()
    stores[2].set("beat/1", "17 there")
    with RankMonitor(stores[1], info_of(2, 3)):
        cause = find_cause(stores[0], GONE, info_of(0, 3))
    assert (cause.rank, cause.host) == (1, "there")
    assert cause.text == "it ended without a word: it was killed, or its machine is gone"
    stores = hosted.new_run()
    with RankMonitor(stores[1], info_of(1, 2)):
        pass
    cause = find_cause(stores[0], GONE, info_of(0, 2))
    assert (cause.rank, cause.is_echo) == (0, True)


class OutOfReach:
    """A store whose machine is gone."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name}: Broken pipe")


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_store_out_of_reach_is_the_failure_of_its_machine(rank: int) -> None:
    """A lost store is reported as the loss of rank 0's machine, by stop checks and as the cause of an echo.

    The stop check of rank 0 raises it as well, instead of waiting forever.
    """
    store: Any = OutOfReach()
    cause = find_cause(store, GONE, info_of(rank, 2))
    assert (cause.rank, cause.host) == (0, "rank 0's machine")
    assert "out of reach" in cause.text
    monitor = RankMonitor(store, info_of(rank, 2))
    should_stop = monitor.watch_stop_requests(lambda: False, lambda: 0)
    with monitor:
        error = error_of(should_stop)
    assert str(error).endswith("failed first: the store of the run is out of reach: check: Broken pipe")
    assert error.rank == 0


class Silent:
    """A store on a machine that does not answer any more."""

    def check(self, keys: list[str]) -> bool:
        """Answer only after everybody has stopped waiting."""
        threading.Event().wait(6 * limits.SILENCE)  # On a busy machine, shorter waits take longer.
        raise RuntimeError(f"no answer about {keys}")


@pytest.mark.usefixtures("short_limits")
def test_a_store_that_does_not_answer_is_lost() -> None:
    """A machine of rank 0 that does not answer, and refuses no connection, is noticed as well."""
    store: Any = Silent()
    with RankMonitor(store, info_of(1, 2)) as monitor:
        error = error_of(monitor.watch_stop_requests(lambda: False, lambda: 0))
    assert str(error).endswith("failed first: the store of the run is out of reach: it has not answered for 1 s")
    assert error.rank == 0


@pytest.mark.usefixtures("short_limits")
def test_ranks_wait_for_a_stopped_caller() -> None:
    """Ranks started by `fit` wait for its store: Ctrl-Z may stop that process, and it may be continued."""
    store: Any = Silent()
    with RankMonitor(store, info_of(1, 2), watches=False) as monitor:
        should_stop = monitor.watch_stop_requests(lambda: False, lambda: 0)
        time.sleep(1.6 * limits.SILENCE)
        assert not should_stop()


@pytest.mark.usefixtures("short_limits")
def test_a_busy_main_thread_gets_more_time(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A rank that computes when another one fails is not ended; its log names the failed rank."""
    monkeypatch.setattr(limits, "GRACE", 0.1)
    monkeypatch.setattr(limits, "BUSY_SHARE", 1e-4)
    ended: list[bool] = []
    monkeypatch.setattr(monitor_module, "end_process", lambda: ended.append(True))
    with RankMonitor(hosted.new_run()[0], info_of(0, 2)) as monitor:
        should_stop = monitor.watch_stop_requests(lambda: False, lambda: 0)
        while "This process is busy" not in caplog.text and not ended:
            sum(range(1000))
        assert not ended
        assert "rank 1 (on a machine that never answered) failed first: it has sent no heartbeat" in caplog.text
        assert error_of(should_stop).rank == 1


def be_stuck(port: int, folder: Path) -> None:
    """Run a rank, as the leader of a process group, that waits forever, like a collective with a lost rank."""
    os.setpgid(0, 0)
    for name, seconds in {**FAST, **SHORT_LIMITS, "GRACE": 0.3}.items():
        setattr(limits, name, seconds)
    child = subprocess.Popen(["sleep", "60"])  # noqa: S607 - wherever it is.
    (folder / "child").write_text(str(child.pid), encoding="utf-8")
    log = logging_session(log_file=folder / "log", capture_warnings=False, rank=0)
    with log, RankMonitor(connect_store(port), info_of(0, 2)):
        threading.Event().wait(TIMEOUT)


def test_a_blocked_main_thread_is_ended_with_its_process(tmp_path: Path, hosted: Hosted) -> None:
    """A rank that waits forever is ended with all processes that it has started; the log says why, and what to do."""
    process = multiprocessing.get_context("forkserver").Process(target=be_stuck, args=(hosted.port, tmp_path))
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == -signal.SIGKILL
    assert survivors([int((tmp_path / "child").read_text(encoding="utf-8"))]) == []
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "rank 1 (on a machine that never answered) failed first: it has sent no heartbeat" in log
    assert "waits for that rank and cannot be woken: it is ended. Start the run" in log
