from __future__ import annotations

import datetime
import multiprocessing
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist

from helios.core import distributed as hd
from helios.core.distributed import DistributedInfo, init_dist, shutdown_dist
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
}


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    yield
    shutdown_dist()


def test_without_a_group_there_is_one_process() -> None:
    """Without a process group, every function returns the values of rank 0 of 1."""
    assert not hd.is_dist_active()
    assert not hd.is_using_torchrun()
    assert hd.get_dist_info() == DistributedInfo(0, 1, 0, 1)
    assert (hd.get_local_rank(), hd.get_global_rank(), hd.get_local_world_size(), hd.get_world_size()) == (0, 0, 1, 1)
    hd.safe_barrier()
    shutdown_dist()


def test_collectives_work_in_one_process() -> None:
    """Without other ranks, a reduction leaves the tensor as it is and returns it; gathers are copies."""
    tensor = torch.arange(6.0).reshape(2, 3).t().requires_grad_()
    assert hd.all_reduce_tensors(tensor) is tensor
    assert torch.equal(tensor, torch.arange(6.0).reshape(2, 3).t())
    assert torch.equal(hd.all_reduce_tensors([torch.ones(2), torch.zeros(2)]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    gathered = hd.gather_into_tensor(tensor, (1, 3, 2))
    assert torch.equal(gathered[0], tensor)
    assert not gathered.requires_grad
    with pytest.raises(ConfigurationError, match=r"size \(7,\) holds 7 elements, not those of 1 ranks of 6"):
        hd.gather_into_tensor(tensor, (7,))


def test_arguments_of_a_reduction_are_checked() -> None:
    """Another `op` and unknown keyword arguments are refused with the remedy, also without a process group."""
    with pytest.raises(ArgumentTypeError, match="op is 'sum', a str: pass a torch.distributed.ReduceOp"):
        hd.all_reduce_tensors(torch.ones(1), op="sum")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ArgumentTypeError, match=r"no arguments \['groop'\] to be passed on: there are group, async_op"):
        hd.all_reduce_tensors(torch.ones(1), groop=None)
    with pytest.raises(ArgumentTypeError, match="barrier has no arguments"):
        hd.safe_barrier(groop=None)
    with pytest.raises(ArgumentTypeError, match="all_gather has no arguments"):
        hd.gather_into_tensor(torch.ones(1), (1,), groop=None)


def test_torchrun_is_seen_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torchrun` is detected when all of its variables exist, and the ranks are read from them."""
    for name, value in TORCHRUN.items():
        assert not hd.is_using_torchrun()
        monkeypatch.setenv(name, value)
    assert hd.is_using_torchrun()
    info = hd.get_dist_info()
    assert info == DistributedInfo(local_rank=1, local_world_size=4, rank=5, world_size=8)
    assert info.global_rank == 5
    assert not hd.is_using_torchrun({})


def test_a_group_needs_its_ranks(tmp_path: Path) -> None:
    """`init_dist` without torchrun and without ranks names the missing variables; a second call is refused."""
    with pytest.raises(ConfigurationError, match="not started by torchrun .RANK, LOCAL_RANK.* pass rank= and world_si"):
        init_dist()
    init_dist(info=DistributedInfo(), backend="gloo", init_method=f"file://{tmp_path / 'meet'}")
    with pytest.raises(ConfigurationError, match="active already"):
        init_dist(info=DistributedInfo(), backend="gloo", init_method=f"file://{tmp_path / 'meet2'}")
    assert hd.is_dist_active()
    shutdown_dist()
    assert not hd.is_dist_active()


def test_a_group_by_rank_and_world_size(tmp_path: Path) -> None:
    """`init_dist(backend, rank, world_size)` joins, and passes keyword arguments on; one of two ranks is refused."""
    with pytest.raises(ConfigurationError, match="rank is 0 and world_size is None: pass both, or neither"):
        init_dist("gloo", 0)
    with pytest.raises(ConfigurationError, match="rank 2 is not one of 2 ranks"):
        init_dist("gloo", 2, 2)
    with pytest.raises(ArgumentTypeError, match="rank is '0', a str: pass a int"):
        init_dist("gloo", "0", 1)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ConfigurationError, match="rank 0 of 1 cannot join a process group: .*MASTER_ADDR"):
        init_dist("gloo", 0, 1)
    timeout = datetime.timedelta(seconds=77)
    init_dist("gloo", 0, 1, init_method=f"file://{tmp_path / 'meet'}", timeout=timeout)
    assert hd.get_dist_info() == DistributedInfo(0, 1, 0, 1)
    group = dist.distributed_c10d._get_default_group()
    assert group._get_backend(torch.device("cpu")).options._timeout == timeout


def test_ranks_that_torchrun_tells_have_their_place_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local rank is torchrun's where `rank` and `world_size` are; otherwise all ranks are on one machine."""
    joined: list[dict[str, Any]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **kwargs: joined.append(kwargs))
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    init_dist("gloo", 5, 8)
    assert hd.get_dist_info() == DistributedInfo(local_rank=1, local_world_size=4, rank=5, world_size=8)
    init_dist("gloo", 1, 2)
    assert hd.get_dist_info() == DistributedInfo(1, 2, 1, 2)
    assert [(call["rank"], call["world_size"], call["init_method"]) for call in joined] == [
        (5, 8, "env://"),
        (1, 2, "env://"),
    ]


def test_printing_is_for_one_rank(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`global_print` prints on one rank, and `local_print` on one rank of each machine."""
    hd.global_print("a")
    hd.local_print("b")
    hd.global_print("c", global_rank=1)
    hd.local_print("d", local_rank=1)
    assert capsys.readouterr().out == "a\nb\n"
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    hd.global_print("e", global_rank=5)
    hd.local_print("f", local_rank=1)
    hd.global_print("g")
    assert capsys.readouterr().out == "e\nf\n"


def _reduce_parameter(rank: int) -> list[float]:
    """Reduce a leaf that requires gradients; its gradient is that of before."""
    weight = torch.full((2,), 1.0 + rank, requires_grad=True)
    torch.autograd.backward((2 * weight).sum())
    hd.all_reduce_tensors(weight)
    assert weight.grad is not None
    return [*weight.tolist(), *weight.grad.tolist()]


def work(rank: int, meeting: str, results: Any) -> None:
    """Run as one rank of two, and return what every function returned."""
    torch.set_num_threads(1)
    init_dist(info=DistributedInfo(rank, 2, rank, 2), backend="gloo", init_method=meeting)
    mine = torch.arange(6.0).reshape(2, 3).t() + 10 * rank
    if rank == 0:
        mine = mine.contiguous()  # The memory layout differs from that of the other rank.
    alone = [dist.new_group([0]), dist.new_group([1])][rank]
    summed = mine.clone()  # In the same layout.
    results.put(
        {
            "rank": rank,
            "info": (hd.get_global_rank(), hd.get_world_size(), hd.get_local_rank(), hd.is_dist_active()),
            "in place": hd.all_reduce_tensors(summed) is summed,
            "sum": summed.tolist(),
            "largest": hd.all_reduce_tensors(torch.tensor([rank, 1 - rank]), op=dist.ReduceOp.MAX).tolist(),
            "smallest": hd.all_reduce_tensors(torch.tensor([rank, 5]), dist.ReduceOp.MIN, async_op=True).tolist(),
            "weight": _reduce_parameter(rank),
            "sums": hd.all_reduce_tensors([torch.tensor(1 + rank), torch.tensor(5)]).tolist(),
            "gathered": hd.gather_into_tensor(mine, (2, 3, 2)).tolist(),
            "flat": hd.gather_into_tensor(torch.tensor([rank]), [2], async_op=True).tolist(),
            "alone": hd.gather_into_tensor(torch.tensor([rank]), [1], group=alone).tolist(),
            "mine": mine.tolist(),
        }
    )
    hd.safe_barrier(group=dist.group.WORLD, async_op=True)
    shutdown_dist()


def test_two_ranks_agree(tmp_path: Path) -> None:
    """Two gloo processes reduce in place, by any operation, and gather copies, whatever the layout of each."""
    context = multiprocessing.get_context("forkserver")
    results = context.SimpleQueue()
    ranks = [context.Process(target=work, args=(rank, f"file://{tmp_path / 'meet'}", results)) for rank in range(2)]
    for process in ranks:
        process.start()
    told = sorted((results.get() for _ in ranks), key=lambda entry: entry["rank"])
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    mine = torch.arange(6.0).reshape(2, 3).t()
    for rank, entry in enumerate(told):
        assert entry["info"] == (rank, 2, rank, True)
        assert entry["sum"] == (2 * mine + 10).tolist()
        assert entry["in place"]
        assert entry["largest"] == [1, 1]
        assert entry["smallest"] == [0, 5]
        assert entry["weight"] == [3.0, 3.0, 2.0, 2.0]
        assert entry["sums"] == [3, 10]
        assert entry["gathered"] == torch.stack([mine, mine + 10]).tolist()
        assert entry["flat"] == [0, 1]
        assert entry["alone"] == [rank]
        assert entry["mine"] == (mine + 10 * rank).tolist()
