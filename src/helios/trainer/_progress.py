"""Progress bars: rich's where a terminal shows them, and else tqdm's."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from helios.core.streams import STDERR, STDOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress, TaskID


class ProgressBar(Protocol):
    """A bar that is filled step by step."""

    def update(self, n: int = 1, /) -> Any:
        """Fill it by `n` steps."""
        ...

    def close(self) -> Any:
        """Leave it as it is."""
        ...


class ProgressDisplay(Protocol):
    """What opens bars."""

    def open(self, title: str, unit: str, total: float | None, done: int) -> ProgressBar:
        """Show a bar.

        Args:
            title: what is in progress.
            unit: what is counted.
            total: how many there will be; `None` or infinity if nobody knows.
            done: how many there have been.
        """
        ...

    def close(self) -> None:
        """Leave all bars as they are."""
        ...


class TqdmDisplay:
    """Bars of tqdm, on the standard error stream."""

    def open(self, title: str, unit: str, total: float | None, done: int) -> ProgressBar:
        """Show a bar; one inside of another is gone when it is closed."""
        # A new bar flushes standard output as well, and would fail with it.
        is_stdout_fine = STDOUT.use(lambda stream: stream.flush())
        bar: ProgressBar = tqdm(
            total=_finite(total),
            initial=done,
            desc=title,
            file=None if is_stdout_fine else _OnlyStderr(),
            unit=unit,
            dynamic_ncols=True,
            leave=None,
            # A log file keeps every state of a bar that is drawn into it.
            mininterval=0.1 if _has_terminal() else 10,
        )
        return bar

    def close(self) -> None:
        """Do nothing: every bar is closed by whoever opened it."""


class _OnlyStderr:
    """Standard error, which tqdm does not recognize as such."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class RichDisplay:
    """Bars of rich, which draws all of them together."""

    def __init__(self) -> None:
        """Take over the terminal's last lines."""
        from rich.console import Console  # noqa: PLC0415 - optional
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        class BrokenConsole(Console):
            def on_broken_pipe(self) -> None:
                raise  # noqa: PLE0704 - called while the error is handled; rich would end the process.

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(), console=BrokenConsole(stderr=True))
        self._progress.start()

    def open(self, title: str, unit: str, total: float | None, done: int) -> ProgressBar:
        """Show a bar; one inside of another is gone when it is closed."""
        task = self._progress.add_task(title, total=_finite(total), completed=done, unit=unit)
        return _RichBar(self._progress, task)

    def close(self) -> None:
        """Give the terminal back."""
        self._progress.stop()


class _RichBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def update(self, n: int = 1) -> None:
        self._progress.advance(self._task, n)

    def close(self) -> None:
        if len(self._progress.tasks) > 1:  # One inside of another: a run has thousands of validations.
            self._progress.remove_task(self._task)
        else:
            self._progress.stop_task(self._task)


def _finite(total: float | None) -> float | None:
    return None if total is None or math.isinf(total) else total


class StderrDisplay:
    """Bars that are given up when standard error cannot be written: training continues without them."""

    def __init__(self, make: Callable[[], ProgressDisplay]) -> None:
        """Prepare to show the bars of a display.

        Args:
            make: makes the display.
        """
        self.inner: ProgressDisplay | None = None

        def open_inner(_: object) -> None:
            self.inner = make()

        STDERR.use(open_inner)

    def open(self, title: str, unit: str, total: float | None, done: int) -> ProgressBar:
        """Show a bar."""
        bar: ProgressBar | None = None
        inner = self.inner

        def open_bar(_: object) -> None:
            nonlocal bar
            bar = None if inner is None else inner.open(title, unit, total, done)

        STDERR.use(open_bar)
        return _StderrBar(bar)

    def close(self) -> None:
        """Leave all bars as they are."""
        if self.inner is not None:
            _close(self.inner)


class _StderrBar:
    def __init__(self, bar: ProgressBar | None) -> None:
        self._bar = bar

    def update(self, n: int = 1) -> None:
        bar = self._bar
        if bar is not None and not STDERR.use(lambda _: bar.update(n)):
            self.close()

    def close(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            _close(bar)


def _close(part: ProgressBar | ProgressDisplay) -> None:
    if not STDERR.use(lambda _: part.close()):
        with contextlib.suppress(Exception):  # It releases its threads and locks, and fails to write that.
            part.close()


def open_display() -> StderrDisplay:
    """Return rich's bars where it is installed and a terminal can show them, and else tqdm's."""
    has_rich = importlib.util.find_spec("rich") is not None
    return StderrDisplay(RichDisplay if has_rich and _has_terminal() else TqdmDisplay)


def _has_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # It is missing, or closed.
        return False
