"""The runs of tests.resume.runs on several ranks, and what kills one rank, the process that called `fit`, or all.

A campaign's child calls `fit`, and its ranks are forked from the same server as it was itself. Every rank counts what
happens in it, and shoots at a count. Under `torchrun`, this module is what each rank runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import torch
from torch import nn

from helios.checkpoint.archive import save_archive
from helios.checkpoint.state.parts import unwrap_module
from helios.core.distributed import get_dist_info, is_using_torchrun
from helios.errors import RankFailedError
from helios.plugins import Plugin
from helios.ranks import limits
from helios.trainer.launch import rank as _rank
from helios.trainer.launch import spawn as _spawn
from tests.distributed.mutations import apply_mutation
from tests.processes import fork_ranks
from tests.resume.runs import (
    KILLER,
    Data,
    RunSpec,
    Subject,
    count_writing,
    make_trainer,
    outcome,
    prepare_process,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helios import TrainingState

LOST: Final = 100  # What exit codes begin with that say which rank was lost.
MARKS: Final = "pids"  # The folder of the processes of all lives.


@dataclasses.dataclass(frozen=True)
class RankSpec(RunSpec):
    """What a run on several ranks is like."""

    ranks: int = 2
    wide: bool = False  # Whether the network is large enough for gradients to be exchanged in several pieces.


@dataclasses.dataclass(frozen=True)
class Shot:
    """A signal that a rank sends at a count.

    Attributes:
        rank: which rank sends it.
        count: when.
        whom: to "rank", itself; to "caller", the process that called `fit`; or to "all" of the run.
        number: what it sends.
    """

    rank: int
    count: int
    whom: str = "rank"
    number: int = signal.SIGKILL


class Armed(Plugin):
    """Gets a rank ready before anything else in it: to count, to shoot, and to do wrong what a mutation says.

    Args:
        folder: that of the run.
        shot: when to shoot, if at all.
        mutation: what to break, if anything.
    """

    def __init__(self, folder: Path, shot: Shot | None, mutation: str | None) -> None:
        super().__init__("armed")
        self._folder, self._shot, self._mutation = folder, shot, mutation

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in a rank that was started for this run."""
        vars(self).update(state)
        _count_starting()
        self.arm(int(multiprocessing.current_process().name.rpartition("-")[2]), _caller())

    def arm(self, rank: int, caller: int) -> None:
        prepare_process()
        marks = self._folder / MARKS
        marks.mkdir(parents=True, exist_ok=True)
        (marks / f"{caller}-{rank}").write_text(str(os.getpid()), encoding="utf-8")
        shot = self._shot
        if shot is not None and shot.rank == rank:
            KILLER.at, KILLER.number = shot.count, shot.number
            KILLER.victims = lambda: _victims(marks, shot.whom, caller)
        if shot is not None and shot.number != signal.SIGKILL:
            hurry()
        count_writing()
        if self._mutation is not None:
            apply_mutation(self._mutation)

    def setup(self) -> None:
        if is_using_torchrun():  # There, nothing is sent, and so nothing arrives.
            self.arm(self.rank, os.getppid())


class RankedSubject(Subject):
    """The model of all campaigns, that sends home from every rank what has become of it there."""

    def __init__(self, spec: RankSpec) -> None:
        super().__init__(spec)
        self._is_wide = spec.wide

    def _make_network(self) -> nn.Module:
        if not self._is_wide:
            return super()._make_network()
        sizes = [4, 211, 509, 307, 149, 1]
        layers = ([nn.Linear(*pair), nn.BatchNorm1d(pair[1]), nn.Tanh()] for pair in itertools.pairwise(sizes))
        return nn.Sequential(*itertools.chain(*layers))

    def train_step(self, batch: Any, state: TrainingState) -> None:
        time.sleep(self._spec.sleep * self.rank)  # Not all are equally fast.
        super().train_step(batch, state)

    def valid_step(self, batch: Any, step: int) -> None:
        buffers = {name: buffer.tolist() for name, buffer in unwrap_module(self._net).named_buffers()}
        self.trace.append(("buffers", repr(buffers)))
        super().valid_step(batch, step)

    def on_training_end(self) -> None:
        super().on_training_end()
        self.trainer.queue.put((self.rank, KILLER.count, outcome(self)))
        KILLER.tick()


