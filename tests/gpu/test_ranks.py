"""Which GPU each of several ranks has, and what goes from one to the other, on GPUs that are not there."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios.ranks.host_group import HostGroup
from helios.ranks.results import pack
from helios.trainer._ranks import average_losses
from tests.gpu.ranks import Placed, Telling, find_port, stay_on_gpus, train_under_torchrun
from tests.gpu.runs import Samples, make_trainer
from tests.gpu.tensors import gpus
from tests.ranks.host_groups import join_host_group
from tests.ranks.ranks import run_ranks
from tests.trainer.parts import CountingModel

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="tests.distributed.test_gpu has real GPUs")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("named", "expected"), [(None, [0, 1]), ([3, 1, 0], [3, 1])])
def test_under_torchrun_each_rank_has_the_gpu_of_its_local_rank(
    named: list[int] | None, expected: list[int], strategy: str, tmp_path: Path
) -> None:
    """Networks, batches, memory and files of a rank touch its own GPU alone, also in a resume."""
    ranks = run_ranks(tmp_path, 2, train_under_torchrun, find_port(), named, tmp_path, strategy)
    for rank, lives in enumerate(ranks):
        own = torch.device("cuda", expected[rank])
        for told in lives:
            assert told["gpu_ids"] == expected
            assert told["mine"] == own.index
            assert {place[1:] for place in told["places"]} == {(own, own.index)}
            assert told["used"] == {own.index}
            assert told["backend"] == "cpu:gloo,cuda:nccl"
        assert [told["current"] for told in lives[:2]] == [0, 0]
        _, resumed, whole = lives
        assert all(map(torch.equal, resumed["tensors"]["tensors"], whole["tensors"]["tensors"]))
    assert ranks[0][2]["drawn"] != ranks[1][2]["drawn"]


@pytest.mark.usefixtures("forked_ranks")
def test_ranks_that_fit_starts_have_the_gpus_that_are_named() -> None:
    """Each rank has its GPU; what comes back is on the CPU, and the caller needs no GPU for it."""
    with gpus(3) as driver:
        trainer = make_trainer(plugin="cuda", total_steps=2, valid_frequency=1, gpus=[2, 0])
        trainer.register_plugin(Placed(3))
        model = Telling()
        assert trainer.fit(model, Samples())
        assert trainer.gpu_ids == [2, 0]
        told = sorted((trainer.queue.get() for _ in range(2)), key=lambda one: int(one["rank"]))
        assert driver.calls == [], "the process that has called fit has not initialised CUDA"
        for one, index in zip(told, [2, 0], strict=True):
            assert (one["gpu_ids"], one["mine"], one["used"]) == ([2, 0], index, {index})
            assert {place[1:] for place in one["places"]} == {(torch.device("cuda", index), index)}
            assert {(type(weight), weight.device.type) for weight in one["weights"]} == {(torch.nn.Parameter, "cpu")}
        assert all(map(torch.equal, told[0]["weights"], told[1]["weights"]))
        assert (model.metrics["cycle"].device.type, float(model.metrics["cycle"])) == ("cpu", 1.0)


def average(rank: int, places: list[dict[str, str]]) -> dict[str, Any]:
    """Return what becomes of losses on several devices, and what the host has waited for."""
    driver = stay_on_gpus(2)
    model = CountingModel()
    model._loss_items = {
        name: torch.tensor([1.0 + rank, float(len(name))], device=place.format(rank))
        for name, place in places[rank].items()
    }
    model._running_losses = {"on host": torch.tensor(3.0 - rank)}
    before = {name: loss.device for name, loss in model._loss_items.items()}
    host_group = join_host_group()
    torch.cuda.set_sync_debug_mode("default" if places[0] != places[1] else "error")
    average_losses(model, host_group)
    torch.cuda.set_sync_debug_mode("default")
    assert {name: loss.device for name, loss in model._loss_items.items()} == before
    values = {name: loss.tolist() for name, loss in model._loss_items.items()}
    return {"values": values, "running": float(model._running_losses["on host"]), "used": driver.used}


MIXED = {"b": "cuda:{}", "aa": "cpu", "cccc": "cuda:{}", "ddd": "cpu"}


def test_losses_on_host_and_gpu_are_averaged_together(tmp_path: Path) -> None:
    """Each loss gets its own mean, where it is, and the host waits for no GPU."""
    for rank, told in enumerate(run_ranks(tmp_path, 2, average, [MIXED, MIXED])):
        assert told["values"] == {name: [1.5, float(len(name))] for name in MIXED}
        assert (told["running"], told["used"]) == (2.5, {rank})


@pytest.mark.parametrize("place", ["cpu", "cuda:0"])
def test_losses_that_ranks_have_in_different_places_are_averaged(place: str, tmp_path: Path) -> None:
    """A loss that one rank has on its GPU, and another on the host or a second GPU, gets its mean on both."""
    for told in run_ranks(tmp_path, 2, average, [MIXED, {**MIXED, "b": place}]):
        assert told["values"] == {name: [1.5, float(len(name))] for name in MIXED}


def test_what_is_packed_has_its_tensors_on_the_cpu() -> None:
    """A result holds no memory of the GPU that it was made on; all else of its tensors is as it was."""
    with gpus(2):
        weight = torch.nn.Parameter(torch.ones(2, device="cuda:1"))
        item = {"weight": weight, "again": weight, "list": [torch.arange(3, device="cuda:0")], "host": torch.ones(1)}
        got = pickle.loads(pack(item))
        assert got["weight"] is got["again"]
        assert isinstance(got["weight"], torch.nn.Parameter)
        assert got["weight"].requires_grad
        assert [str(tensor.device) for tensor in (got["weight"], *got["list"], got["host"])] == ["cpu"] * 3
        assert got["list"][0].tolist() == [0, 1, 2]
    assert HostGroup().all_reduce_sum(torch.ones(2)).tolist() == [1, 1]
