"""Loss functions by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helios.errors import UnknownNameError
from helios.losses import LOSS_REGISTRY, create_loss_function


def test_every_loss_of_torch_is_registered() -> None:
    """Every class of torch.nn whose name ends in Loss is registered by its name, and no other class."""
    expected = {name for name in vars(nn) if name.endswith("Loss")}
    assert {"MSELoss", "CrossEntropyLoss", "TripletMarginWithDistanceLoss"} <= expected
    assert set(LOSS_REGISTRY.keys()) == expected
    assert all(LOSS_REGISTRY.get(name) is getattr(nn, name) for name in expected)


def test_create_passes_arguments_on() -> None:
    """`create_loss_function` makes an instance of the named class with the given arguments."""
    made = create_loss_function("MSELoss", reduction="sum")
    assert type(made) is nn.MSELoss
    assert made(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])).item() == 13.0


def test_an_unknown_loss_is_refused() -> None:
    """An unknown name is an error that suggests the right one."""
    with pytest.raises(UnknownNameError, match="'MSE_Loss' is not a registered loss function: did you mean 'MSELoss'"):
        create_loss_function("MSE_Loss")
