from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

import pytest

from helios.errors import NotRunningError
from helios.trainer.launch.rank import RankLauncher, _channels, _ParentChannel

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def put(results: Connection) -> None:
    """Put something into the queue of a rank, and tell what came of it."""
    queue = RankLauncher().queue
    assert queue is not None
    try:
        queue.put("x")
    except NotRunningError as error:
        results.send(str(error))
    else:
        results.send("went home")


def be_rank(line: Connection, results: Connection) -> None:
    _channels.append(_ParentChannel(line, rank=0))
    worker = multiprocessing.get_context("fork").Process(target=put, args=(results,))
    worker.start()
    worker.join()
    put(results)


def test_a_forked_worker_of_a_rank_cannot_use_its_channel() -> None:
    """Two processes would mix their messages, so workers of a rank are refused, and the rank is not."""
    context = multiprocessing.get_context("forkserver")
    (ours, theirs), (told, results) = context.Pipe(), context.Pipe()
    rank = context.Process(target=be_rank, args=(theirs, results))
    rank.start()
    for end in (theirs, results):
        end.close()
    assert told.recv().startswith("a process that a rank has forked, such as a data loader's worker, cannot reach ")
    assert told.recv() == "went home"
    assert ours.recv_bytes()
    with pytest.raises(EOFError):
        ours.recv_bytes()
    rank.join()