def _caller() -> int:
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    return parent.pid


def _victims(marks: Path, whom: str, caller: int) -> list[int]:
    """Return whom to kill, this process last: nobody else would."""
    if whom == "rank":
        return [os.getpid()]
    if whom == "caller":
        return [caller]
    ranks = [int(text) for path in marks.glob(f"{caller}-*") if (text := path.read_text(encoding="utf-8"))]
    return [caller, *(rank for rank in ranks if rank != os.getpid()), os.getpid()]


def hurry() -> None:
    """Have signals noticed at once, or the small runs here would be over before."""
    mock.patch.multiple(limits, CHECK_PERIOD=0.01, SETTLE_PERIOD=0.001).start()
    mock.patch.object(_spawn, "_POLL", 0.01).start()


def _count_starting() -> None:
    """Tick also while the ranks meet, while they part, and before the last word of each."""
    connect_store, process_group, pack = _rank.connect_store, _rank.process_group, _rank.pack  # type: ignore[attr-defined]  # not exported

    def ticking_reach(port: int) -> Any:
        KILLER.tick()
        store = connect_store(port)
        KILLER.tick()
        return store

    @contextlib.contextmanager
    def ticking_process_group(*arguments: Any) -> Iterator[Any]:
        with process_group(*arguments) as group:
            KILLER.tick()
            yield group
        KILLER.tick()

    def ticking_pack(item: Any) -> bytes:
        KILLER.tick()
        packed: bytes = pack(item)
        return packed

    mock.patch.object(_rank, "connect_store", ticking_reach).start()
    mock.patch.object(_rank, "process_group", ticking_process_group).start()
    mock.patch.object(_rank, "pack", ticking_pack).start()


def _fit(spec: RankSpec, folder: Path, shot: Shot | None, mutation: str | None) -> None:
    """Train, and write the results that were returned to a file."""
    trainer, model = make_trainer(spec, folder), RankedSubject(spec)
    Armed(folder, shot, mutation).configure_trainer(trainer)
    finished = trainer.fit(model, Data(spec))
    if get_dist_info().rank != 0:
        return
    home = sorted((trainer.queue.get() for _ in range(len(trainer.queue))), key=lambda entry: entry[0])
    result = {
        "finished": finished,
        "metrics": dict(model.metrics),
        "ranks": {rank: told for rank, _, told in home},
        "ticks": [ticks for _, ticks, _ in home],
    }
    KILLER.at = None
    save_archive(folder / "result", result)


def child(spec: RankSpec, folder: str, shot: Shot | None, mutation: str | None) -> None:
    prepare_process()
    logging.getLogger("helios").setLevel(logging.CRITICAL)  # That ranks are killed is no news.
    fork_ranks()
    if shot is not None and shot.number != signal.SIGKILL:
        hurry()
    try:
        _fit(spec, Path(folder), shot, mutation)
    except RankFailedError as error:
        if "ended by SIGKILL" not in str(error):
            raise
        sys.exit(LOST + error.rank)


def main(arguments: list[str]) -> None:
    """Be a rank that `torchrun` has started; one that has to shoot does so in its first life."""
    spec, folder = RankSpec(**json.loads(arguments[0])), Path(arguments[1])
    is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    shot = Shot(**json.loads(arguments[2])) if is_first and len(arguments) > 2 else None
    torch.set_num_threads(1)
    _fit(spec, folder, shot, None)


if __name__ == "__main__":
    main(sys.argv[1:])
