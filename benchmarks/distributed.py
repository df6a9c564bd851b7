"""What training in several processes costs beside DDP by hand; run with `python -m benchmarks distributed`."""

from __future__ import annotations

import collections
import functools
import itertools
import multiprocessing
import statistics
import time
from typing import TYPE_CHECKING, Final

from benchmarks._collectives import CASES, Tally, count_cases
from benchmarks._lives import PACE, kill_process, raise_error, started_by, time_failure, time_leaving, time_start
from benchmarks._pair import RANKS, run_pair, silence
from benchmarks._side_by_side import BATCH, Plan, Round, time_loops
from benchmarks._table import Table
from benchmarks._timing import interleave, median_ratio, verdict
from helios.core.distributed import DistributedInfo
from helios.ranks.host_group import HostGroup
from helios.ranks.monitor import RankMonitor
from helios.ranks.stores import host_store

if TYPE_CHECKING:
    from collections.abc import Callable

_PLANS: Final = (
    Plan("small, 85 thousand weights", width=256, steps=60, rounds=60),
    Plan("medium, 1.1 million weights", width=1024, steps=20, rounds=30),
)
_FAILURES: Final = 5
_STARTS: Final = 3
_SIGNALS: Final = range(20, 80, 8)  # The steps at which one comes: ranks look out for it five times a second.
_QUESTIONS: Final = 500_000


def run_steps() -> Table:
    """Measure two ranks that train a network, against DDP by hand in the same two processes."""
    ranks = run_pair(functools.partial(time_loops, _PLANS))
    rows = []
    for plan in _PLANS:
        rounds = [rank[plan.name] for rank in ranks]
        rows.append(_row_of(plan.name, _join(rounds, lambda taken: taken.step)))
        rows.append(_row_of("  in processor time", _join(rounds, lambda taken: taken.processor)))
    return Table(
        f"{RANKS} ranks over gloo, batches of {BATCH} each",
        ("network", "DDP, torch's loader", "DDP, our loader", "helios", "loop alone", "in all", "target"),
        tuple(rows),
        (
            f"Per step and rank: {' and '.join(f'{plan.rounds} rounds of {plan.steps} steps' for plan in _PLANS)}.",
            "Medians of the rounds' median steps, by the wall clock; medians of the rounds' means in processor time.",
            "Loop alone: helios over DDP with our loader, which trains to the same bits; in all: over torch's loader.",
            "Both are medians of the ratios of rounds side by side, with the standard error of that median.",
        ),
    )


def _join(ranks: list[dict[str, list[Round]]], read: Callable[[Round], float]) -> dict[str, list[float]]:
    """Return the mean over the ranks of what each round has taken, by loop."""
    return {
        name: [statistics.fmean(map(read, turn)) for turn in zip(*(rank[name] for rank in ranks), strict=True)]
        for name in ranks[0]
    }


def _row_of(what: str, seconds: dict[str, list[float]]) -> tuple[str, ...]:
    return (
        what,
        *(f"{statistics.median(values) * 1e6:,.0f} µs" for values in seconds.values()),
        _compare(seconds["helios"], seconds["ours"]),
        _compare(seconds["helios"], seconds["theirs"]),
        verdict(median_ratio(seconds["helios"], seconds["theirs"]), 1.03, "at most +3 %"),
    )


def _compare(ours: list[float], theirs: list[float]) -> str:
    low, middle, high = statistics.quantiles((a / b for a, b in zip(ours, theirs, strict=True)), n=4)
    # Of a normal distribution, the middle half is 1.35 deviations wide, and a median strays 1.25 times as far as a mean
    error = 1.25 * (high - low) / 1.35 / len(ours) ** 0.5
    return f"{(middle - 1) * 100:+.1f} ± {error * 100:.1f} %"


def run_messages() -> Table:
    """Count what ranks say to each other, beyond the gradients."""
    first, *others = run_pair(count_cases)
    assert all(other == first for other in others), "ranks do not say the same"
    rows = [
        (
            case.name,
            str(first[case.name].messages),
            ", ".join(f"{count} {name}" for name, count in first[case.name].calls.items()) or "none",
            str(first[case.name].store),
            verdict(_weigh(first[case.name]), 0, "none") if case.is_silent else "",
        )
        for case in CASES
    ]
    return Table(
        "Messages around the ranks beyond DDP's own",
        ("where due", "messages", "calls of torch.distributed", "requests to a store", "target"),
        tuple(rows),
        ("By the main thread of each rank; an object takes two messages, its size and itself.",),
    )


