"""The stand-in for GPUs: what it does as CUDA does it. Where there is a GPU, the same is asked of it."""

from __future__ import annotations

import copy
import io
import operator
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from tests.gpu.tensors import gpus

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.gpu.driver import Driver

FIRST = torch.device("cuda", 0)


def test_tensors_are_where_they_were_asked_for(cuda: Driver | None) -> None:
    """Factories, copies, views, results, gradients, moments, deep copies and pickles are on the device, files too."""
    del cuda
    made = [torch.zeros(2, device="cuda"), torch.tensor([1.0, 2.0], device="cuda:0"), torch.ones(2).to(0)]
    net = nn.Linear(2, 1).to("cuda")
    optimizer = torch.optim.Adam(net.parameters())
    net(made[1][None]).sum().backward()
    optimizer.step()
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    made += [made[1][None] * 2, made[1][1:], torch.zeros_like(made[0]), made[0].new_ones(3), copy.deepcopy(made[0])]
    made += [*net.parameters(), *gradients, *moments, pickle.loads(pickle.dumps(made[0])), made[1][made[1] > 1]]
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    made += torch.load(file).values()
    assert len(made) == 18
    storages = [made[0].untyped_storage(), torch.ones(2).untyped_storage().to(device="cuda")]
    made.append(torch.empty(0, device="cuda").set_(storages[1], 0, (2,), (1,)))
    assert {storage.device for storage in storages} == {FIRST}
    assert {tensor.device for tensor in made} == {FIRST}
    assert all(tensor.is_cuda and not tensor.is_cpu and tensor.get_device() == 0 for tensor in made)
    file.seek(0)
    back = [*torch.load(file, map_location="cpu").values(), made[0].cpu(), torch.zeros_like(made[0], device="cpu")]
    assert {tensor.device.type for tensor in back} == {"cpu"}


def _add(tensor: torch.Tensor) -> Any:
    return tensor + torch.ones(2)


def _join(tensor: torch.Tensor) -> Any:
    return torch.cat([tensor, torch.ones(2)])


def _convert(tensor: torch.Tensor) -> Any:
    return tensor.numpy()


def _pin(tensor: torch.Tensor) -> Any:
    return tensor.pin_memory()


@pytest.mark.parametrize(
    ("use", "kind", "message"),
    [
        (_add, RuntimeError, "Expected all tensors to be on the same device"),
        (_join, RuntimeError, "Expected all tensors to be on the same device"),
        (_convert, TypeError, "can't convert cuda:0 device type tensor to numpy"),
        (_pin, RuntimeError, "only dense CPU tensors can be pinned"),
    ],
)
def test_what_cuda_refuses_is_refused(
    use: Callable[[torch.Tensor], Any], kind: type[Exception], message: str, cuda: Driver | None
) -> None:
    """Tensors on different devices do not meet, and the host cannot look into a GPU; a number goes with both."""
    del cuda
    tensor = torch.ones(2, device="cuda")
    with pytest.raises(kind, match=message):
        use(tensor)
    assert (tensor + torch.tensor(1.0)).device == FIRST


WAITS = [float, bool, *map(operator.methodcaller, ["tolist", "nonzero", "cpu"])]


@pytest.mark.parametrize("wait", WAITS)
def test_waits_are_noticed(wait: Callable[[torch.Tensor], Any], cuda: Driver | None) -> None:
    """`set_sync_debug_mode("error")` makes whatever synchronizes the host raise; other work and copies do not."""
    del cuda
    tensor, pinned = torch.ones(1, device="cuda"), torch.ones(1).pin_memory()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (tensor * 2).add_(pinned.to("cuda", non_blocking=True))
        assert pinned.is_pinned()
        with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
            wait(tensor)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_gpu_has_a_generator_of_its_own(cuda: Driver | None) -> None:
    """What is drawn on the device leaves the host's generator where it is, and the other way round."""
    del cuda
    torch.manual_seed(3)
    here, there = torch.rand(4), torch.rand(4, device="cuda")
    torch.manual_seed(3)
    first = nn.functional.dropout(torch.ones(4, device="cuda"))
    assert torch.equal(torch.rand(4), here)
    torch.cuda.manual_seed(3)
    assert torch.equal(torch.rand(4, device="cuda"), there)
    torch.cuda.manual_seed(3)
    torch.rand(9)
    assert torch.equal(nn.functional.dropout(torch.ones(4, device="cuda")), first)


@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build has what is stood in for")
def test_cuda_is_initialised_when_it_is_needed() -> None:
    """As torch has it: there are no generators before, seeds wait until then, and a forked process cannot use it."""
    with gpus(2) as driver:
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 2
        assert vars(torch.cuda)["default_generators"] == ()
        torch.manual_seed(3)
        assert driver.calls == []
        first = torch.rand(2, device="cuda:1")
        assert driver.calls == [("init",)]
        assert len(vars(torch.cuda)["default_generators"]) == 2
        torch.cuda.manual_seed_all(3)
        assert torch.equal(torch.rand(2, device="cuda:1"), first)
        with torch.cuda.device(1):
            assert torch.zeros(1, device="cuda").device == torch.device("cuda", 1)
        assert torch.cuda.current_device() == 0
        assert driver.used == {1}
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.zeros(1, device="cuda:2")
        driver._process = os.getppid()  # As if this process had been forked from the one that has used the GPUs.
        with pytest.raises(RuntimeError, match="Cannot re-initialize CUDA in forked subprocess"):
            torch.cuda.synchronize()
    assert not torch.cuda.is_available()
    assert torch.ones(1).device.type == "cpu"
    with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
        torch.zeros(1, device="cuda")
