"""Networks that DDP has wrapped and something else has wrapped once more, or has taken for a part of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helios import Model
from helios.checkpoint.state.parts import networks_of
from helios.parallel.gradients import collect_gradients, restore_gradients
from helios.parallel.strategies import DDPStrategy
from tests.ranks.ranks import run_ranks

if TYPE_CHECKING:
    from pathlib import Path


class Nested(Model):
    """A compiled network, an average of a network and a network with a part, the inner one wrapped if it may be."""

    def __init__(self, *, is_wrapped: bool) -> None:
        super().__init__("nested")
        self._is_wrapped = is_wrapped

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        torch.manual_seed(0)
        self.compiled: Any = torch.compile(self._wrap(), backend="eager")
        self.average = AveragedModel(self._wrap())
        self.parts = nn.ModuleDict({"one": self._wrap(), "other": nn.Linear(1, 1)})

    def _wrap(self) -> nn.Module:
        network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        return DDPStrategy().wrap(network, torch.device("cpu"), (), {}) if self._is_wrapped else network

    def run(self, inputs: torch.Tensor) -> None:
        for network in (self.compiled, self.average, self.parts["one"]):
            network(inputs)


def train(rank: int) -> Any:
    """Be a rank, and return what is saved, and what is known of the networks, after a pass of each."""
    model = Nested(is_wrapped=True)
    model.setup()
    model.train()
    inputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(rank))
    network, part = model.compiled, model.parts["one"]
    with network.no_sync():
        network(inputs).square().sum().backward()
    part(inputs).square().sum().backward()
    flags = DDPStrategy().get_buffer_sync_flags(networks_of(model))
    gradients = {name: gradient.clone() for name, gradient in collect_gradients(model).items()}
    again = Nested(is_wrapped=True)
    again.setup()
    DDPStrategy().restore_buffer_sync_flags(networks_of(again), flags)
    restore_gradients(again, gradients, strategy=DDPStrategy())
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in collect_gradients(again).items())
    assert DDPStrategy().get_buffer_sync_flags(networks_of(again)) == flags
    # In a validation, ranks make different numbers of passes, and have the buffers of rank 0.
    with DDPStrategy().local_forward(networks_of(model).values(), is_uneven=True), torch.no_grad():
        buffers = [buffer.clone() for network in networks_of(model).values() for buffer in network.buffers()]
        model.eval()
        for _ in range(1 + rank):
            model.run(inputs)
    return {"state": dict(model.state_dict()), "flags": flags, "names": list(gradients), "buffers": buffers}


def test_wrappers_are_found_wherever_they_are(tmp_path: Path) -> None:
    """DDP inside other wrappers and networks makes no collective in a validation, and occurs in no name.

    What two ranks save has the names of one process, and loads there. Their validations may have different lengths.
    """
    first, second = run_ranks(tmp_path, 2, train)
    alone = Nested(is_wrapped=False)
    alone.setup()
    for rank in (first, second):
        assert {name: list(state) for name, state in rank["state"].items()} == {
            name: list(state) for name, state in alone.state_dict().items()
        }
        assert rank["flags"] == {"compiled": False, "average.module": True, "parts.one": True}
        parts = ("0.weight", "0.bias", "1.weight", "1.bias")
        assert rank["names"] == [f"{network}.{part}" for network in ("compiled", "parts.one") for part in parts]
        alone.load_state_dict(rank["state"])
    for one, other in zip(first["buffers"], second["buffers"], strict=True):
        assert torch.equal(one, other)
