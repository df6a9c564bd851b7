"""Learning rate schedules with restarts."""

from __future__ import annotations

import bisect
import collections
import itertools
import math
from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import LRScheduler

from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch.optim import Optimizer

__all__ = ["CosineAnnealingRestartLR", "MultiStepRestartLR"]


class MultiStepRestartLR(LRScheduler):
    """Multiply the learning rate by `gamma` at milestones, and reset it to a multiple of its initial value at restarts.

    Args:
        optimizer: the optimizer.
        milestones: the steps at which the learning rate is multiplied by `gamma`.
        gamma: the factor.
        restarts: the steps at which the learning rate is set to its initial value times the restart's weight.
        restart_weights: the weight of each restart.
        last_epoch: the index of the last step; -1 to start.

    Raises:
        ConfigurationError: if the numbers of restarts and weights differ.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        restarts: Sequence[int] = (0,),
        restart_weights: Sequence[float] = (1.0,),
        last_epoch: int = -1,
    ) -> None:
        _ensure_one_weight_each("restarts", restarts, restart_weights)
        self.milestones = collections.Counter(milestones)
        self.gamma = gamma
        self.restarts = list(restarts)
        self.restart_weights = list(restart_weights)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of each parameter group at this step."""
        groups = self.optimizer.param_groups
        if self.last_epoch in self.restarts:
            weight = self.restart_weights[self.restarts.index(self.last_epoch)]
            return [group["initial_lr"] * weight for group in groups]
        factor = self.gamma ** self.milestones[self.last_epoch]
        return [group["lr"] * factor for group in groups]


class CosineAnnealingRestartLR(LRScheduler):
    """Decrease the learning rate along half a cosine in each of several periods.

    At step `t` of a period of length `T` with weight `w`, the learning rate is
    `eta_min + w * (initial_lr - eta_min) * (1 + cos(pi * t / T)) / 2` (Loshchilov and Hutter, "SGDR: Stochastic
    Gradient Descent with Warm Restarts", 2017). After the last period, it stays at the last value of that period.

    Args:
        optimizer: the optimizer.
        periods: the length of each period, in steps.
        restart_weights: the weight of each period.
        eta_min: the lowest learning rate.
        last_epoch: the index of the last step; -1 to start.

    Raises:
        ConfigurationError: if a period is not positive, or the numbers of periods and weights differ.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        periods: Sequence[int],
        restart_weights: Sequence[float] = (1.0,),
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        _ensure_one_weight_each("periods", periods, restart_weights)
        if not periods or min(periods) < 1:
            raise ConfigurationError(f"periods are {list(periods)}: pass one or more lengths of at least 1 step")
        self.periods = list(periods)
        self.restart_weights = list(restart_weights)
        self.eta_min = eta_min
        self.cumulative_period = list(itertools.accumulate(periods))
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of each parameter group at this step."""
        index = min(bisect.bisect_right(self.cumulative_period, self.last_epoch), len(self.periods) - 1)
        period, weight = self.periods[index], self.restart_weights[index]
        progress = min(1.0, (self.last_epoch - self.cumulative_period[index] + period) / period)
        share = weight * (1 + math.cos(math.pi * progress)) / 2
        return [self.eta_min + share * (base_lr - self.eta_min) for base_lr in self.base_lrs]


def _ensure_one_weight_each(name: str, steps: Sequence[int], weights: Sequence[float]) -> None:
    if len(steps) != len(weights):
        raise ConfigurationError(
            f"there are {len(steps)} {name} and {len(weights)} restart_weights: pass one weight for each"
        )
