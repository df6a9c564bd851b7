from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from helios.core.control import Control
from helios.core.distributed import DistributedInfo, all_reduce_tensors, host_store, membership, shutdown_dist
from helios.core.lookout import Lookout
from tests.core.controls import join_control
from tests.core.ranks import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

LARGE = 2**62


def test_a_process_alone_agrees_with_itself() -> None:
    """SPEC E3: alone, every answer is the question's own value, the same object, and nothing is announced."""
    control, value = Control(), [object()]
    assert (control.rank, control.world_size, control.info) == (0, 1, DistributedInfo())
    assert control.vote(3, -1) == (3, -1)
    assert control.vote() == ()
    assert control.share(value) is value
    (gathered,) = control.gather(value)
    assert gathered is value
    control.announce(ValueError("heard by nobody"))


def test_alone_the_question_whether_to_leave_is_the_signal_s_own() -> None:
    """SPEC E1: alone there is nothing to agree on: the question costs what it costs the watch of signals."""

    def was_asked() -> bool:
        return True

    assert Control().agree_on_leaving(was_asked, lambda: 0) is was_asked


def test_an_error_is_announced_to_whom_the_run_says() -> None:
    """SPEC A11: a failure goes where the run has told, as it is."""
    heard: list[BaseException] = []
    error = ValueError("loud")
    Control(announce=heard.append).announce(error)
    assert heard == [error]


def agree(rank: int) -> dict[str, Any]:
    """Be a rank, and return what comes of every agreement."""
    control = join_control()
    # What the model's own step exchanges, from another thread here, must never meet the agreement.
    steps = threading.Thread(target=lambda: [all_reduce_tensors(torch.ones(3)) for _ in range(50)])
    steps.start()
    told = {
        "place": (control.rank, control.world_size),
        "vote": control.vote(rank, -rank, 7, LARGE - rank, rank - LARGE),
        "flags": control.vote(rank == 1, rank == 2),
        "share": control.share({"of": rank} if rank == 0 else steps),  # Which cannot be pickled, and need not be.
        "none": control.share(None if rank == 0 else steps),
        "gather": control.gather({"of": rank}),
        "votes": [control.vote(step * (rank == step % 2)) for step in range(50)],
    }
    steps.join()
    return told


def test_two_ranks_agree(tmp_path: Path) -> None:
    """SPEC E3: both ranks get the largest votes, to the last bit, rank 0's value and all values in order."""
    told = run_ranks(tmp_path, 2, agree)
    assert [entry.pop("place") for entry in told] == [(0, 2), (1, 2)]
    assert told[0] == told[1]
    assert told[0] == {
        "vote": (1, 0, 7, LARGE, 1 - LARGE),
        "flags": (1, 0),
        "share": {"of": 0},
        "none": None,
        "gather": [{"of": 0}, {"of": 1}],
        "votes": [(step,) for step in range(50)],
    }


def test_where_to_leave_is_the_lookout_s_to_say() -> None:
    """SPEC E1: of several ranks, one that is asked does not leave before it is agreed where."""
    store, _ = host_store()
    info = DistributedInfo(0, 2, 0, 2)
    control = Control(info, lookout=Lookout(store, info))
    assert control.agree_on_leaving(lambda: True, lambda: 0)() is False


def let_down(rank: int, meeting: Path) -> float:
    """On rank 0, return how long it waits in a vote when rank 1 has failed, and keeps all that it has."""
    shutdown_dist()
    store: Any = dist.FileStore(str(meeting), 2)  # type: ignore[attr-defined]  # torch exports it, unannotated
    info = DistributedInfo(rank, 2, rank, 2)
    began, kept = time.monotonic(), list[object]()
    with contextlib.suppress(RuntimeError), membership(store, info, torch.device("cpu")) as group:
        control = Control(info, group)
        kept += [control, DistributedDataParallel(torch.nn.Linear(1, 1))]
        control.vote(0)
        if rank == 1:
            raise RuntimeError("not today")
        began = time.monotonic()
        control.vote(0)
    waited = time.monotonic() - began
    time.sleep(5 * rank)
    return waited


def test_a_rank_that_fails_lets_go_of_the_others(tmp_path: Path) -> None:
    """SPEC A11, E3: whatever still refers to the groups of a failed rank, the others' collectives raise at once."""
    assert run_ranks(tmp_path, 2, let_down, tmp_path / "store")[0] < 3
