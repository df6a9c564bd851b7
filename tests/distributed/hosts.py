"""Two hosts on one machine: network namespaces with a cable between them that can be cut.

A host has a network and a name of its own. Everything else it shares with the machine, files above all, as the nodes
of a cluster share theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Each pair of hosts is a network of its own: what is unique are the names alone.
_ADDRESSES: Final = ("10.77.0.1", "10.77.0.2")
_INTERFACE: Final = "eth0"
_NOBODY: Final = "02:00:00:00:00:00"  # A hardware address that neither has: frames to it are dropped where they arrive.
_PREFIX: Final = "helios"
_COUNTER: Final = itertools.count()

# torchrun and gloo look up the host's name: it must be found, and mean the address that the other host reaches. What
# `ip netns exec` starts has mounts of its own, so that files of ours can cover the machine's for that alone.
_BECOME: Final = """
hostname "$0" && mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf || exit
shift
exec "$@"
"""


@dataclasses.dataclass(frozen=True)
class Host:
    """A network namespace.

    Attributes:
        name: what the namespace is called, and what `socket.gethostname()` returns in it.
        address: where the other host reaches it.
        interface: the name of its end of the cable.
    """

    name: str
    address: str
    interface: str
    _files: Path
    _ends: tuple[tuple[str, str], tuple[str, str]]  # Of each host the name, and the other's address.

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs a command on this host; the process that it starts becomes the command's own."""
        become = ["unshare", "--uts", "sh", "-c", _BECOME, self.name, str(self._files)]
        return ["ip", "netns", "exec", self.name, *become, *command]

    def pids(self) -> list[int]:
        """Return the processes that are on this host."""
        return _pids(self.name)

    def kill(self) -> None:
        """Kill every process on this host at once, and return when none is left."""
        kill_all(self.pids)

    def cut(self) -> None:
        """Let packets between the hosts vanish from now on, both ways: each believes that its own are on their way.

        Taking an interface down would be kinder than a network is: its own host gets errors, and the other, who sees
        that the cable has no signal, tries again twice a second instead of ever more rarely.
        """
        for name, other in self._ends:
            _ip("-netns", name, "neighbour", "replace", other, "dev", _INTERFACE, "lladdr", _NOBODY, "nud", "permanent")

    def mend(self) -> None:
        """Undo `cut`. What was sent meanwhile arrives when TCP tries again, which may take as long as the cut did."""
        for name, other in self._ends:
            _ip("-netns", name, "neighbour", "delete", other, "dev", _INTERFACE)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts that reach each other, by address and by name, and nobody else.

    Whatever is done to them, neither they nor any process on them outlives the context. If this process is killed in
    it, the next call of anybody clears up.

    Yields:
        The hosts. The name of the first sorts first, and torchrun numbers nodes by that: its ranks are the lower ones.
    """
    _clear_up()
    stem = f"{_PREFIX}-{os.getpid()}-{next(_COUNTER)}"
    with tempfile.TemporaryDirectory(prefix=f"{stem}-") as folder, contextlib.ExitStack() as stack:
        files = Path(folder)
        names = (f"{stem}-a", f"{stem}-b")
        ends = ((names[0], _ADDRESSES[1]), (names[1], _ADDRESSES[0]))
        hosts = [Host(name, address, _INTERFACE, files, ends) for name, address in zip(names, _ADDRESSES, strict=True)]
        lines = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in hosts)]
        (files / "hosts").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        # A look-up of a host name must not wait for a name server that cannot be reached.
        (files / "nsswitch.conf").write_text("hosts: files\n", encoding="utf-8")
        for host in hosts:
            _ip("netns", "add", host.name)
            stack.callback(_remove, host.name)
        cable = [("name", _INTERFACE, "netns", name) for name in names]
        _ip("link", "add", *cable[0], "type", "veth", "peer", *cable[1])
        for host in hosts:
            _ip("-netns", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                _ip("-netns", host.name, "link", "set", interface, "up")
        yield hosts[0], hosts[1]


@functools.cache
def why_not() -> str | None:
    """Return why `two_hosts` does not work here, or `None` if it does. It is tried once."""
    missing = [name for name in ("ip", "unshare", "mount", "hostname") if shutil.which(name) is None]
    if missing:
        return f"hosts need {', '.join(missing)}: install iproute2, util-linux and hostname"
    if os.geteuid() != 0:
        return "hosts are network namespaces, which root alone can make"
    dial = f"import socket; socket.create_connection(({_ADDRESSES[1]!r}, 9), timeout=5)"
    try:
        with two_hosts() as (first, _):
            trial = _run(first.command([sys.executable, "-c", dial]))
    except RuntimeError as error:
        return f"the kernel refuses network namespaces: {error}"
    # Refused by the other host: nobody listens there, but it is reached.
    return None if "ConnectionRefusedError" in trial.stderr else f"a trial of hosts failed: {trial.stderr.strip()}"


def kill_all(find: Callable[[], list[int]]) -> None:
    """Kill the processes that a search finds, and search again until it finds none; return when all are gone."""
    killed: set[int] = set()
    while pids := find():  # Whoever was killed may have started somebody just before.
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(pids)
        time.sleep(0.01)
    while any(map(is_alive, killed)):  # A search may miss who is about to end: files and namespaces go first.
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Return whether a process is there, and more than a zombie."""
    return read_stat(pid)[:1] not in ([], ["Z"], ["X"])


def read_stat(pid: int) -> list[str]:
    """Return what Linux tells about a process, proc_pid_stat(5) from its state (3) on; nothing if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()  # The field before, the program's name, may hold anything.


def names_of_hosts() -> list[str]:
    """Return the names of the hosts that there are on this machine, whoever has made them."""
    return re.findall(rf"^{_PREFIX}-\d+-\d+-[ab]\b", _ip("netns", "list"), flags=re.MULTILINE)


def _remove(name: str) -> None:
    """Remove a namespace: the cable goes with it, once no process is left that holds it."""
    kill_all(functools.partial(_pids, name))
    _ip("netns", "delete", name)


def _pids(name: str) -> list[int]:
    """Return the processes in a namespace."""
    return [int(pid) for pid in _ip("netns", "pids", name).split()]


def _clear_up() -> None:
    """Remove what belongs to hosts whose owners are gone."""
    for name in names_of_hosts():
        stem, owner = name.rpartition("-")[0], name.split("-")[1]
        if not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(RuntimeError):  # Another process may do the same at the same time.
                _remove(name)
            for folder in Path(tempfile.gettempdir()).glob(f"{stem}-*"):
                shutil.rmtree(folder, ignore_errors=True)


def _ip(*arguments: str) -> str:
    """Run `ip` and return what it prints."""
    result = _run(["ip", *arguments])
    if result.returncode != 0:
        raise RuntimeError(f"`ip {' '.join(arguments)}` failed: {result.stderr.strip()}")
    return result.stdout


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, which must be near."""
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
