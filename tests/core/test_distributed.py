from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios.core import distributed as hd
from helios.core.distributed import DistributedInfo, init_dist, shutdown_dist
from helios.errors import ConfigurationError

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
    """Sums and gathers of one rank are copies without gradients, whatever the memory layout."""
    tensor = torch.arange(6.0).reshape(2, 3).t().requires_grad_()
    total = hd.all_reduce_tensors(tensor)
    assert torch.equal(total, tensor)
    assert total.data_ptr() != tensor.data_ptr()
    assert not total.requires_grad
    assert torch.equal(hd.all_reduce_tensors([torch.ones(2), torch.zeros(2)]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    gathered = hd.gather_into_tensor(tensor, (1, 3, 2))
    assert torch.equal(gathered[0], tensor)
    assert not gathered.requires_grad
    with pytest.raises(ConfigurationError, match=r"size \(7,\) holds 7 elements, not those of 1 ranks of 6"):
        hd.gather_into_tensor(tensor, (7,))


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
    """`init_dist` without torchrun and without `info` names the missing variables; a second call is refused."""
    with pytest.raises(ConfigurationError, match="not started by torchrun .RANK, LOCAL_RANK.* pass `info`"):
        init_dist()
    init_dist(DistributedInfo(), backend="gloo", init_method=f"file://{tmp_path / 'meet'}")
    with pytest.raises(ConfigurationError, match="active already"):
        init_dist(DistributedInfo(), backend="gloo", init_method=f"file://{tmp_path / 'meet2'}")
    assert hd.is_dist_active()
    shutdown_dist()
    assert not hd.is_dist_active()


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


def work(rank: int, meeting: str, results: Any) -> None:
    """Run as one rank of two, and return what every function returned."""
    torch.set_num_threads(1)
    init_dist(DistributedInfo(rank, 2, rank, 2), backend="gloo", init_method=meeting)
    mine = torch.arange(6.0).reshape(2, 3).t() + 10 * rank
    if rank == 0:
        mine = mine.contiguous()  # The memory layout differs from that of the other rank.
    results.put(
        {
            "rank": rank,
            "info": (hd.get_global_rank(), hd.get_world_size(), hd.get_local_rank(), hd.is_dist_active()),
            "sum": hd.all_reduce_tensors(mine).tolist(),
            "sums": hd.all_reduce_tensors([torch.tensor(1 + rank), torch.tensor(5)]).tolist(),
            "gathered": hd.gather_into_tensor(mine, (2, 3, 2)).tolist(),
            "flat": hd.gather_into_tensor(torch.tensor([rank]), [2]).tolist(),
            "mine": mine.tolist(),
        }
    )
    hd.safe_barrier()
    shutdown_dist()


def test_two_ranks_agree(tmp_path: Path) -> None:
    """Two gloo processes get the same sums and gathers, whatever the layout, and keep their own tensors."""
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
        assert entry["sums"] == [3, 10]
        assert entry["gathered"] == torch.stack([mine, mine + 10]).tolist()
        assert entry["flat"] == [0, 1]
        assert entry["mine"] == (mine + 10 * rank).tolist()
