"""Processes that end with their parent, and forks that do not inherit locked locks."""

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

_LOOK: Final = 1.0  # Seconds between two checks of the parent.
_MOMENT: Final = 0.001  # Seconds within which a busy thread runs at least once.
_SETTLING: Final = 0.5  # Seconds that a fork waits for threads that are never idle.


def follow_parent() -> None:
    """Start a thread that ends this process when its `multiprocessing` parent is gone.

    The parent's end of a pipe is closed then. Processes that the parent has forked hold that end as well and may live
    longer, so the parent's process id is checked, too.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="helios-parent", daemon=True).start()


def _follow(parent: Any) -> None:
    # True unless a fork server is between the two, or the parent is already gone.
    is_child = os.getppid() == parent.pid
    while _is_there(parent, is_child=is_child):
        parent.join(_LOOK)
    end_process()


def _is_there(parent: Any, *, is_child: bool) -> bool:
    if not parent.is_alive():
        return False
    if os.name != "posix":
        return True  # Nothing is forked there, so the pipe is enough.
    return os.getppid() == parent.pid if is_child else exists(parent.pid)


def end_process() -> None:
    """Kill this process, and its process group if it leads one. Files that Helios writes stay intact."""
    if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def exists(pid: int) -> bool:
    """Return whether there is a process with this id, including one that has ended but was not waited for (POSIX)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_stopped(pid: int) -> bool:
    """Return whether a process of this machine is stopped, by SIGSTOP or Ctrl-Z; false on systems without `/proc`."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # The second field is the name in parentheses, which may contain spaces and parentheses.
    return status.rpartition(")")[2].split()[0] == "T"


def cpu_seconds(thread: int) -> float:
    """Return the CPU time of a thread of this process, in seconds; 0 on systems that do not measure it.

    Args:
        thread: its identifier, as returned by `threading.get_ident`. The thread must not have ended.
    """
    if not hasattr(time, "pthread_getcpuclockid"):
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(thread))


@functools.cache
def settle_before_forks() -> None:
    """Let every fork of this process wait until its threads that Python has not started are idle.

    Before Python 3.12, if a process is forked while such a thread registers with the interpreter, the child waits
    forever for a lock that no thread holds there (https://github.com/python/cpython/issues/112275). A data loader with
    workers then hangs. The threads of gloo register when they release a finished collective.
    """
    if sys.version_info < (3, 12):
        os.register_at_fork(before=settle)


def settle() -> None:
    """Wait until the threads of this process that Python has not started are idle; half a second at most.

    Returns immediately on systems without `/proc`.
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
    """Return the number of context switches of each unknown thread; `None` if one of them is running."""
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
