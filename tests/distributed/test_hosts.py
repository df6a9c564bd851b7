from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
import torch
from torch import distributed

from tests.distributed import torchrun
from tests.distributed.hosts import Host, is_alive, names_of_hosts, two_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator

# Answers every message, and repeats its own until it gets an answer.
SERVER = """
import socket
listener = socket.create_server(("10.77.0.1", 4000))
print("listening", flush=True)
connection, _ = listener.accept()
while message := connection.recv(1):
    connection.sendall(message)
"""
CLIENT = """
import socket, time
connection = socket.create_connection(("10.77.0.1", 4000))
while True:
    connection.sendall(b".")
    print(connection.recv(1).decode(), end="", flush=True)
    time.sleep(0.01)
"""

# Makes hosts, has somebody sleep there, and dies before it can clear up.
CARELESS_OWNER = """
import os, signal, subprocess
from tests.distributed.hosts import two_hosts
with two_hosts() as hosts:
    for host in hosts:
        command = host.command(["sleep", "1000"])
        sleeper = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(host.name, sleeper.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""

# Two processes in two sessions, who ignore every signal that can be ignored.
STUBBORN = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.write(1, b"here\\n")
time.sleep(1000)
"""


def all_reduce_sum(steps: int) -> None:
    """Be a rank: add the numbers of all ranks up, as often as told, and say each time what came out and where."""
    distributed.init_process_group("gloo")
    rank, attempt = distributed.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"]
    for _ in range(steps):
        total = torch.tensor(rank + 1)
        distributed.all_reduce(total)
        # Written at once, or lines of ranks that share a log might mix.
        sys.stdout.write(f"rank {rank} on {socket.gethostname()}, attempt {attempt}: {int(total)}\n")
        time.sleep(0.01)
    distributed.destroy_process_group()


@contextlib.contextmanager
def running(host: Host, source: str, output: IO[bytes] | int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on a host for as long as the context lasts."""
    with subprocess.Popen(host.command([sys.executable, "-c", source]), stdout=output) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_it_grows(path: Path) -> None:
    """Return as soon as something is added to a file."""
    size, deadline = path.stat().st_size, time.monotonic() + 30
    while path.stat().st_size == size:
        assert time.monotonic() < deadline, f"nothing is added to {path}"
        time.sleep(0.01)


def test_ranks_on_two_hosts_add_up(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """Torchrun with two nodes connects the ranks of two hosts; each host has its name, and the first has rank 0."""
    first, second = torchrun.start_on_hosts(hosts, "test_hosts", ["2"], folder=tmp_path)
    with first, second:
        assert [first.wait(60), second.wait(60)] == [0, 0], first.output() + second.output()
        assert first.output().count(f"rank 0 on {hosts[0].name}, attempt 0: 3\n") == 2
        assert second.output().count(f"rank 1 on {hosts[1].name}, attempt 0: 3\n") == 2


def test_a_cut_is_silent_until_it_is_mended(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """While the cable is cut, nothing arrives and no error is raised; afterwards the same connection works again."""
    log = tmp_path / "client.log"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(hosts[0], SERVER, subprocess.PIPE))
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        client = stack.enter_context(running(hosts[1], CLIENT, stack.enter_context(log.open("wb"))))
        wait_until_it_grows(log)
        hosts[1].cut()
        time.sleep(0.2)  # For what had arrived to be written.
        size = log.stat().st_size
        time.sleep(0.8)
        assert log.stat().st_size == size
        assert [server.poll(), client.poll()] == [None, None]
        hosts[0].mend()
        wait_until_it_grows(log)
        hosts[1].kill()
        assert client.wait(10) == -signal.SIGKILL
        # The connection of a killed process is closed for all to see, unlike one that is cut.
        assert server.wait(10) in {0, 1}


def test_nothing_is_left_of_hosts(hosts: tuple[Host, Host]) -> None:
    """When their context ends with an error, no host, no process and no file of a host is left."""
    del hosts  # Asked for to be skipped where there can be none.

    def fail() -> None:
        raise KeyError

    started: list[subprocess.Popen[bytes]] = []
    with pytest.raises(KeyError), two_hosts() as pair:
        for host in pair:
            command = host.command([sys.executable, "-c", STUBBORN])
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            started.append(process)
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(2)] == [b"here\n", b"here\n"]
        pids = [pid for host in pair for pid in host.pids()]
        assert len(pids) == 4
        assert all(map(is_alive, pids))
        fail()
    for process in started:
        process.communicate(timeout=10)
    assert [process.returncode for process in started] == [-signal.SIGKILL, -signal.SIGKILL]
    assert not any(map(is_alive, pids))
    assert not {host.name for host in pair} & {*names_of_hosts()}


def test_hosts_of_a_killed_owner_are_cleared_up(hosts: tuple[Host, Host]) -> None:
    """Creating hosts removes those whose owner was killed, with their processes, and no others."""
    owner = subprocess.run(
        [sys.executable, "-c", CARELESS_OWNER], check=False, cwd=torchrun.ROOT, capture_output=True, text=True
    )
    left = [(name, int(pid)) for name, pid in map(str.split, owner.stdout.splitlines())]
    assert owner.returncode == -signal.SIGKILL
    assert len(left) == 2
    with two_hosts():
        assert not any(Path(tempfile.gettempdir()).glob(f"{left[0][0].removesuffix('-a')}-*"))
        names = names_of_hosts()
        assert not any(name in names or is_alive(pid) for name, pid in left)
        assert all(host.name in names for host in hosts)


def test_a_killed_job_leaves_nothing(tmp_path: Path) -> None:
    """A job restarts a killed rank, and can be killed as a whole even without its agent."""
    # Or, with torch 2.13, the new ranks would find the addresses of the dead ones in the agent's store.
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with torchrun.start("test_hosts", ["1000000"], folder=tmp_path, restarts=1, env=env) as job:
        job.wait_for("attempt 0: 3\n", timeout=60, times=2)
        with pytest.raises(TimeoutError, match="attempt 0: 3"):
            job.wait(0.01)
        ranks = job.rank_pids()
        assert sorted(job.pids()) == sorted([job.agent.pid, *ranks])
        os.kill(ranks[1], signal.SIGKILL)
        job.wait_for("attempt 1: 3\n", timeout=60, times=2)
        successors = job.rank_pids()
        assert len(successors) == 2
        assert not {*ranks} & {*successors}
        job.agent.kill()
        assert job.wait(10) == -signal.SIGKILL
        assert job.rank_pids() == []
        assert sorted(job.pids()) == sorted(successors)
    assert job.pids() == []
    assert not any(map(is_alive, successors))


def test_a_job_that_fails_says_so(tmp_path: Path) -> None:
    """The exit code of a job with a failed rank is 1, and waiting for what it never prints ends with the job."""
    with torchrun.start("test_hosts", ["many"], folder=tmp_path, ranks=1) as job:
        with pytest.raises(TimeoutError, match="ended with 1"):
            job.wait_for("attempt", timeout=60)
        assert job.wait(0) == 1
        assert "invalid literal for int() with base 10: 'many'" in job.output()


if __name__ == "__main__":
    all_reduce_sum(int(sys.argv[1]))
