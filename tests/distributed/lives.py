"""The lives of runs on several ranks: processes that call `fit`, are cut short, and are followed by the next."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any, Final

from helios.checkpoint.archive import load_archive
from tests.distributed.runs import LOST, MARKS, RankSpec, Shot, child
from tests.processes import survivors
from tests.resume.runs import load_result

if TYPE_CHECKING:
    import random
    from pathlib import Path

_PATIENCE: Final = 300.0  # Seconds until a run is taken for hung: on a busy machine, one may take minutes.
_context = multiprocessing.get_context("forkserver")


def start(spec: RankSpec, folder: Path, *, shot: Shot | None = None, mutation: str | None = None) -> Any:
    """Start a process that calls `fit`."""
    process = _context.Process(target=child, args=(spec, str(folder), shot, mutation), daemon=False)
    process.start()
    return process


def life(
    spec: RankSpec,
    folder: Path,
    *,
    shot: Shot | None = None,
    mutation: str | None = None,
    patience: float = _PATIENCE,
) -> bool:
    """Call `fit` in a process of its own, and wait until it returns or somebody is killed.

    Returns:
        Whether somebody was. If it was a rank, nothing is left of the others, and the error of `fit` has named it; if
        it was the caller, its ranks may still be dying.

    Raises:
        AssertionError: if the run hangs, or fails otherwise.
    """
    process = start(spec, folder, shot=shot, mutation=mutation)
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the run hangs: {spec}, {shot}")
    if shot is None or shot.number != signal.SIGKILL:
        expected = 0
    else:
        expected = LOST + shot.rank if shot.whom == "rank" else -signal.SIGKILL
    if process.exitcode not in (0, expected):
        raise AssertionError(f"the run failed with {process.exitcode}: {spec}, {shot}")
    if process.exitcode >= 0:
        assert left_of(folder, process.pid) == []
    return bool(process.exitcode)


def left_of(folder: Path, caller: int | str = "*", patience: float = 5.0) -> list[str]:
    """Return which ranks of a run, and processes that they have started, are still there after a while.

    Args:
        folder: that of the run.
        caller: the process whose ranks are meant; all of the run's, of all its lives, unless told otherwise.
        patience: how long they may take to be gone, in seconds.
    """
    marks = [path.read_text(encoding="utf-8") for path in (folder / MARKS).glob(f"{caller}-*")]
    return survivors([int(mark) for mark in marks if mark], patience)


def undisturbed(
    spec: RankSpec, folder: Path, mutation: str | None = None, patience: float = _PATIENCE
) -> dict[str, Any]:
    """Return the result of the run that nobody kills, after a look at what all ranks have done together."""
    assert not life(spec, folder, mutation=mutation, patience=patience)
    result = load_result(folder)
    assert list(result["ranks"]) == list(range(spec.ranks))
    assert_validated_together([result["ranks"][rank]["trace"] for rank in range(spec.ranks)])
    return result


def assert_validated_together(traces: list[list[Any]]) -> None:
    """Check that in each cycle all ranks have validated the same network, on every sample once."""
    cycles: dict[int, tuple[list[int], set[str]]] = {}
    for trace in traces:
        cycle = 0
        for entry in trace:
            samples, buffers = cycles.setdefault(cycle, ([], set()))
            if entry[0] == "validation start":
                cycle = entry[1]
            elif entry[0] == "validation":
                samples.extend(entry[2])
            elif entry[0] == "buffers":
                buffers.add(entry[1])
    for cycle, (samples, buffers) in cycles.items():
        assert cycle == 0 or sorted(samples) == list(range(5)), f"samples {samples} were validated in cycle {cycle}"
        assert len(buffers) <= 1, f"ranks had buffers of their own in cycle {cycle}"


def killed_at(
    spec: RankSpec, folder: Path, shots: list[Shot], mutation: str | None = None, patience: float = _PATIENCE
) -> dict[str, Any]:
    """Return the result of a run in which these shots are fired, one in a life, and which is then left alone.

    Each life begins as soon as the caller of the one before is gone.
    """
    for shot in shots:
        if not life(spec, folder, shot=shot, mutation=mutation, patience=patience):
            break
    else:
        assert not life(spec, folder, mutation=mutation, patience=patience)
    return load_result(folder)


def killed_at_random(
    spec: RankSpec, folder: Path, *, kills: int, longest: float, chance: random.Random
) -> dict[str, Any]:
    """Return the result of a run of which anybody is killed from outside, at random instants, and then nobody."""
    for _ in range(kills):
        process = start(spec, folder)
        process.join(chance.uniform(0.0, longest))
        ranks = [int(path.read_text(encoding="utf-8") or 0) for path in (folder / MARKS).glob(f"{process.pid}-*")]
        victims = chance.choice([[process.pid], ranks[:1], ranks[1:], [process.pid, *ranks]])
        for victim in filter(None, victims):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        if process.pid not in victims and not any(victims):
            process.kill()
        process.join(_PATIENCE)
        assert process.exitcode is not None, f"the run hangs: {spec}"
        if process.exitcode == 0:
            break
    else:
        assert not life(spec, folder)
    return load_result(folder)


def asked_to_leave_at(
    spec: RankSpec, folder: Path, shot: Shot, mutation: str | None = None, patience: float = _PATIENCE
) -> tuple[bool, dict[str, Any]]:
    """Run until a signal that asks to leave, and then once more.

    Returns:
        Whether the first life left before training was complete, and the result in the end.
    """
    assert not life(spec, folder, shot=shot, mutation=mutation, patience=patience)
    left = not load_result(folder)["finished"]
    if left:
        assert_side_by_side(folder, spec)
        assert not life(spec, folder, mutation=mutation, patience=patience)
    return left, load_result(folder)


def assert_side_by_side(folder: Path, spec: RankSpec) -> None:
    """Check that all ranks had come equally far when the newest checkpoint was written."""
    (folder_of_model,) = (folder / spec.root).iterdir()
    newest = max(folder_of_model.glob("*.pth"), key=lambda path: path.stat().st_mtime_ns)
    for rank_delta in load_archive(newest)["ranks"]:
        apart = {path for path, _, _ in rank_delta if path[:2] == ("training", "state")}
        assert apart <= {("training", "state", "average_iter_time")}
