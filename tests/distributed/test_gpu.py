"""Ranks that have a GPU each, over NCCL."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch

from tests.distributed.elastic import Plan, batches, train

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices, and there are fewer"),
]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_train_as_one_process_does(strategy: str, tmp_path: Path) -> None:
    """Two ranks, each on the GPU of its local rank, end with the weights of one process up to rounding."""
    (alone,) = train(Plan(iterations=6), tmp_path / "alone")
    told = train(Plan(ranks=2, iterations=6, strategy=strategy, on_gpus=True), tmp_path / "together")
    assert batches(told) == batches([alone])
    for mine, theirs in zip(told[0]["weights"], alone["weights"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_are_resumed_to_the_bit(strategy: str, tmp_path: Path) -> None:
    """A run on two GPUs that is stopped half-way and resumed ends with the weights of an uninterrupted one."""
    plan = Plan(ranks=2, iterations=6, strategy=strategy, on_gpus=True, options={"enable_deterministic": True})
    whole = train(plan, tmp_path / "whole")
    train(dataclasses.replace(plan, iterations=3), tmp_path / "halved")
    halved = train(plan, tmp_path / "halved")
    assert all(torch.equal(a, b) for a, b in zip(halved[0]["weights"], whole[0]["weights"], strict=True))
