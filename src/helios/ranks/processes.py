"""Processes that do not outlive the one that has started them, and such that are forked and begin at all."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Container

_TASKS: Final = Path("/proc/self/task")
_ASLEEP: Final = re.compile(r"^State:\s+S", re.MULTILINE)
_SWITCHES: Final = re.compile(r"ctxt_switches:\s+(\d+)")

_LOOK: Final = 1.0  # Seconds between two looks at who the parent is.
_MOMENT: Final = 0.001  # Seconds in which a thread that has anything to do does some of it.
_SETTLING: Final = 0.5  # Seconds that a fork waits at most for threads that are never idle.


def follow_parent() -> None:
    """Have a thread end this process when the one that has started it, through `multiprocessing`, is gone.

    The parent's end of a pipe is closed then. Processes that it has forked hold that end as well, and may live on: so
    it is looked for by its number, too.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="helios-parent", daemon=True).start()


def _follow(parent: Any) -> None:
    # Its child, unless a fork server stands between the two, or the parent is gone already.
    is_child = os.getppid() == parent.pid
    while _is_there(parent, is_child=is_child):
        parent.join(_LOOK)
    end_process()


def _is_there(parent: Any, *, is_child: bool) -> bool:
    if not parent.is_alive():
        return False
    if os.name != "posix":
        return True  # Nothing is forked there: the pipe tells it all.
    return os.getppid() == parent.pid if is_child else exists(parent.pid)


def end_process() -> None:
    """End this process at once, and all of its process group if it leads one: nothing that Helios does is harmed."""
    if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def exists(pid: int) -> bool:
    """Whether there is a process of this number, be it one that has ended unnoticed; on POSIX systems."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine is stopped, by SIGSTOP or Ctrl-Z; false where nothing tells."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # The second field is the name in brackets, and may hold blanks and brackets itself.
    return status.rpartition(")")[2].split()[0] == "T"


def cpu_seconds(thread: int) -> float:
    """Return how long a thread of this process has computed; 0 where the system does not tell. It must not have ended.

    Args:
        thread: its identifier, as `threading.get_ident` gives it.
    """
    if not hasattr(time, "pthread_getcpuclockid"):
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(thread))


@functools.cache
def settle_before_forks() -> None:
    """Have every fork of this process wait until those of its threads that are not Python's are idle.

    Before Python 3.12, a child that is forked while such a thread makes itself known to the interpreter waits for ever
    for a lock that nobody holds in it (https://github.com/python/cpython/issues/112275), and its data loader with it.
    The threads of gloo do so when they release a collective that is over, which is when the main thread continues.
    """
    if sys.version_info < (3, 12):
        os.register_at_fork(before=settle)


def settle() -> None:
    """Wait until those threads of this process that are not Python's are idle; half a second at most.

    Returns at once where the system does not tell.
    """
    if not _TASKS.is_dir():
        return
    deadline = time.monotonic() + _SETTLING
    known = {thread.native_id for thread in threading.enumerate()}
    before: dict[int, str] | None = None
    while time.monotonic() < deadline:
        now = _look_at_threads(known)
        if now is not None and now == before:
            return
        before = now
        time.sleep(_MOMENT)


def _look_at_threads(known: Container[int | None]) -> dict[int, str] | None:
    """Return how often each thread but the known ones has gone to sleep so far; `None` if one does not sleep."""
    seen = {}
    for task in _TASKS.iterdir():
        if int(task.name) in known:
            continue
        with contextlib.suppress(OSError):  # It has ended.
            status = (task / "status").read_text(encoding="utf-8", errors="replace")
            if not _ASLEEP.search(status):
                return None
            seen[int(task.name)] = " ".join(_SWITCHES.findall(status))
    return seen
