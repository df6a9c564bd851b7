"""Progress bars: rich's where a terminal shows them, and else tqdm's."""

from __future__ import annotations

import importlib.util
import math
import sys
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

if TYPE_CHECKING:
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
            title: what is going on.
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
        bar: ProgressBar = tqdm(
            total=_finite(total),
            initial=done,
            desc=title,
            unit=unit,
            dynamic_ncols=True,
            leave=None,
            # A log file keeps every state of a bar that is drawn into it.
            mininterval=0.1 if sys.stderr.isatty() else 10,
        )
        return bar

    def close(self) -> None:
        """Do nothing: every bar is closed by whoever opened it."""


class RichDisplay:
    """Bars of rich, which draws all of them together."""

    def __init__(self) -> None:
        """Take over the terminal's last lines."""
        from rich.console import Console  # noqa: PLC0415 - optional
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
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


def open_display() -> ProgressDisplay:
    """Return rich's bars where it is installed and a terminal can show them, and else tqdm's."""
    has_rich = importlib.util.find_spec("rich") is not None
    return RichDisplay() if has_rich and sys.stderr.isatty() else TqdmDisplay()