def _weigh(tally: Tally) -> int:
    return tally.messages + sum(tally.calls.values()) + tally.store


def run_lives() -> list[Table]:
    """Measure how long ranks take to start, to fail and to leave."""
    # As docs/distributed.md advises; torch loads its compiler when the first network is wrapped.
    multiprocessing.set_forkserver_preload(["benchmarks._lives", "torch._dynamo"])
    with silence():
        starts = _run_starts()
        with started_by("forkserver"):
            return [starts, _run_failures(), _run_signals()]


def _run_starts() -> Table:
    first = time_start("forkserver")
    ways = {"in this process": None, f"{RANKS} ranks, spawned": "spawn", f"{RANKS} ranks, fork server": "forkserver"}
    seconds = interleave({name: functools.partial(time_start, way) for name, way in ways.items()}, _STARTS, warm_up=0)
    return Table(
        "A call of fit for one step",
        ("where", "in all", "slowest"),
        (
            *(
                (name, *(f"{choose(values):.2f} s" for choose in (statistics.median, max)))
                for name, values in seconds.items()
            ),
            ("  its first call, which starts the server", f"{first:.2f} s", ""),
        ),
        (f"Medians of {_STARTS} calls. The fork server has imported helios and torch._dynamo, which DDP needs.",),
    )


def _run_failures() -> Table:
    ways = {"raises an error": raise_error, "is killed with SIGKILL": kill_process}
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    for _, (name, fail) in itertools.product(range(_FAILURES), ways.items()):
        seconds[name].append(time_failure(fail))
    return Table(
        "From a rank's failure to the error that fit raises",
        ("rank 1", "takes", "slowest", "target"),
        tuple(
            (
                name,
                f"{statistics.median(values):.2f} s",
                f"{max(values):.2f} s",
                verdict(max(values), 10, "at most 10 s"),
            )
            for name, values in seconds.items()
        ),
        (f"In a step, while rank 0 waits for its gradients. Medians of {_FAILURES} runs.",),
    )


def _run_signals() -> Table:
    nanoseconds = _time_question()
    rows = [
        ("asking whether to leave, alone", f"{nanoseconds['alone']:.0f} ns a step", ""),
        (f"asking whether to leave, {RANKS} ranks", f"{nanoseconds['ranks']:.0f} ns a step", ""),
    ]
    for name, to_rank in (("the process that called fit", False), ("rank 1", True)):
        batches, seconds = zip(*(time_leaving(step, to_rank=to_rank) for step in _SIGNALS), strict=True)
        rows.append(
            (
                f"SIGTERM to {name}, to the last step",
                f"{statistics.median(seconds) * 1e3:.0f} ms, {statistics.median(batches):.0f} batches",
                f"{max(seconds) * 1e3:.0f} ms, {max(batches)} batches",
            )
        )
    return Table(
        "What it costs to leave after the same batch",
        ("what", "measured", "slowest"),
        tuple(rows),
        (f"Steps take {PACE * 1e3:.0f} ms and the exchange of gradients; medians of {len(_SIGNALS)} runs.",),
    )


def _time_question() -> dict[str, float]:
    """Return what a step pays for the question whether to leave, in nanoseconds of processor time."""
    store, _ = host_store()
    with RankMonitor(store.clone(), DistributedInfo(0, RANKS, 0, RANKS), watches=False) as monitor:

        def ask(host_group: HostGroup) -> Callable[[], None]:
            question = host_group.make_stop_check(lambda: False, lambda: 0)
            return lambda: collections.deque(itertools.starmap(question, itertools.repeat((), _QUESTIONS)), 0).clear()

        seconds = interleave(
            {"alone": ask(HostGroup()), "ranks": ask(HostGroup(monitor=monitor))}, rounds=7, clock=time.process_time
        )
    return {name: statistics.median(values) / _QUESTIONS * 1e9 for name, values in seconds.items()}


def run() -> list[Table]:
    """Measure steps of two ranks, what they say to each other, and how they start, fail and leave."""
    return [run_steps(), run_messages(), *run_lives()]
