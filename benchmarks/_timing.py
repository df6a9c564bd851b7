"""Timing things beside each other, on machines that others use, too."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def interleave(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of every round of several runs that take turns, so that all meet the same disturbances.

    Args:
        runs: what to time, by name.
        rounds: how often each is timed.
        warm_up: rounds before those, which do not count.
        clock: the seconds that count; `time.process_time` leaves out those in which others had the processor.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-warm_up, rounds):
        for name, run in runs.items():
            begin = clock()
            run()
            if turn >= 0:
                seconds[name].append(clock() - begin)
    return seconds


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios of rounds that ran side by side."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def verdict(measured: float, target: float, text: str) -> str:
    """Return a target beside whether it is met."""
    return f"{text}: {'met' if measured <= target else 'MISSED'}"
