"""Schedules with restarts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim import SGD

from helios.errors import ConfigurationError
from helios.scheduler import CosineAnnealingRestartLR, MultiStepRestartLR, create_scheduler


def make_optimizer() -> SGD:
    """Return an optimizer of two groups with different learning rates."""
    return SGD([{"params": [torch.zeros(1)], "lr": 1.0}, {"params": [torch.zeros(1)], "lr": 0.1}])


def rates_of(scheduler: Any, steps: int, at: int = 0) -> list[list[float]]:
    """Return the learning rates of both groups at each step."""
    rates = []
    for _ in range(at, steps):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_the_rate_falls_at_milestones_and_starts_again() -> None:
    """It is multiplied by gamma at each milestone, twice at one that is named twice, and set back at restarts."""
    scheduler = MultiStepRestartLR(make_optimizer(), [2, 5, 5], gamma=0.5, restarts=[0, 4], restart_weights=[1.0, 0.8])
    factors = [1, 1, 0.5, 0.5, 0.8, 0.2, 0.2]
    assert rates_of(scheduler, 7) == [pytest.approx([factor, factor * 0.1]) for factor in factors]


def test_the_rate_falls_along_cosines() -> None:
    """In each period it falls from its weight to the minimum along half a cosine; then it stays there."""
    scheduler = CosineAnnealingRestartLR(make_optimizer(), [2, 4], restart_weights=[1.0, 0.5], eta_min=0.01)

    def expected(base: float, weight: float, share: float) -> float:
        return 0.01 + weight * (base - 0.01) * (1 + math.cos(math.pi * share)) / 2

    places = [(1.0, 0.0), (1.0, 0.5), (0.5, 0.0), (0.5, 0.25), (0.5, 0.5), (0.5, 0.75), (0.5, 1.0), (0.5, 1.0)]
    wanted = [[expected(1.0, *place), expected(0.1, *place)] for place in places]
    assert rates_of(scheduler, 8) == [pytest.approx(rates) for rates in wanted]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MultiStepRestartLR", {"milestones": [2], "restarts": [0, 3], "restart_weights": [1, 0.5]}),
        ("CosineAnnealingRestartLR", {"periods": [3, 3], "restart_weights": [1, 0.5]}),
    ],
)
def test_schedules_are_made_by_name_and_resume(name: str, options: dict[str, Any]) -> None:
    """A schedule that takes over a state dict continues with the rates of the one that was not interrupted."""
    whole = rates_of(create_scheduler(name, make_optimizer(), **options), 6)
    first = create_scheduler(name, make_optimizer(), **options)
    rates_of(first, 3)
    optimizer = make_optimizer()
    second = create_scheduler(name, optimizer, **options)
    second.load_state_dict(first.state_dict())
    optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates_of(second, 6, at=3) == whole[3:]


def test_weights_that_do_not_match_are_refused() -> None:
    """One weight is needed for each restart and period, and periods are positive."""
    with pytest.raises(ConfigurationError, match="2 restarts and 1 restart_weights: pass one weight for each"):
        MultiStepRestartLR(make_optimizer(), [1], restarts=[0, 2])
    with pytest.raises(ConfigurationError, match="2 periods and 1 restart_weights"):
        CosineAnnealingRestartLR(make_optimizer(), [1, 2])
    with pytest.raises(ConfigurationError, match=r"periods are \[0\]: pass one or more lengths"):
        CosineAnnealingRestartLR(make_optimizer(), [0])
