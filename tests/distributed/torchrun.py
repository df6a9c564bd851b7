"""Jobs that `torchrun` starts: on this machine, or one agent on each of several hosts.

torchrun's own process is the agent. It starts the ranks, each in a session of its own, watches them, and starts all
of them again when one fails. From start to end a job of two ranks takes about 3.5 seconds on two idle cores: a second
and a half for the agent to import torch, and another for the ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.distributed.hosts import is_alive, kill_all, read_stat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from tests.distributed.hosts import Host

ROOT: Final = Path(__file__).parents[2]

_PORT: Final = 29400  # Any is free: the hosts' network is their own.
_COUNTER: Final = itertools.count()

# Without it, a job would outlive tests that are killed.
_GOES_DOWN_WITH_US: Final = ["setpriv", "--pdeathsig=TERM"] if shutil.which("setpriv") else []


@dataclasses.dataclass(frozen=True)
class Job:
    """An agent, its ranks, and what these start. A context: all of them are killed at its end.

    Attributes:
        agent: the process of torchrun itself.
        log: the file with what all of them print, errors included.
    """

    agent: subprocess.Popen[bytes]
    log: Path

    def wait(self, timeout: float) -> int:
        """Wait for the agent to end.

        Args:
            timeout: for how long, in seconds.

        Returns:
            Its exit code: 0 if every rank ended well, 1 if one failed, negative if a signal ended the agent itself.

        Raises:
            TimeoutError: if it has not ended. The message shows what was printed.
        """
        try:
            return self.agent.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the job has not ended within {timeout} seconds:\n{self.output()}") from None

    def wait_for(self, text: str, timeout: float, times: int = 1) -> None:
        """Wait until the job has printed a text.

        Args:
            text: what to wait for.
            timeout: for how long, in seconds.
            times: how often it must have been printed.

        Raises:
            TimeoutError: if it was not, or the job ended before. The message shows what was printed instead.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = self.agent.poll() is not None  # Asked first: what an agent prints last must not be missed.
            if self.output().count(text) >= times:
                return
            if ended or time.monotonic() > deadline:
                reason = f"the job ended with {self.agent.returncode}" if ended else f"{timeout} seconds have passed"
                raise TimeoutError(f"{text!r} was not printed, and {reason}:\n{self.output()}")
            time.sleep(0.02)

    def output(self) -> str:
        """Return what the agent and the ranks have printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def rank_pids(self) -> list[int]:
        """Return the ranks that are alive, by their local numbers; none once the agent is gone."""
        children = ((read_stat(pid), pid) for pid in _all_pids())
        # By the time of their start, in ticks: ids alone would do, but begin anew when they have reached their limit.
        ranks = [(int(stat[19]), pid) for stat, pid in children if stat[1:2] == [str(self.agent.pid)]]
        return [pid for _, pid in sorted(ranks) if is_alive(pid)]

    def pids(self) -> list[int]:
        """Return every process of the job that is alive: all that print to its log, whoever their parents are."""
        log = self.log.stat()
        return [pid for pid in _all_pids() if _prints_to(pid, log)]

    def kill(self) -> None:
        """Kill all of it at once, as a power cut would, and return when nothing is left. It may have ended before."""
        kill_all(self.pids)
        self.agent.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def start(
    script_module: str,
    arguments: Sequence[str] = (),
    *,
    folder: Path,
    ranks: int = 2,
    restarts: int = 0,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Job:
    """Start a job on this machine. It goes down with the thread that has started it.

    Args:
        script_module: what each rank runs, by the name after `tests.distributed.`.
        arguments: the arguments of that.
        folder: where the job's log and torchrun's own files go.
        ranks: how many ranks.
        restarts: how often the agent starts all ranks again after one has failed.
        options: further options of torchrun.
        env: what the agent's environment, which the ranks inherit, has more than this process's.

    Returns:
        The job, which has just begun to start.
    """
    here = ["--rdzv-endpoint", "localhost:0", "--local-addr", "localhost"]
    command = _torchrun(script_module, arguments, ranks, restarts, [*here, *options], folder)
    return _start(command, folder / "torchrun.log", "lo", env)


def start_on_hosts(
    hosts: Sequence[Host],
    script_module: str,
    arguments: Sequence[str] = (),
    *,
    folder: Path,
    ranks: int = 1,
    restarts: int = 0,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> list[Job]:
    """Start a job on several hosts, the first of which has the rendezvous.

    Args:
        hosts: the hosts.
        script_module: as in `start`.
        arguments: as in `start`.
        folder: as in `start`; the hosts share it.
        ranks: how many ranks each host has.
        restarts: as in `start`.
        options: as in `start`.
        env: as in `start`.

    Returns:
        For each host its agent, its ranks and their log, as a job of its own.
    """
    endpoint = f"{hosts[0].address}:{_PORT}"
    together = ["--nnodes", str(len(hosts)), "--rdzv-endpoint", endpoint, *options]
    command = _torchrun(script_module, arguments, ranks, restarts, together, folder)
    return [_start(host.command(command), folder / f"torchrun-{host.name}.log", host.interface, env) for host in hosts]


def _torchrun(
    module: str, arguments: Sequence[str], ranks: int, restarts: int, options: Sequence[str], folder: Path
) -> list[str]:
    """Return the command line of an agent."""
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--rdzv-backend", "c10d", "--rdzv-id", f"job-{os.getpid()}-{next(_COUNTER)}"),
        *("--nproc-per-node", str(ranks), "--max-restarts", str(restarts)),
        *("--monitor-interval", "0.05"),  # How soon the agent sees that a rank has ended, in seconds.
        *("--log-dir", str(folder)),  # Or torchrun would leave a folder behind in /tmp.
        *options,
        *("-m", f"tests.distributed.{module}", *arguments),
    ]


def _start(command: Sequence[str], log: Path, interface: str, env: Mapping[str, str] | None) -> Job:
    """Start an agent that prints to a log."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": interface,
        "TP_SOCKET_IFNAME": interface,
        **(env or {}),
    }
    with log.open("ab") as file:
        agent = subprocess.Popen(
            [*_GOES_DOWN_WITH_US, *command],
            cwd=ROOT,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    return Job(agent, log)


def _all_pids() -> list[int]:
    """Return the processes of this machine."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _prints_to(pid: int, log: os.stat_result) -> bool:
    """Return whether a process's standard output or error is a log. A zombie's is not."""
    for stream in (1, 2):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if os.path.samestat(Path(f"/proc/{pid}/fd/{stream}").stat(), log):
                return True
    return False
