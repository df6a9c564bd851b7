"""Learning rate schedulers by name."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from helios.errors import UnknownNameError
from helios.scheduler import SCHEDULER_REGISTRY, create_scheduler


def test_every_scheduler_of_torch_is_registered() -> None:
    """The schedulers of torch.optim.lr_scheduler, without the base class, and those of Helios are registered."""
    expected = set(lr_scheduler.__all__) - {"LRScheduler"}
    assert {"StepLR", "OneCycleLR", "ReduceLROnPlateau"} <= expected
    assert set(SCHEDULER_REGISTRY.keys()) == expected | {"CosineAnnealingRestartLR", "MultiStepRestartLR"}
    assert all(SCHEDULER_REGISTRY.get(name) is getattr(lr_scheduler, name) for name in expected)


def test_create_passes_arguments_on() -> None:
    """`create_scheduler` makes an instance of the named class, which steps the given optimizer."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    made = create_scheduler("StepLR", optimizer, step_size=2, gamma=0.5)
    assert type(made) is lr_scheduler.StepLR
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    assert rates == [1.0, 1.0, 0.5, 0.5]


def test_an_unknown_scheduler_is_refused() -> None:
    """An unknown name is an error that suggests the right one."""
    with pytest.raises(UnknownNameError, match="'StepLr' is not a registered scheduler: did you mean 'StepLR'"):
        create_scheduler("StepLr")
