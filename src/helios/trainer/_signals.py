"""Signals that ask a run to stop."""

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

# Sent by schedulers, by Ctrl-C and by a closed terminal. Not every system has all of them.
_NAMES: Final = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
# Seconds within which a second SIGTERM counts as a duplicate: a scheduler sends it to all processes of a job, and the
# parent process passes it on.
_DUPLICATE: Final = 2.0
_EXIT: Final = 128  # Shells add this to the number of the signal that has ended a process.


def _numbers() -> list[int]:
    """Return the numbers of those signals that exist on this system."""
    return [int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)]


class _Insistence:
    """Decides which of a series of signals must end the process: a second Ctrl-C, or a second SIGTERM."""

    def __init__(self) -> None:
        self._has_asked = False
        self._terminated_at: float | None = None

    def is_final(self, number: int) -> bool | None:
        """Return whether the next signal is final; `None` if it does not ask to stop."""
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

    A second Ctrl-C raises `KeyboardInterrupt` immediately, and a second SIGTERM `SystemExit`. If the main thread cannot
    run, for example in a library call that never returns, the process is ended: see `Escape`.

    Python handles signals only in the main thread. In another thread, or if `enabled` is false, this does nothing.
    """

    def __init__(self, *, enabled: bool) -> None:
        """Prepare the watch, which starts when it is entered.

        Args:
            enabled: whether signals are watched: without a folder for checkpoints, they have their usual effect.
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
        """Return whether a signal has arrived."""
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
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
        if self._escape is not None:
            self._escape.close()
            self._escape = None
        if error is not None and error is self._exit:
            get_root_logger().error(
                "SIGTERM came again before training could stop: it is ended without a checkpoint. Earlier checkpoints "
                "are intact: start the run again to resume from the newest",
            )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process:
            # A forked worker has inherited this handler. Ctrl-C also reaches its parent, which still needs batches of
            # the worker, so it is ignored here. Every other signal was meant for the worker.
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
        # It is logged later, because this handler may have interrupted the logger.
        self._reason = signal.Signals(number).name

    def raise_again(self) -> None:
        """Raise the signal that has arrived again, with its usual effect; called when the watch was left."""
        if self._asked:
            signal.raise_signal(signal.Signals[self._reason])

    def report(self, *, is_leaving: bool) -> None:
        """Log which signal has arrived, if one has.

        Args:
            is_leaving: whether training stops because of it, and not because it is complete.
        """
        if is_leaving:
            get_root_logger().warning(
                "%s: training stops; a checkpoint is written, call fit again to continue",
                self._reason or "a signal to another process of the run",
            )
        elif self._asked:
            get_root_logger().warning("%s came when training was at its end; nothing is left to do", self._reason)
