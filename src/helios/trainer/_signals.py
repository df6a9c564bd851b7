"""Signals that ask a run to leave."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from helios.core.logging import get_root_logger
from helios.trainer._escape import Escape

if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Self

# What schedulers, Ctrl-C and a terminal that is closed send; the ones after the first do not exist everywhere.
_NAMES: Final = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
# Seconds within which a second SIGTERM is the first one once more: a scheduler tells all processes of a job, and the
# one that has started them passes it on.
_DUPLICATE: Final = 2.0
_EXIT: Final = 128  # What shells add to the number of a signal that has ended a process.


def _numbers() -> list[int]:
    """Return the signals that this system has of those."""
    return [int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)]


class _Insistence:
    """Tells of a series of signals which of them ask for an end at once: a second Ctrl-C, or a second SIGTERM."""

    def __init__(self) -> None:
        self._has_asked = False
        self._terminated_at: float | None = None

    def is_final(self, number: int) -> bool | None:
        """Whether this signal, the next one, does; `None` if it asks for nothing."""
        if number not in _numbers():
            return None
        had_asked, self._has_asked = self._has_asked, True
        if number == signal.SIGINT:
            return had_asked
        if number != signal.SIGTERM:
            return False
        now = time.monotonic()
        if self._terminated_at is None:
            self._terminated_at = now
            return False
        return now - self._terminated_at >= _DUPLICATE


class SignalWatch:
    """While entered, a signal makes `was_asked` true instead of ending the process.

    A second Ctrl-C raises `KeyboardInterrupt` at once, wherever training is, and a second SIGTERM `SystemExit`. If the
    main thread cannot be reached, as in a call of a library that never returns, the process is ended: see `Escape`.

    Python lets only the main thread handle signals; in another thread, and where `enabled` is false, this does nothing.
    """

    def __init__(self, *, enabled: bool) -> None:
        """Prepare.

        Args:
            enabled: whether there is anything to do about a signal, such as writing a checkpoint.
        """
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}
        self._asked = False
        self._reason = ""
        self._process = os.getpid()
        self._insistence = _Insistence()
        self._escape: Escape | None = None
        self._exit: SystemExit | None = None

    def was_asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked

    def __enter__(self) -> Self:
        """Start watching."""
        if self._enabled:
            for name in _NAMES:
                number = getattr(signal, name, None)
                is_nohup = name == "SIGHUP" and number is not None and signal.getsignal(number) == signal.SIG_IGN
                if number is not None and not is_nohup:
                    self._before[number] = signal.signal(number, self._handle)
            self._escape = Escape(_Insistence().is_final)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python, and which Python cannot give back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
        if self._escape is not None:
            self._escape.close()
            self._escape = None
        if error is not None and error is self._exit:
            get_root_logger().error(
                "SIGTERM came again before training could leave: it is ended where it is, without a checkpoint. Those "
                "written before are intact: start the run again to resume from the newest",
            )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process:
            # A forked worker has inherited this. Ctrl-C reaches it as well as its parent, which still needs its
            # batches; every other signal was meant for the worker.
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self._insistence.is_final(number):
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            self._exit = SystemExit(_EXIT + number)
            raise self._exit
        self._asked = True
        # The log is written outside of the handler, which may have interrupted it.
        self._reason = signal.Signals(number).name

    def raise_again(self) -> None:
        """Have the signal that has come do what it would have done without this watch, which has been left."""
        if self._asked:
            signal.raise_signal(signal.Signals[self._reason])

    def report(self, *, is_leaving: bool) -> None:
        """Write to the log which signal has come, if one has.

        Args:
            is_leaving: whether training leaves because of it, and not because it was at its end.
        """
        if is_leaving:
            get_root_logger().warning(
                "%s: training leaves; a checkpoint is written, call fit again to continue",
                self._reason or "a signal to another process of the run",
            )
        elif self._asked:
            get_root_logger().warning("%s came when training was at its end; nothing is left to do", self._reason)
