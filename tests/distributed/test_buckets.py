"""Gradients of more than two ranks add up alike in a process that has just begun and in one that is long at work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helios.checkpoint.state.parts import unwrap_module
from helios.parallel.ddp import wrap_ddp
from tests.ranks.ranks import run_ranks

if TYPE_CHECKING:
    from pathlib import Path


class Lookup(nn.Module):
    """An embedding and layers of odd sizes, so that every element of a gradient moves when they are laid out anew."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(101, 37, sparse=sparse)
        self.layers = nn.Sequential(nn.Linear(37, 53), nn.Tanh(), nn.Linear(53, 11), nn.Tanh(), nn.Linear(11, 1))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(self.table(rows)) * self.frozen
        return outputs


def wrapped(state: dict[str, Any] | None, *, sparse: bool, options: dict[str, Any]) -> nn.Module:
    network = Lookup(sparse=sparse)
    if state is not None:
        network.load_state_dict(state)
    return wrap_ddp(network, torch.device("cpu"), options)


def train(rank: int, sparse: bool, options: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Be a rank, and return the weights after three steps, of a network that is made once, and of one made anew."""
    results = []
    for renewed_at in (None, 1):
        network = wrapped(None, sparse=sparse, options=options)
        assert all(parameter.grad is None for parameter in network.parameters())
        for step in range(3):
            if step == renewed_at:
                network = wrapped(unwrap_module(network).state_dict(), sparse=sparse, options=options)
            generator = torch.Generator().manual_seed(100 * step + rank)
            rows = torch.randint(0, 101, (8,), generator=generator)
            network.zero_grad()
            network(rows).square().mean().backward()
            torch.optim.SGD(network.parameters(), lr=0.1).step()
        results.append(unwrap_module(network).state_dict())
    return results


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("options", [{}, {"gradient_as_bucket_view": True}, {"find_unused_parameters": True}], ids=str)
def test_a_network_made_anew_trains_alike(sparse: bool, options: dict[str, Any], tmp_path: Path) -> None:
    """On several ranks, a network that is constructed again between two steps ends with the same bits."""
    first, *others = run_ranks(tmp_path, 3, train, sparse, options)
    for name, weights in first[0].items():
        for once, anew in (first, *others):
            assert torch.equal(once[name], weights), name
            assert torch.equal(anew[name], weights), name
