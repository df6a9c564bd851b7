"""Who runs a trial: a mark on it, and whether the process that left the mark still lives."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import optuna

from helios.ranks.processes import exists, is_stopped

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

OWNER_KEY: Final = "helios:owner"

_PROC: Final = Path("/proc")
_ENDED: Final = ("Z", "X")  # A killed process that its parent has not looked after yet runs nothing any more.


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process, told from all others, earlier and later ones too.

    Attributes:
        host: the name of its machine.
        boot: the kernel's name for the time since the machine was started; empty where there is none.
        namespace: the kernel's name for the space that process ids count in, one for each container; empty where there
            is none.
        pid: its process id.
        start: when it started, in clock ticks since the machine did; `None` where the system does not tell.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    start: int | None

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host!r}"


def mark_owner(trial: Any) -> None:
    """Write on a trial, in its storage, that this process runs it.

    A trial that lives in no storage (a `FixedTrial`, a stand-in for a trial in another process) stays as it is.
    """
    if isinstance(trial, optuna.Trial):
        mark = dataclasses.asdict(this_process())
        trial.storage.set_trial_system_attr(trial._trial_id, OWNER_KEY, mark)  # noqa: SLF001 - storages know ids alone.


def owner_of(trial: FrozenTrial) -> Owner | None:
    """Return who a trial says runs it, or ran it last; `None` if it says nothing that can be read."""
    return parse_owner(trial.system_attrs.get(OWNER_KEY))


def parse_owner(mark: object) -> Owner | None:
    """Return the owner that `mark_owner` wrote, or `None` if this is no such mark."""
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
    """Return whether a process still lives, or `None` where that cannot be known from here."""
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
    """Return who an owner is, and that it is stopped if that can be seen from here, with what to do then."""
    if is_alive(owner) and is_stopped(owner.pid):
        return f"{owner}, which is stopped: 'kill -CONT {owner.pid}' has it go on"
    return str(owner)


def this_process() -> Owner:
    """Return the mark of the calling process."""
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
    """Return when a process started, or `None` if there is no such process or the system does not tell."""
    try:
        status = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the name in brackets, and may hold blanks and brackets itself.
    state, *fields = status.rpartition(")")[2].split()
    return None if state in _ENDED else int(fields[18])
