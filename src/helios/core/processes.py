"""Processes that do not outlive the one that has started them, however that one ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any, Final

_LOOK: Final = 1.0  # Seconds between two looks at who the parent is.


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
