"""Ends a process whose main thread hangs where Python cannot interrupt it, such as in a library call.

Python runs signal handlers in its main thread, between two instructions. While that thread waits in a library, for
another rank or for a device, they do not run. But Python writes the number of the signal to a pipe immediately.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Final

from helios.core.logging import get_root_logger

if TYPE_CHECKING:
    from collections.abc import Callable

GRACE: Final = 10.0  # Seconds that the main thread has to end after a final signal.
_LOGGING: Final = 2.0  # Seconds for a log message: the main thread may hang in the logger.
_CLOSE: Final = b"\0"  # No signal has this number.
_FAILED: Final = 128  # What shells add to the number of a signal that has ended a process.
_ASKED: Final = "%s came %g s ago, and training could not leave yet: a second SIGTERM, or Ctrl-C, ends it at once"
_ENDED: Final = "%s came again, and the main thread has not left for %g s: the process is ended. Checkpoints are intact"


class Escape:
    """Ends the process some seconds after a final signal, unless `close` is called before.

    If training has not stopped that many seconds after the first signal, a warning says that a signal has arrived: the
    main thread logs it only when it stops.

    Args:
        is_final: gets each signal in order of arrival, and returns whether it must end the process; `None` for a signal
            that does not ask to stop.
    """

    def __init__(self, is_final: Callable[[int], bool | None]) -> None:
        self._is_final = is_final
        self._closed = threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._warning: threading.Timer | None = None
        _open.append(self)
        self._thread = threading.Thread(target=self._watch, name="helios-escape", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching, and restore the previous receiver of signals."""
        _open.remove(self)
        signal.set_wakeup_fd(self._before)
        self._closed.set()
        os.write(self._writer, _CLOSE)
        self._thread.join()
        if self._warning is not None:
            self._warning.cancel()
            self._warning.join()
        os.close(self._reader)
        os.close(self._writer)

    def _watch(self) -> None:
        while _CLOSE not in (numbers := os.read(self._reader, 64)):
            if self._before >= 0:  # It belongs to another library, perhaps an event loop.
                with contextlib.suppress(OSError):
                    os.write(self._before, numbers)
            for number in numbers:
                is_final = self._is_final(number)
                if is_final and not self._closed.wait(GRACE):
                    _log(logging.ERROR, _ENDED, number)
                    os._exit(_FAILED + number)
                if is_final is not None and self._warning is None:
                    self._warning = threading.Timer(GRACE, _log, (logging.WARNING, _ASKED, number))
                    self._warning.daemon = True
                    self._warning.start()


_open: list[Escape] = []


def _forget() -> None:
    """Prevent a forked process from writing its signals to the pipe of its parent."""
    if _open:
        _open.clear()
        with contextlib.suppress(ValueError):  # It was forked by another thread than the main one.
            signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _log(level: int, text: str, number: int) -> None:
    arguments = (level, text, signal.Signals(number).name, GRACE)
    thread = threading.Thread(target=get_root_logger().log, args=arguments, daemon=True)
    thread.start()
    thread.join(_LOGGING)
