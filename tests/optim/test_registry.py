"""Optimizers by name."""

from __future__ import annotations

import pytest
import torch
from torch import optim

from helios.errors import UnknownNameError
from helios.optim import OPTIMIZER_REGISTRY, create_optimizer


def test_every_optimizer_of_torch_is_registered() -> None:
    """Every optimizer that torch.optim exports is registered by its class name, the base class is not."""
    exported = {name for name, value in vars(optim).items() if isinstance(value, type) and not name.startswith("_")}
    expected = {name for name in exported if issubclass(getattr(optim, name), optim.Optimizer)} - {"Optimizer"}
    assert {"SGD", "AdamW", "LBFGS", "Muon"} <= expected
    assert set(OPTIMIZER_REGISTRY.keys()) == expected
    assert all(OPTIMIZER_REGISTRY.get(name) is getattr(optim, name) for name in expected)


def test_create_passes_arguments_on() -> None:
    """`create_optimizer` makes an instance of the named class with the given arguments."""
    weight = torch.zeros(2, requires_grad=True)
    made = create_optimizer("SGD", [weight], lr=0.25, momentum=0.5)
    assert type(made) is optim.SGD
    assert made.param_groups[0]["params"] == [weight]
    assert (made.defaults["lr"], made.defaults["momentum"]) == (0.25, 0.5)


def test_an_unknown_optimizer_is_refused() -> None:
    """An unknown name is an error that suggests the right one."""
    with pytest.raises(UnknownNameError, match=r"'Adm' is not a registered optimizer: did you mean 'Adam'.*ASGD"):
        create_optimizer("Adm", [])
