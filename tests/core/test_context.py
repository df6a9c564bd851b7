from __future__ import annotations

from typing import Any

import pytest
import torch

from helios import Trainer
from helios.core.context import RunMember
from helios.errors import NotRunningError
from helios.testing import TinyDataModule, TinyModel
from tests.trainer.parts import SimplePlugin


@pytest.mark.parametrize("make", [RunMember, TinyModel, TinyDataModule, lambda: SimplePlugin("x")])
def test_a_part_can_be_used_alone(make: Any) -> None:
    """Outside of a run, a part is on the CPU, as rank 0 of 1; every property can be set directly."""
    part = make()
    assert (part.device, part.map_loc, part.rank, part.is_distributed) == (torch.device("cpu"), "cpu", 0, False)
    with pytest.raises(NotRunningError, match=f"{type(part).__name__}.trainer is only set in a run: .* set it first"):
        _ = part.trainer
    trainer = Trainer()
    part.trainer, part.device, part.map_loc, part.rank, part.is_distributed = (
        trainer,
        torch.device("meta"),
        "x",
        3,
        True,
    )
    assert part.trainer is trainer
    assert (part.device, part.map_loc, part.rank, part.is_distributed) == (torch.device("meta"), "x", 3, True)
