"""The process that runs a trial: a system attribute of the trial names it, and others check whether it is alive."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import optuna

from helios.plugins.optuna.optuna_internals import trial_id_of
from helios.ranks.processes import exists, is_stopped

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

OWNER_KEY: Final = "helios:owner"

_PROC: Final = Path("/proc")
_ENDED: Final = ("Z", "X")  # States of a process that has ended; a zombie waits for its parent to read its exit status.


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process, identified uniquely although process ids are reused.

    Attributes:
        host: the name of its host.
        boot: the kernel's boot id; empty where there is none.
        namespace: the kernel's PID namespace, one for each container; empty where there is none.
        pid: its process id.
        start: its start time in clock ticks since the boot; `None` where the system does not provide it.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    start: int | None

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host!r}"


def mark_owner(trial: Any) -> None:
    """Record in the storage of a trial that this process runs it.

    Does nothing for an object that is no `optuna.Trial`, such as a `FixedTrial` or a `RemoteTrial`.
    """
    if isinstance(trial, optuna.Trial):
        mark = dataclasses.asdict(this_process())
        trial.storage.set_trial_system_attr(trial_id_of(trial), OWNER_KEY, mark)


def owner_of(trial: FrozenTrial) -> Owner | None:
    """Return the process that runs a trial, or ran it last; `None` if the trial has no valid record of one."""
    return parse_owner(trial.system_attrs.get(OWNER_KEY))


def parse_owner(mark: object) -> Owner | None:
    """Return the owner that `mark_owner` wrote, or `None` if the value has another form."""
    if not isinstance(mark, dict):
        return None
    try:
        owner = Owner(**mark)
    except TypeError:
        return None
    texts = (owner.host, owner.boot, owner.namespace)
    is_whole = isinstance(owner.pid, int) and isinstance(owner.start, int | None)
    return owner if is_whole and all(isinstance(text, str) for text in texts) else None


def is_alive(owner: Owner) -> bool | None:
    """Return whether a process is alive, or `None` if this process cannot tell."""
    here = this_process()
    if owner.host != here.host:
        return None
    if owner.boot and here.boot and owner.boot != here.boot:
        return False
    if owner.namespace != here.namespace:
        return None
    if here.start is None or owner.start is None:
        return None if exists(owner.pid) else False
    return _start_of(owner.pid) == owner.start


def describe_owner(owner: Owner) -> str:
    """Return the name of an owner; where this host shows that it is stopped, with the command that continues it."""
    if is_alive(owner) and is_stopped(owner.pid):
        return f"{owner}, which is stopped: 'kill -CONT {owner.pid}' continues it"
    return str(owner)


def this_process() -> Owner:
    """Return the calling process."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = str((_PROC / "self/ns/pid").readlink())
    return Owner(socket.gethostname(), _boot(), namespace, os.getpid(), _start_of(os.getpid()))


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """Return the start time of a process, or `None` if it does not exist or the system does not provide it."""
    try:
        status = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the name in parentheses, which may itself contain spaces and parentheses.
    state, *fields = status.rpartition(")")[2].split()
    return None if state in _ENDED else int(fields[18])
