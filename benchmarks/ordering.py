"""The cost of shuffling any number of samples, and its quality; run with `python -m benchmarks.ordering`."""

from __future__ import annotations

import collections
import itertools
import time
import tracemalloc
from typing import TYPE_CHECKING, Final

import torch
from torch.utils.data import RandomSampler

from benchmarks import _order_quality as quality
from benchmarks._table import Table
from helios.data.samplers import ResumableRandomSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_DRAWN: Final = 1_000_000


def run() -> list[Table]:
    """Measure the cost and the quality of shuffling."""
    return [run_cost(), run_quality()]


def run_cost() -> Table:
    """Measure time to the first index, seek, peak memory and time per index, also of torch's `RandomSampler`."""
    rows = [_measure_helios(n) for n in (10**6, 10**8, 10**9)]
    rows.append(_measure("torch RandomSampler", 10**6, lambda: RandomSampler(range(10**6)), None))
    return Table(
        "Shuffling",
        ("sampler", "samples", "first index", "first at the middle", "peak memory", "per index"),
        tuple(rows),
        (f"Per index: over {_DRAWN:,} indices. Budget for all sizes: first index under 10 ms, under 2 MB.",),
    )


def run_quality() -> Table:
    """Compare the orders of Helios with those of `torch.randperm` by the statistics of `_order_quality`."""
    rows = []
    for n, draws in ((7, 4000), (10, 4000), (100, 2000), (1000, 500), (1797, 500), (10_000, 200)):
        for name, draw in (("helios", quality.helios_draw(n)), ("torch", quality.torch_draw(n))):
            serial = (quality.serial_correlation_z(draw, n, draws, lag) for lag in (1, 2))
            rows.append(
                (
                    f"{name}, n = {n}",
                    f"{quality.position_bias_p(draw, n, draws):.3f}",
                    f"{quality.gaps_p(draw, n, draws):.3f}",
                    *(f"{z:+.2f}" for z in serial),
                    f"{quality.batch_mix_z(draw, n, draws):+.2f}" if n >= 1000 else "",
                )
            )
    orders = ", ".join(
        f"{quality.orders_p(quality.helios_draw(n), n, max(4000, 40 * cells)):.3f} for n = {n}"
        for n, cells in ((2, 2), (3, 6), (4, 24), (5, 120), (6, 720))
    )
    return Table(
        "Quality of the shuffle",
        ("order", "position bias p", "gaps p", "serial z, lag 1", "lag 2", "batch mix z"),
        tuple(rows),
        (
            f"All n! orders equally likely: p = {orders}.",
            "A fair shuffle nearly always has p above 0.001 and z within 4.",
        ),
    )


def _measure_helios(n: int) -> tuple[str, ...]:
    def make(position: int = 0) -> ResumableRandomSampler:
        sampler = ResumableRandomSampler(range(n), seed=0)
        sampler.seek(0, position)
        return sampler

    return _measure("helios", n, make, lambda: make(n // 2))


def _measure(
    name: str, n: int, make: Callable[[], Iterable[int]], seek: Callable[[], Iterable[int]] | None
) -> tuple[str, ...]:
    return (
        name,
        f"{n:,}",
        f"{_time_to_first(make):.2f} ms",
        "-" if seek is None else f"{_time_to_first(seek):.2f} ms",
        f"{_peak_memory(make):.2f} MB",
        f"{_time_per_index(make):.0f} ns",
    )


def _time_to_first(make: Callable[[], Iterable[int]]) -> float:
    """Return milliseconds from making the sampler to its first index, the median of five."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        next(iter(make()))
        times.append(time.perf_counter() - begin)
    return sorted(times)[2] * 1e3


def _time_per_index(make: Callable[[], Iterable[int]]) -> float:
    """Return nanoseconds per index, start-up included, the minimum of three."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        collections.deque(itertools.islice(make(), _DRAWN), maxlen=0)
        times.append(time.perf_counter() - begin)
    return min(times) / _DRAWN * 1e9


def _peak_memory(make: Callable[[], Iterable[int]]) -> float:
    """Return the peak memory of Python and NumPy in megabytes; torch's tensors are not included."""
    tracemalloc.start()
    try:
        collections.deque(itertools.islice(make(), 100_000), maxlen=0)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(*(table.render() for table in run()), sep="\n\n")
